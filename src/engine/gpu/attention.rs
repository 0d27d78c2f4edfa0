//! Attention without the matrix of scores.

use super::call::{Builder, Call, word, words};
use super::shader::Shader;
use crate::Result;
use crate::plan::Op;

/// Queries and output channels of a workgroup, as in the shader.
const QUERIES: usize = 32;
const SLICE: usize = 64;

pub(super) fn attention(builder: &mut Builder<'_>, op: &Op) -> Result<()> {
    let Op::Attention { qkv, heads, qkv_first, output } = op else { return Ok(()) };
    let tensor = &builder.plan.tensors[*output];
    let (pixels, width) = (tensor.height * tensor.width, tensor.channels / heads);
    let samples = builder.batch();
    let (head_stride, role_stride) = if *qkv_first { (width, tensor.channels) } else { (3 * width, width) };
    let mut params = words([samples, pixels, *heads, width, head_stride, role_stride])?;
    params.push((1.0 / (width as f32).sqrt()).to_bits());
    let slices = width.div_ceil(SLICE);
    builder.calls.push(Call {
        permutation: builder.plain(Shader::Attention),
        params,
        bindings: vec![(1, builder.map(*qkv)?.0), (2, builder.map(*output)?.0)],
        workgroups: word(samples * heads * slices * pixels.div_ceil(QUERIES))?,
        work: (samples * heads * pixels * pixels) as f64 * (width * (slices + 1)) as f64,
    });
    Ok(())
}
