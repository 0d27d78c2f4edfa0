//! Group norm: moments of each channel, and the affine maps that follow from them.

use super::call::{Binding, Builder, Call, word, words};
use super::shader::{Shader, ValueType};
use super::weights::Layout;
use crate::plan::{Op, TensorId};
use crate::{Error, Result};

/// Blocks of pixels that a map is divided into at most: the blocks' moments are combined one after another.
const MOST_BLOCKS: usize = 64;

/// Pixels of a block at least.
const LEAST_BLOCK: usize = 64;

pub(super) fn moments(builder: &mut Builder<'_>, input: TensorId, output: TensorId) -> Result<()> {
    let tensor = &builder.plan.tensors[input];
    let (pixels, channels) = (tensor.height * tensor.width, tensor.channels);
    let block = pixels.div_ceil(MOST_BLOCKS).max(LEAST_BLOCK);
    let blocks = pixels.div_ceil(block);
    let samples = builder.batch();
    let (map, _) = builder.map(input)?;
    let sums = builder.scratch(samples * blocks * 2 * channels, ValueType::F32)?;
    let params = words([pixels, channels, blocks, block])?;
    builder.calls.push(Call {
        permutation: builder.plain(Shader::Moments),
        params: params.clone(),
        bindings: vec![(1, map), (2, sums.clone())],
        workgroups: word(samples * blocks * channels.div_ceil(32))?,
        work: 2.0 * (samples * pixels * channels) as f64,
    });
    let params = [params, vec![word(samples)?, builder.vector(output)?]].concat();
    builder.calls.push(Call {
        permutation: builder.plain(Shader::MomentsSum),
        params,
        bindings: vec![(1, sums), (2, Binding::Vectors)],
        workgroups: word((samples * channels).div_ceil(64))?,
        work: 8.0 * (samples * blocks * channels) as f64,
    });
    Ok(())
}

pub(super) fn coefficients(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::NormCoefficients { moments, weight, bias, scale_shift, output } = op else { return Ok(()) };
    if moments.len() > 2 {
        return Err(Error::invalid("plan", "a norm over more than two tensors"));
    }
    let samples = builder.batch();
    let width = |index: usize| moments.get(index).map_or(0, |&id| builder.plan.tensors[id].channels / 2);
    let place = |index: usize| moments.get(index).map_or(Ok(0), |&id| builder.vector(id));
    let channels = width(0) + width(1);
    let mut params = words([samples, width(0), width(1)])?;
    params.extend([place(0)?, place(1)?]);
    params.push(scale_shift.map_or(Ok(0), |id| builder.vector(id).map(|at| at + 1))?);
    params.push(builder.vector(*output)?);
    let bindings = vec![
        (1, builder.weight(*weight, Layout::Exact)?),
        (2, builder.weight(*bias, Layout::Exact)?),
        (3, Binding::Vectors),
    ];
    builder.calls.push(Call {
        permutation: builder.plain(Shader::NormCoefficients),
        params,
        bindings,
        workgroups: word((samples * channels).div_ceil(64))?,
        work: 4.0 * (samples * channels * channels / 32) as f64,
    });
    Ok(())
}
