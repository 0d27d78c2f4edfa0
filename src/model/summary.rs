//! What a model is, for people and programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::{Class, Corruption, FeatureConfig, Model, Precision, UnetConfig};
use crate::intensity::{IntensityRange, SeenIntensities};

/// What is known of a model without reading its values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The file it was opened from.
    pub path: Option<PathBuf>,
    /// Whether the backbone's weights are there; otherwise only their fingerprint is.
    pub has_backbone: bool,
    /// Values of the backbone.
    pub parameters: u64,
    /// Bytes of the backbone as it is stored; 0 where it is elsewhere.
    pub backbone_bytes: u64,
    /// Number of the backbone's tensors by stored type.
    pub stored_types: BTreeMap<Precision, usize>,
    /// The fingerprint that was stored with it or has been computed.
    pub backbone_fingerprint: Option<String>,
    /// The backbone's configuration.
    pub unet: UnetConfig,
    /// Its decoder blocks, as features can be taken from them.
    pub decoder_blocks: Vec<DecoderBlock>,
    /// How windows are corrupted.
    pub corruption: Corruption,
    /// Which activations are features.
    pub features: FeatureConfig,
    /// Feature channels of a pixel.
    pub feature_channels: usize,
    /// Side of the sliding window in pixels.
    pub window: usize,
    /// Part of a window shared with its neighbour.
    pub overlap: f64,
    /// Size of a pixel in micrometres.
    pub microns_per_pixel: Option<f64>,
    /// How stored values become what the network sees.
    pub intensity_range: IntensityRange,
    /// Which values the images had that the heads were fitted on.
    pub intensities_seen: Option<SeenIntensities>,
    /// Classes in order of their index.
    pub classes: Vec<Class>,
    /// Number of heads.
    pub heads: usize,
    /// Widths of a head's hidden layers.
    pub hidden: Option<(usize, usize)>,
    /// Values of all heads, the norms' statistics included.
    pub head_parameters: u64,
    /// What nobody said and shapes do not show.
    pub assumptions: Vec<String>,
    /// Where the weights come from.
    pub description: String,
}

/// The output of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DecoderBlock {
    /// Its number.
    pub block: usize,
    /// Channels.
    pub channels: usize,
    /// How many times smaller than the window it is.
    pub downsampling: usize,
}

impl Model {
    /// What `mdm info` tells.
    pub fn summary(&self) -> Summary {
        let metadata = self.metadata();
        let unet = &metadata.unet;
        let (mut bytes, mut stored_types) = (0, BTreeMap::new());
        if let Ok(source) = self.backbone() {
            for (name, shape) in unet.parameters() {
                let precision = source.precision(&name);
                *stored_types.entry(precision).or_default() += 1;
                bytes += shape.iter().map(|&size| size as u64).product::<u64>() * precision.size() as u64;
            }
        }
        let block = |block| {
            let (channels, downsampling) = unet.block_shape(block);
            DecoderBlock { block, channels, downsampling }
        };
        let head_values =
            |head: &super::Head| -> usize { head.tensors("").iter().map(|(_, _, v)| v.len()).sum() };
        Summary {
            path: self.path().map(Into::into),
            has_backbone: self.has_backbone(),
            parameters: unet.parameter_count(),
            backbone_bytes: bytes,
            stored_types,
            backbone_fingerprint: self.known_fingerprint(),
            unet: unet.clone(),
            decoder_blocks: (0..unet.decoder_blocks()).map(block).collect(),
            corruption: metadata.corruption.clone(),
            features: metadata.features.clone(),
            feature_channels: metadata.features.channels(unet),
            window: metadata.window,
            overlap: metadata.overlap,
            microns_per_pixel: metadata.microns_per_pixel,
            intensity_range: metadata.intensity_range.clone(),
            intensities_seen: metadata.intensities_seen,
            classes: metadata.classes.clone(),
            heads: self.heads().len(),
            hidden: self.heads().first().map(super::Head::hidden),
            head_parameters: self.heads().iter().map(head_values).sum::<usize>() as u64,
            assumptions: self.assumptions().to_vec(),
            description: metadata.description.clone(),
        }
    }
}
