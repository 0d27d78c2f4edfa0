//! What a model file says about itself, beside its tensors.

use serde::{Deserialize, Serialize};

use super::UnetConfig;
use crate::intensity::{IntensityRange, SeenIntensities};
use crate::{Error, Result};

/// Version of the JSON that this library writes; it reads this and every older one.
pub const METADATA_VERSION: u32 = 2;

/// The JSON under the key `mdm` of the safetensors metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Version of this structure, see [`METADATA_VERSION`].
    pub version: u32,
    /// Configuration of the backbone in this file, or of the one that the heads in this file were fitted on.
    pub unet: UnetConfig,
    /// Fingerprint of the backbone (see [`Model::fingerprint`](super::Model::fingerprint)).
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
    /// How stored values become what the network sees. Files of version 1 do not say it and mean the type's range.
    #[serde(default = "type_range")]
    pub intensity_range: IntensityRange,
    /// Which values the images had that the heads were fitted on.
    #[serde(default)]
    pub intensities_seen: Option<SeenIntensities>,
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

fn type_range() -> IntensityRange {
    IntensityRange::Type
}

impl Metadata {
    /// Side of a window, at most.
    pub const LARGEST_WINDOW: usize = 8192;
    /// Labels are bytes, and 255 means unlabelled.
    pub const MOST_CLASSES: usize = 255;
    /// Members of an ensemble, at most.
    pub const MOST_HEADS: usize = 1000;

    /// Describes a backbone of this configuration and nothing else: default corruption and features, windows of the
    /// size it was trained on.
    pub fn new(unet: UnetConfig) -> Self {
        Self {
            version: METADATA_VERSION,
            backbone_fingerprint: None,
            corruption: Corruption::default(),
            features: FeatureConfig::for_unet(&unet),
            window: unet.image_size.clamp(1, Self::LARGEST_WINDOW),
            overlap: default_overlap(),
            microns_per_pixel: None,
            intensity_range: IntensityRange::Declared,
            intensities_seen: None,
            classes: Vec::new(),
            heads: 0,
            description: String::new(),
            unet,
        }
    }

    /// Reads the JSON of this version or an older one; unknown fields are ignored.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is not such JSON, comes from a newer version, or does not pass
    /// [`validate`](Self::validate).
    pub fn from_json(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |error: serde_json::Error| {
            Error::invalid("metadata", format!("{error}; the file is damaged or was not written by libmdm"))
        };
        let Version { version } = serde_json::from_str(json).map_err(wrong)?;
        if version > METADATA_VERSION {
            return Err(Error::invalid(
                "metadata",
                format!(
                    "written by a newer libmdm (version {version} of the metadata, this one reads up to {METADATA_VERSION}); \
                     update libmdm"
                ),
            ));
        }
        let metadata: Self = serde_json::from_str(json).map_err(wrong)?;
        metadata.validate()?;
        Ok(metadata)
    }

    /// The JSON that [`from_json`](Self::from_json) reads.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::invalid("metadata", error.to_string()))
    }

    /// Checks every number against its range.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the field.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what, reason: String| Err(Error::invalid(what, reason));
        if self.version == 0 || self.version > METADATA_VERSION {
            return wrong("metadata version", format!("{} is not in 1..={METADATA_VERSION}", self.version));
        }
        self.unet.validate()?;
        self.corruption.validate()?;
        self.features.validate(&self.unet, &self.corruption)?;
        if self.window == 0 || self.window > Self::LARGEST_WINDOW {
            return wrong("window", format!("{} is not in 1..={}", self.window, Self::LARGEST_WINDOW));
        }
        if !(0.0..1.0).contains(&self.overlap) {
            return wrong("overlap", format!("{} is not at least 0 and below 1", self.overlap));
        }
        if let Some(size) = self.microns_per_pixel
            && !(size > 0.0 && size.is_finite())
        {
            return wrong("microns_per_pixel", format!("{size} is not a size in micrometres"));
        }
        self.intensity_range.validate()?;
        if let Some(seen) = &self.intensities_seen {
            seen.validate()?;
        }
        if self.classes.len() > Self::MOST_CLASSES {
            return wrong(
                "classes",
                format!(
                    "{} are more than {}, which labels can tell apart",
                    self.classes.len(),
                    Self::MOST_CLASSES
                ),
            );
        }
        for class in &self.classes {
            if class.name.len() > 256 || class.name.chars().any(char::is_control) {
                return wrong("classes", format!("{:?} is too long or not printable", class.name));
            }
        }
        if self.heads > Self::MOST_HEADS {
            return wrong("heads", format!("{} are more than {}", self.heads, Self::MOST_HEADS));
        }
        if self.heads > 0 && self.classes.len() < 2 {
            return wrong(
                "classes",
                format!("{} for fitted heads, which tell apart 2 or more", self.classes.len()),
            );
        }
        Ok(())
    }
}

