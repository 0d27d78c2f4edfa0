//! What a model file says about itself, beside its tensors.

use serde::{Deserialize, Serialize};

use super::UnetConfig;

/// Version of the JSON that this library writes; it reads this and every older one.
pub const METADATA_VERSION: u32 = 1;

/// The JSON under the key `mdm` of the safetensors metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Version of this structure, see [`METADATA_VERSION`].
    pub version: u32,
    /// Configuration of the backbone in this file, or of the one that the heads in this file were fitted on.
    pub unet: UnetConfig,
    /// Fingerprint of the backbone (see `Weights::fingerprint`).
    #[serde(default)]
    pub backbone_fingerprint: Option<String>,
    /// How windows are corrupted before the network sees them.
    #[serde(default)]
    pub corruption: Corruption,
    /// Which activations are a pixel's features.
    pub features: FeatureConfig,
    /// Side of the square sliding window, in pixels at the model's resolution.
    pub window: usize,
    /// Part of a window shared with its neighbour, in [0, 1).
    #[serde(default = "default_overlap")]
    pub overlap: f64,
    /// Size of a pixel of the images the backbone was trained on, in micrometres.
    #[serde(default)]
    pub microns_per_pixel: Option<f64>,
    /// Classes that the heads tell apart, in order of their index; empty without heads.
    #[serde(default)]
    pub classes: Vec<Class>,
    /// Number of heads in the file.
    #[serde(default)]
    pub heads: usize,
    /// Free words on where the weights come from.
    #[serde(default)]
    pub description: String,
}

fn default_overlap() -> f64 {
    0.2
}

/// A class of the segmentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Shown to people.
    pub name: String,
    /// Red, green, blue in overlays.
    pub colour: [u8; 3],
}

/// How images are corrupted, in training and when features are taken (specification, section 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corruption {
    /// Masked patches or Gaussian noise.
    #[serde(flatten)]
    pub kind: CorruptionKind,
    /// Number of timesteps T.
    pub timesteps: u32,
    /// Whether features are taken from a corrupted image, or from the clean one with only the timestep passed.
    pub corrupt_features: bool,
}

/// The two families of diffusion models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CorruptionKind {
    /// Patches set to zero (MDM).
    Mask {
        /// Side of a patch in pixels.
        patch: usize,
        /// How many patches a timestep hides.
        rule: MaskRule,
    },
    /// Gaussian noise (DDPM).
    Gaussian {
        /// Noise schedule.
        schedule: NoiseSchedule,
    },
}

/// How many of N patches are hidden at timestep t of T.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskRule {
    /// `floor(t / (T + 1) * N)` are hidden, t in [1, T].
    Paper,
    /// `floor(N * (1 - t / T))` are kept, t in [0, T): the authors' code.
    Official,
}

/// Noise schedules of DDPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseSchedule {
    /// beta from 1e-4 to 0.02.
    Linear,
    /// Nichol and Dhariwal 2021.
    Cosine,
}

impl Default for Corruption {
    fn default() -> Self {
        Self {
            kind: CorruptionKind::Mask { patch: 8, rule: MaskRule::Paper },
            timesteps: 1000,
            corrupt_features: true,
        }
    }
}

/// Which activations make up a pixel's features (specification, section 5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureConfig {
    /// Timesteps at which the network is run; features are concatenated in this order, timesteps outermost.
    pub timesteps: Vec<u32>,
    /// Decoder blocks, ascending; their channels are concatenated in this order.
    pub blocks: Vec<usize>,
    /// Whether features are divided by the Frobenius norm of a window's whole feature tensor.
    #[serde(default)]
    pub normalise: bool,
}
