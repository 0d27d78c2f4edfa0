//! Arguments that several subcommands share, and how their values are written.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use mdm::model::{FeatureConfig, Metadata};

/// What a pixel's features are.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Method")]
pub(crate) struct FeatureArguments {
    /// Decoder blocks whose activations describe a pixel, such as 8..12 or 5,8,12 [default: the backbone's]
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) blocks: Option<Numbers>,

    /// Diffusion timesteps at which they are taken, such as 50,150,250 [default: the backbone's]
    #[arg(long, value_name = "STEPS")]
    pub(crate) timesteps: Option<Numbers>,

    /// Divide a window's features by their norm
    #[arg(long)]
    pub(crate) normalise: bool,

    /// Hide part of the image from the network, as in its training [default: the backbone's]
    #[arg(long, overrides_with = "no_hide")]
    pub(crate) hide: bool,

    /// Hide nothing; the network is only told the timestep
    #[arg(long)]
    pub(crate) no_hide: bool,

    /// Side of the sliding window in pixels at the model's scale [default: the backbone's]
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub(crate) window: Option<usize>,

    /// Part of a window shared with its neighbour [default: the backbone's]
    #[arg(long, value_name = "PART", value_parser = part)]
    pub(crate) overlap: Option<f64>,
}

impl FeatureArguments {
    /// The features of `backbone` with what was asked for.
    pub(crate) fn config(&self, backbone: &Metadata) -> FeatureConfig {
        let mut features = backbone.features.clone();
        if let Some(blocks) = &self.blocks {
            features.blocks.clone_from(&blocks.0);
        }
        if let Some(timesteps) = &self.timesteps {
            features.timesteps = timesteps.0.iter().map(|step| *step as u32).collect();
        }
        features.normalise |= self.normalise;
        features
    }

    /// Whether images are corrupted, if that was said.
    pub(crate) fn corrupt(&self) -> Option<bool> {
        match (self.hide, self.no_hide) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}

/// Ready-made configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetArgument {
    MdmPaper,
    #[value(name = "guided-diffusion-256")]
    GuidedDiffusion256,
}

/// Order in which a checkpoint's attention channels are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttentionOrder {
    Legacy,
    New,
}

/// Noise schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NoiseArgument {
    Linear,
    Cosine,
}

impl NoiseArgument {
    pub(crate) fn schedule(self) -> mdm::model::NoiseSchedule {
        match self {
            Self::Linear => mdm::model::NoiseSchedule::Linear,
            Self::Cosine => mdm::model::NoiseSchedule::Cosine,
        }
    }
}

/// The configuration of a backbone whose file does not hold one.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Backbones without a configuration (plain state dicts)")]
pub(crate) struct ConfigurationArguments {
    /// Start from a known configuration: the masked diffusion paper's, or that of guided-diffusion's ImageNet model
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) preset: Option<PresetArgument>,

    /// JSON file with the configuration, keys as in guided-diffusion (image_size, num_head_channels ...)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Side of the images it was trained on, in pixels
    #[arg(long, value_name = "PIXELS", value_parser = positive)]
    pub(crate) image_size: Option<usize>,

    /// Channels of an attention head: 64 in most published models
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "attention_heads")]
    pub(crate) head_channels: Option<usize>,

    /// Number of attention heads, where their channels are not fixed
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) attention_heads: Option<usize>,

    /// Attention channels are grouped by head first (legacy), or by query, key and value first (new)
    #[arg(long, value_enum, value_name = "ORDER")]
    pub(crate) attention_order: Option<AttentionOrder>,

    /// Side of the patches that were masked in its training, in pixels
    #[arg(long, value_name = "PIXELS", value_parser = positive, conflicts_with = "noise")]
    pub(crate) patch: Option<usize>,

    /// Its training added Gaussian noise on this schedule (DDPM) instead of masking patches
    #[arg(long, value_enum, value_name = "SCHEDULE")]
    pub(crate) noise: Option<NoiseArgument>,
}

/// A whole number from 1 on.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number, 1 or more".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Micrometres a pixel.
pub(crate) fn microns(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("must be a positive number of micrometres per pixel, for example 0.5".to_owned()),
    }
}

/// A part of a whole: at least nothing, less than everything.
pub(crate) fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("must be a number from 0 to below 1, for example 0.2".to_owned()),
    }
}

/// Whole numbers: `8..12` (both ends included), `5,8,12` or a mixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbers(pub(crate) Vec<usize>);

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut numbers: Vec<usize> = Vec::new();
        for part in text.split(',') {
            numbers.extend(range(part.trim())?);
        }
        if numbers.windows(2).all(|pair| pair[0] < pair[1]) {
            Ok(Self(numbers))
        } else {
            Err("must ascend, for example 8..12 or 5,8,12".to_owned())
        }
    }
}

/// Bound on blocks and timesteps, so that a range is never unreasonably long.
const LARGEST: usize = 10_000;

fn range(text: &str) -> Result<RangeInclusive<usize>, String> {
    let number = |text: &str| {
        text.parse::<usize>().ok().filter(|number| *number < LARGEST).ok_or_else(|| {
            format!("{text:?} is not a number; write for example 8..12 (both ends included) or 5,8,12")
        })
    };
    match text.split_once("..=").or_else(|| text.split_once("..")).or_else(|| text.split_once('-')) {
        Some((first, last)) => {
            let range = number(first)?..=number(last)?;
            if range.is_empty() {
                Err(format!("{text} is empty: write the smaller number first"))
            } else {
                Ok(range)
            }
        }
        None => number(text).map(|only| only..=only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ranges_and_lists() {
        let parse = |text: &str| text.parse::<Numbers>().map(|numbers| numbers.0);
        assert_eq!(parse("8..12"), Ok(vec![8, 9, 10, 11, 12]));
        assert_eq!(parse("8-10,12"), Ok(vec![8, 9, 10, 12]));
        assert_eq!(parse("50, 150"), Ok(vec![50, 150]));
        for bad in ["", "12..8,7", "3,3", "a", "1..99999999999", "-1", "5,4"] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
