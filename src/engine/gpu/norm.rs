//! Group norm: moments of each channel, and the affine maps that follow from them.

use super::call::{Binding, Builder, Call, word, words};
use super::shader::{Shader, ValueType};
use super::weights::Layout;
use crate::plan::{Op, TensorId};
use crate::{Error, Result};

/// Blocks of pixels that a map is divided into at most.
const MOST_BLOCKS: usize = 256;

/// Pixels of a block at least.
const LEAST_BLOCK: usize = 32;

/// Groups of a norm; the shader's `GROUPS` is the same.
const GROUPS: usize = 32;

/// Threads of the workgroups that combine blocks.
const COMBINERS: usize = 256;

/// Moments of a map's blocks of pixels, in scratch memory.
pub(super) struct Blocks {
    pixels: usize,
    channels: usize,
    blocks: usize,
    /// Pixels of one.
    block: usize,
    moments: Binding,
}

impl Blocks {
    /// Adds the call that computes them.
    pub(super) fn of(builder: &mut Builder<'_>, input: TensorId) -> Result<Self> {
        let tensor = &builder.plan.tensors[input];
        let (pixels, channels) = (tensor.height * tensor.width, tensor.channels);
        // As many for one sample as for many, so that results do not depend on the batch.
        let block = pixels.div_ceil(MOST_BLOCKS).max(LEAST_BLOCK);
        let blocks = pixels.div_ceil(block);
        let samples = builder.batch();
        let (map, _) = builder.map(input)?;
        let moments = builder.scratch(samples * blocks * 2 * channels, ValueType::F32)?;
        let mut params = words([pixels, channels, blocks, block])?;
        let (shader, width) = if channels.is_multiple_of(4) {
            let columns = if (channels / 4).is_multiple_of(16) { 16 } else { 8 };
            params.push(word(columns)?);
            (Shader::Moments, 4 * columns)
        } else {
            (Shader::MomentsScalars, 32)
        };
        builder.calls.push(Call {
            permutation: builder.plain(shader),
            params,
            bindings: vec![(1, map), (2, moments.clone())],
            workgroups: word(samples * blocks * channels.div_ceil(width))?,
            work: 2.0 * (samples * pixels * channels) as f64,
        });
        Ok(Self { pixels, channels, blocks, block, moments })
    }

    /// Threads that share a channel, where a workgroup has `columns` of them.
    fn lanes(&self, columns: usize) -> usize {
        let most = (COMBINERS / columns).min(self.blocks).clamp(1, 32);
        1 << most.ilog2()
    }
}

/// Moments of a map, to be read by any number of norms.
pub(super) fn moments(builder: &mut Builder<'_>, input: TensorId, output: TensorId) -> Result<()> {
    const COLUMNS: usize = 32;
    let blocks = Blocks::of(builder, input)?;
    let Blocks { pixels, channels, blocks: count, block, .. } = blocks;
    let samples = builder.batch();
    let mut params = words([pixels, channels, count, block, COLUMNS, blocks.lanes(COLUMNS).min(8)])?;
    params.push(builder.vector(output)?);
    builder.calls.push(Call {
        permutation: builder.plain(Shader::MomentsSum),
        params,
        bindings: vec![(1, blocks.moments), (2, Binding::Vectors)],
        workgroups: word(samples * channels.div_ceil(COLUMNS))?,
        work: 8.0 * (samples * count * channels) as f64,
    });
    Ok(())
}

/// A norm's coefficients. Where `fresh` names one of its moments with the blocks that they are still in, they are combined
/// and written too.
pub(super) fn coefficients(
    builder: &mut Builder<'_>,
    op: &Op,
    fresh: Option<(TensorId, Blocks)>,
) -> Result<()> {
    let Op::NormCoefficients { moments, weight, bias, scale_shift, output } = op else { return Ok(()) };
    let samples = builder.batch();
    let width = |index: usize| moments.get(index).map_or(0, |&id| builder.plan.tensors[id].channels / 2);
    let place = |index: usize| moments.get(index).map_or(Ok(0), |&id| builder.vector(id));
    let channels = width(0) + width(1);
    let columns = channels / GROUPS;
    if moments.len() > 2 || !channels.is_multiple_of(GROUPS) || !(1..=COMBINERS).contains(&columns) {
        let reason = format!("a norm over {} tensors of {channels} channels", moments.len());
        return Err(Error::invalid("plan", reason));
    }
    let mut params = words([width(0), width(1)])?;
    params.extend([place(0)?, place(1)?]);
    params.push(scale_shift.map_or(Ok(0), |id| builder.vector(id).map(|at| at + 1))?);
    params.push(builder.vector(*output)?);
    let mut bindings = vec![(2, Binding::Vectors)];
    let mut work = 4.0 * (samples * channels * columns) as f64;
    match fresh {
        Some((id, blocks)) => {
            let which = moments.iter().position(|&own| own == id).map_or(0, |index| index + 1);
            let Blocks { pixels, blocks: count, block, .. } = blocks;
            params.extend(words([which, pixels, count, block, columns, blocks.lanes(columns)])?);
            work += 8.0 * (samples * count * blocks.channels) as f64;
            bindings.push((1, blocks.moments));
        }
        None => params.extend(words([0, 1, 0, 1, columns, 1])?),
    }
    bindings.push((3, builder.weight(*weight, Layout::Exact)?));
    bindings.push((4, builder.weight(*bias, Layout::Exact)?));
    builder.calls.push(Call {
        permutation: builder.plain(Shader::NormCoefficients),
        params,
        bindings,
        workgroups: word(samples * GROUPS)?,
        work,
    });
    Ok(())
}
