//! The UNet's configuration, as guided-diffusion names it.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Everything that the tensors of a checkpoint do not say by themselves (specification: guided-diffusion's `UNetModel`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnetConfig {
    /// Side of the square images it was trained on, in pixels. Other sizes work too.
    pub image_size: usize,
    /// Channels of the input image.
    pub in_channels: usize,
    /// Channels of the output: those of the input, or twice as many where the variance is learnt.
    pub out_channels: usize,
    /// Base width: channels of a level are this times its multiplier. A multiple of 32.
    pub model_channels: usize,
    /// Multiplier of each level, finest first.
    pub channel_mult: Vec<usize>,
    /// Residual blocks a level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Downsampling factors at which residual blocks are followed by attention.
    pub attention_ds: Vec<usize>,
    /// Attention heads where [`num_head_channels`](Self::num_head_channels) is not given.
    #[serde(default = "one")]
    pub num_heads: usize,
    /// Channels of an attention head; -1 (or absent) divides the channels by `num_heads`.
    #[serde(default, deserialize_with = "minus_one_is_none")]
    pub num_head_channels: Option<usize>,
    /// The time embedding scales and shifts the second norm, instead of being added before it.
    pub use_scale_shift_norm: bool,
    /// Levels are joined by resampling residual blocks, instead of (strided) convolutions.
    pub resblock_updown: bool,
    /// Attention's channels are grouped by query, key and value first, instead of by head first.
    #[serde(default)]
    pub use_new_attention_order: bool,
    /// Classes of a class-conditional model.
    #[serde(default)]
    pub num_classes: Option<usize>,
}

fn one() -> usize {
    1
}

fn minus_one_is_none<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<usize>, D::Error> {
    Ok(Option::<i64>::deserialize(from)?.and_then(|value| usize::try_from(value).ok()))
}

impl UnetConfig {
    /// The paper's model: 311.0 M parameters at 192 channels.
    pub fn mdm_paper() -> Self {
        Self {
            image_size: 256,
            in_channels: 3,
            out_channels: 3,
            model_channels: 192,
            channel_mult: vec![1, 1, 2, 2, 4, 4],
            num_res_blocks: 2,
            attention_ds: vec![8, 16, 32],
            num_heads: 1,
            num_head_channels: Some(64),
            use_scale_shift_norm: true,
            resblock_updown: true,
            use_new_attention_order: false,
            num_classes: None,
        }
    }

    /// The unconditional 256-pixel ImageNet model published with guided-diffusion.
    pub fn guided_diffusion_256() -> Self {
        Self { model_channels: 256, out_channels: 6, ..Self::mdm_paper() }
    }

    /// Factor between the finest and the deepest level. Windows are padded to a multiple of it.
    pub fn deepest_downsampling(&self) -> usize {
        1 << (self.channel_mult.len() - 1)
    }

    /// Number of decoder blocks.
    pub fn decoder_blocks(&self) -> usize {
        self.channel_mult.len() * (self.num_res_blocks + 1)
    }

    /// Attention heads for a block of `channels` channels.
    pub fn heads(&self, channels: usize) -> usize {
        self.num_head_channels.map_or(self.num_heads, |width| channels / width)
    }

    /// Channels of decoder block `block`'s output, and the factor by which it is smaller than the image.
    ///
    /// # Panics
    /// If `block` is not below [`decoder_blocks`](Self::decoder_blocks).
    pub fn block_shape(&self, block: usize) -> (usize, usize) {
        assert!(block < self.decoder_blocks(), "decoder block {block} of {}", self.decoder_blocks());
        let per_level = self.num_res_blocks + 1;
        let level = self.channel_mult.len() - 1 - block / per_level;
        let upsampled = block % per_level == per_level - 1 && level > 0;
        (self.model_channels * self.channel_mult[level], 1 << if upsampled { level - 1 } else { level })
    }

    /// Consecutive `blocks` of one resolution, and the channels that they have together. A head's first layer is applied
    /// to each group at once.
    ///
    /// # Panics
    /// As [`block_shape`](Self::block_shape).
    pub fn feature_groups(&self, blocks: &[usize]) -> Vec<(Vec<usize>, usize)> {
        let alike = blocks.chunk_by(|&a, &b| self.block_shape(a).1 == self.block_shape(b).1);
        alike
            .map(|group| (group.to_vec(), group.iter().map(|&block| self.block_shape(block).0).sum()))
            .collect()
    }

    /// Checks every number against what the network can be built from.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what, reason: String| Err(Error::invalid(what, reason));
        if self.model_channels == 0 || !self.model_channels.is_multiple_of(32) || self.model_channels > 4096 {
            return wrong(
                "model_channels",
                format!(
                    "{} is not a multiple of 32 in 32..=4096 (group norm has 32 groups)",
                    self.model_channels
                ),
            );
        }
        if self.channel_mult.is_empty() || self.channel_mult.len() > 10 {
            return wrong(
                "channel_mult",
                format!("{} levels; 1 to 10 are possible", self.channel_mult.len()),
            );
        }
        if let Some(bad) = self.channel_mult.iter().find(|&&m| m == 0 || m > 64) {
            return wrong("channel_mult", format!("a multiplier of {bad}; 1 to 64 are possible"));
        }
        if self.num_res_blocks == 0 || self.num_res_blocks > 32 {
            return wrong("num_res_blocks", format!("{}; 1 to 32 are possible", self.num_res_blocks));
        }
        for (what, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if channels == 0 || channels > 64 {
                return wrong(what, format!("{channels}; 1 to 64 are possible"));
            }
        }
        if self.image_size == 0 || self.image_size > 1 << 16 {
            return wrong("image_size", format!("{}; 1 to 65536 are possible", self.image_size));
        }
        if self.num_classes.is_some_and(|classes| classes == 0 || classes > 1 << 20) {
            return wrong("num_classes", "must be 1 to 1048576, or absent".to_owned());
        }
        if self.num_heads == 0 || self.num_head_channels == Some(0) {
            return wrong(
                "num_heads",
                "attention needs at least one head with at least one channel".to_owned(),
            );
        }
        for (level, mult) in self.channel_mult.iter().enumerate() {
            let channels = self.model_channels * mult;
            let deepest = level + 1 == self.channel_mult.len();
            if !deepest && !self.attention_ds.contains(&(1 << level)) {
                continue;
            }
            let divides = match self.num_head_channels {
                Some(width) => channels.is_multiple_of(width),
                None => channels.is_multiple_of(self.num_heads),
            };
            if !divides {
                return wrong(
                    if self.num_head_channels.is_some() { "num_head_channels" } else { "num_heads" },
                    format!("does not divide the {channels} channels of level {level}, which has attention"),
                );
            }
        }
        Ok(())
    }
}
