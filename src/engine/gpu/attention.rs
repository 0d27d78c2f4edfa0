//! Attention without the matrix of scores.

use super::call::{Builder, Call, word, words};
use super::shader::{Cooperative, Permutation, Shader, ValueType};
use crate::Result;
use crate::plan::Op;

/// Queries and output channels of a workgroup, as in the shader.
const QUERIES: usize = 64;
const SLICE: usize = 64;

/// Values that are loaded at a time for matrix units.
const COOPERATIVE_PACK: usize = 8;

pub(super) fn attention(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::Attention { qkv, heads, qkv_first, output } = op else { return Ok(()) };
    let tensor = &builder.plan.tensors[*output];
    let (pixels, width) = (tensor.height * tensor.width, tensor.channels / heads);
    let samples = builder.batch();
    let (head_stride, role_stride) = if *qkv_first { (width, tensor.channels) } else { (3 * width, width) };
    let mut params = words([samples, pixels, *heads, width, head_stride, role_stride])?;
    params.push((1.0 / (width as f32).sqrt()).to_bits());
    let bindings = vec![(1, builder.map(*qkv)?.0), (2, builder.map(*output)?.0)];
    let blocks = pixels.div_ceil(QUERIES);
    let (permutation, blocks, products) = match matrix_units(builder, width) {
        Some(cooperative) => {
            let permutation = builder.plain(Shader::AttentionCooperative);
            (Permutation { cooperative: Some(cooperative), ..permutation }, blocks, 3)
        }
        None => {
            let slices = width.div_ceil(SLICE);
            (builder.plain(Shader::Attention), slices * blocks, slices + 1)
        }
    };
    builder.calls.push(Call {
        permutation,
        params,
        bindings,
        workgroups: word(samples * heads * blocks)?,
        work: (samples * heads * pixels * pixels) as f64 * (width * products) as f64,
    });
    Ok(())
}

/// The smallest permutation on matrix units for heads of `width` channels, where there is one.
fn matrix_units(builder: &Builder<'_>, width: usize) -> Option<Cooperative> {
    if builder.value() != ValueType::F16 || !width.is_multiple_of(COOPERATIVE_PACK) {
        return None;
    }
    [Cooperative::ATTENTION, Cooperative::WIDE_ATTENTION]
        .into_iter()
        .find(|unit| unit.is_for(builder.context.cooperative()) && width <= unit.terms as usize)
}