/// A class of the segmentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Shown to people.
    pub name: String,
    /// Red, green, blue in overlays.
    pub colour: [u8; 3],
}

impl Class {
    /// `count` classes called "class 0" and so on, the first black and the others in colours that are easily told apart.
    pub fn numbered(count: usize) -> Vec<Self> {
        const COLOURS: [[u8; 3]; 12] = [
            [230, 159, 0],
            [86, 180, 233],
            [0, 158, 115],
            [240, 228, 66],
            [0, 114, 178],
            [213, 94, 0],
            [204, 121, 167],
            [166, 86, 40],
            [152, 78, 163],
            [77, 175, 74],
            [247, 129, 191],
            [153, 153, 153],
        ];
        (0..count)
            .map(|index| {
                let colour = if index == 0 { [0; 3] } else { COLOURS[(index - 1) % COLOURS.len()] };
                Self { name: format!("class {index}"), colour }
            })
            .collect()
    }
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

impl Corruption {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are no timesteps, more than a million, or a patch has no pixels or more than a window can.
    pub fn validate(&self) -> Result<()> {
        if self.timesteps == 0 || self.timesteps > 1_000_000 {
            return Err(Error::invalid("timesteps", format!("T = {} is not in 1..=1000000", self.timesteps)));
        }
        match self.kind {
            CorruptionKind::Mask { patch, .. } if patch == 0 || patch > Metadata::LARGEST_WINDOW => {
                Err(Error::invalid("patch", format!("{patch} is not in 1..={}", Metadata::LARGEST_WINDOW)))
            }
            _ => Ok(()),
        }
    }

    /// The last timestep: T by the paper's masking rule, whose timesteps start at 1, and T - 1 otherwise.
    pub fn last_timestep(&self) -> u32 {
        match self.kind {
            CorruptionKind::Mask { rule: MaskRule::Paper, .. } => self.timesteps,
            _ => self.timesteps.saturating_sub(1),
        }
    }
}

impl FeatureConfig {
    /// Timesteps, at most.
    pub const MOST_TIMESTEPS: usize = 64;

    /// t = 50 and blocks 8 to 12 for the paper's 18 decoder blocks in six levels; for other networks the last five blocks
    /// before the finest level, or what there is.
    pub fn for_unet(unet: &UnetConfig) -> Self {
        let blocks = unet.decoder_blocks();
        let before_finest = match blocks - (unet.num_res_blocks + 1) {
            0 => blocks,
            coarser => coarser,
        };
        let blocks = match (unet.channel_mult.len(), blocks) {
            (6, 18) => (8..13).collect(),
            _ => (before_finest.saturating_sub(5)..before_finest).collect(),
        };
        Self { timesteps: vec![50], blocks, normalise: false }
    }

    /// Feature channels of a pixel. The blocks must exist in `unet`.
    pub fn channels(&self, unet: &UnetConfig) -> usize {
        self.timesteps.len() * self.blocks.iter().map(|&block| unet.block_shape(block).0).sum::<usize>()
    }

    /// Checks timesteps against the corruption and blocks against the network.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the field.
    pub fn validate(&self, unet: &UnetConfig, corruption: &Corruption) -> Result<()> {
        let last = corruption.last_timestep();
        if self.timesteps.is_empty() || self.timesteps.len() > Self::MOST_TIMESTEPS {
            return Err(Error::invalid(
                "timesteps",
                format!("{} are given; 1 to {} are possible", self.timesteps.len(), Self::MOST_TIMESTEPS),
            ));
        }
        if let Some(timestep) = self.timesteps.iter().find(|&&timestep| timestep > last) {
            return Err(Error::invalid("timesteps", format!("{timestep} is after the last one, {last}")));
        }
        if self.blocks.is_empty() || !self.blocks.is_sorted_by(|a, b| a < b) {
            return Err(Error::invalid("blocks", "at least one is needed, and they must ascend"));
        }
        if let Some(block) = self.blocks.iter().find(|&&block| block >= unet.decoder_blocks()) {
            return Err(Error::invalid(
                "blocks",
                format!(
                    "there is no decoder block {block}; this network has 0..={}",
                    unet.decoder_blocks() - 1
                ),
            ));
        }
        Ok(())
    }
}
