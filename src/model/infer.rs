//! What names and shapes of a state dict say about its configuration.

use super::stored::StoredTensors;
use crate::{Error, Result};

/// The part of a [`UnetConfig`](super::UnetConfig) that shapes determine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inferred {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) model_channels: usize,
    pub(crate) channel_mult: Vec<usize>,
    pub(crate) num_res_blocks: usize,
    pub(crate) attention_ds: Vec<usize>,
    pub(crate) use_scale_shift_norm: bool,
    pub(crate) resblock_updown: bool,
    pub(crate) num_classes: Option<usize>,
}

/// Most decoder blocks that are looked for.
const MOST_BLOCKS: usize = 400;

pub(crate) fn infer(tensors: &StoredTensors) -> Result<Inferred> {
    let shape = |name: &str, dimensions: usize| match tensors.shape(name) {
        Some(shape) if shape.len() == dimensions && !shape.contains(&0) => Ok(shape),
        Some(shape) => {
            Err(odd(tensors, name, &format!("has shape {shape:?}, of which nothing can be inferred")))
        }
        None => Err(odd(tensors, name, "is missing, so the configuration cannot be inferred")),
    };
    let has = |name: &str| tensors.shape(name).is_some();

    let model_channels = shape("time_embed.0.weight", 2)?[1];
    let in_channels = shape("input_blocks.0.0.weight", 4)?[1];
    let out_channels = shape("out.2.weight", 4)?[0];
    let num_classes = match has("label_emb.weight") {
        true => Some(shape("label_emb.weight", 2)?[0]),
        false => None,
    };

    // A downsampling residual block has the shapes of any other, but an upsampling one is an extra part of the last
    // block of a level.
    let block = "output_blocks.";
    let blocks = (0..MOST_BLOCKS).take_while(|i| has(&format!("{block}{i}.0.in_layers.2.weight"))).count();
    let upsamples = |i: usize| {
        (1..=2).any(|part| {
            has(&format!("{block}{i}.{part}.in_layers.2.weight"))
                || has(&format!("{block}{i}.{part}.conv.weight"))
        })
    };
    let per_level = (0..blocks).find(|&i| upsamples(i)).map_or(blocks, |i| i + 1);
    if per_level < 2 || !blocks.is_multiple_of(per_level) {
        return Err(odd(
            tensors,
            &format!("{block}{blocks}.0.in_layers.2.weight"),
            &format!("is missing: {blocks} decoder blocks do not make levels of {per_level}"),
        ));
    }
    let (levels, num_res_blocks) = (blocks / per_level, per_level - 1);

    let mut channel_mult = Vec::with_capacity(levels);
    let mut attention_ds = Vec::new();
    for level in 0..levels {
        // Each level of the encoder ends with a downsampling block.
        let first = format!("input_blocks.{}", 1 + level * (num_res_blocks + 1));
        let name = format!("{first}.0.in_layers.2.weight");
        let channels = shape(&name, 4)?[0];
        if !channels.is_multiple_of(model_channels) {
            return Err(odd(
                tensors,
                &name,
                &format!("has {channels} channels, which is no multiple of the base width {model_channels}"),
            ));
        }
        channel_mult.push(channels / model_channels);
        if has(&format!("{first}.1.qkv.weight")) && level < usize::BITS as usize {
            attention_ds.push(1 << level);
        }
    }
    let first = shape("input_blocks.1.0.in_layers.2.weight", 4)?[0];
    let time = shape("input_blocks.1.0.emb_layers.1.weight", 2)?[0];
    Ok(Inferred {
        in_channels,
        out_channels,
        model_channels,
        channel_mult,
        num_res_blocks,
        attention_ds,
        use_scale_shift_norm: time != first,
        resblock_updown: levels > 1 && !has(&format!("input_blocks.{}.0.op.weight", num_res_blocks + 1)),
        num_classes,
    })
}

fn odd(tensors: &StoredTensors, name: &str, reason: &str) -> Error {
    Error::tensor(
        name,
        format!(
            "{reason} (in {}); is this a guided-diffusion UNet, and complete?",
            tensors.content().path().display()
        ),
    )
}
