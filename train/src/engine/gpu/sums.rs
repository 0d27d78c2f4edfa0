//! Sums over pixels: what was added to all of them, and what multiplied them.

use mdm::Result;
use mdm::engine::gpu::call::{Binding, Builder, Call, word, words};
use mdm::engine::gpu::conv::stored;
use mdm::engine::gpu::shader::ValueType;
use mdm::plan::{Source, TensorId};

use super::shaders::{BLOCK_SUMS, CHANNEL_SUMS, NORM_SUMS, plain};
use super::sum::Reader;
use crate::differentiate::NormUse;

/// Blocks of pixels that a map is divided into at most: the blocks' sums are added up one after another.
const MOST_BLOCKS: usize = 64;

/// Pixels of a block at least.
const LEAST_BLOCK: usize = 64;

/// Pixels of a block, and blocks.
fn blocks(pixels: usize) -> (usize, usize) {
    let block = pixels.div_ceil(MOST_BLOCKS).max(LEAST_BLOCK);
    (block, pixels.div_ceil(block))
}

/// What becomes of the sums of blocks.
#[derive(Default)]
pub(super) struct Totals {
    /// Where a sample's values go among the vectors, and from one sample to the next.
    pub(super) vector: Option<(usize, usize)>,
    /// Values before the first of the second part: the parameter's, or the vector's.
    pub(super) first: usize,
    /// Where the second part begins in a sample's vector.
    pub(super) second: usize,
    /// Parameters that the sums of all samples are added to.
    pub(super) parameters: Vec<Binding>,
}

/// Adds up `[samples][blocks][values]`.
pub(super) fn add_up(
    builder: &mut Builder<'_>,
    sums: Binding,
    (blocks, values): (usize, usize),
    totals: Totals,
) -> Result<()> {
    let samples = builder.batch();
    let (to, stride) = totals.vector.map_or((0, 0), |(to, stride)| (to + 1, stride));
    let mut bindings = vec![(1, sums), (2, Binding::Vectors)];
    let params = words([
        samples,
        blocks,
        values,
        to,
        stride,
        totals.first,
        totals.second,
        usize::from(!totals.parameters.is_empty()),
    ])?;
    bindings.extend((3..).zip(totals.parameters));
    builder.calls.push(Call {
        permutation: plain(BLOCK_SUMS),
        params,
        bindings,
        workgroups: word(values.div_ceil(32))?,
        work: 4.0 * (samples * blocks * values) as f64,
    });
    Ok(())
}

pub(super) fn channel_sums(
    builder: &mut Builder<'_>,
    gradient: TensorId,
    bias: Option<Binding>,
    output: Option<TensorId>,
) -> Result<()> {
    let tensor = &builder.plan.tensors[gradient];
    let (pixels, channels) = (tensor.height * tensor.width, tensor.channels);
    let (block, count) = blocks(pixels);
    let samples = builder.batch();
    let map = stored(builder, gradient)?;
    let sums = builder.scratch(samples * count * channels, ValueType::F32)?;
    builder.calls.push(Call {
        permutation: builder.plain(CHANNEL_SUMS),
        params: words([pixels, channels, count, block])?,
        bindings: vec![(1, map), (2, sums.clone())],
        workgroups: word(samples * count * channels.div_ceil(32))?,
        work: (samples * pixels * channels) as f64,
    });
    let place = output.map(|id| builder.vector(id)).transpose()?;
    let totals = Totals {
        vector: place.map(|place| (place as usize, channels)),
        first: channels,
        second: 0,
        parameters: bias.into_iter().collect(),
    };
    add_up(builder, sums, (count, channels), totals)
}

pub(super) fn norm_sums(
    builder: &mut Builder<'_>,
    source: &Source,
    gradient: TensorId,
    output: TensorId,
) -> Result<()> {
    let Some(norm) = source.norm else { return Ok(()) };
    let plan = builder.plan;
    let all_channels = plan.tensors[output].channels / 2;
    let samples = builder.batch();
    let place = builder.vector(output)? as usize;
    let map = stored(builder, gradient)?;
    let mut first_channel = 0;
    for &part in &source.parts {
        let tensor = &plan.tensors[part];
        let (pixels, channels) = (tensor.height * tensor.width, tensor.channels);
        let (block, count) = blocks(pixels);
        let sums = builder.scratch(samples * count * 2 * channels, ValueType::F32)?;
        let reader = Reader {
            gradient,
            first_channel,
            resample: source.resample,
            norm: Some(NormUse { coefficients: norm.coefficients, silu: norm.silu }),
        };
        let mut params = words([pixels, tensor.width, channels, count, block, 0, 0, 0])?;
        params.extend(reader.words(builder, 0)?);
        builder.calls.push(Call {
            permutation: builder.plain(NORM_SUMS),
            params,
            bindings: vec![
                (1, stored(builder, part)?),
                (2, Binding::Vectors),
                (3, map.clone()),
                (4, sums.clone()),
            ],
            workgroups: word(samples * count * channels.div_ceil(32))?,
            work: 16.0 * (samples * pixels * channels) as f64,
        });
        let totals = Totals {
            vector: Some((place + first_channel, 2 * all_channels)),
            first: channels,
            second: all_channels,
            parameters: Vec::new(),
        };
        add_up(builder, sums, (count, 2 * channels), totals)?;
        first_channel += channels;
    }
    Ok(())
}
