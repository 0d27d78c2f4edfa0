//! The gradient of attention without the matrix of scores.

use mdm::Result;
use mdm::engine::gpu::call::{Builder, Call, word, words};
use mdm::engine::gpu::conv::stored;
use mdm::engine::gpu::shader::ValueType;
use mdm::plan::TensorId;

use super::shaders::{ATTENTION_GRADIENT, ATTENTION_STATISTICS};

/// Queries or keys of a workgroup and channels of their gradient, as in the shaders.
const OWN: usize = 32;
const SLICE: usize = 64;

/// What [`Gradient::Attention`](crate::differentiate::Gradient::Attention) names.
pub(super) struct Attention {
    pub(super) qkv: TensorId,
    pub(super) heads: usize,
    pub(super) qkv_first: bool,
    pub(super) gradient: TensorId,
    pub(super) output: TensorId,
}

impl Attention {
    pub(super) fn calls(&self, builder: &mut Builder<'_>) -> Result<()> {
        let heads = self.heads;
        let tensor = &builder.plan.tensors[self.gradient];
        let (pixels, width) = (tensor.height * tensor.width, tensor.channels / heads);
        let samples = builder.batch();
        let (head_stride, role_stride) =
            if self.qkv_first { (width, tensor.channels) } else { (3 * width, width) };
        let mut params = words([samples, pixels, heads, width, head_stride, role_stride])?;
        params.push((1.0 / (width as f32).sqrt()).to_bits());
        let statistics = builder.scratch(2 * samples * heads * pixels, ValueType::F32)?;
        let read =
            vec![(1, stored(builder, self.qkv)?), (2, stored(builder, self.gradient)?), (3, statistics)];
        let product = (samples * heads * pixels * pixels) as f64 * width as f64;
        builder.calls.push(Call {
            permutation: builder.plain(ATTENTION_STATISTICS),
            params: params.clone(),
            bindings: read.clone(),
            workgroups: word(samples * heads * pixels.div_ceil(OWN))?,
            work: 2.0 * product,
        });
        let slices = width.div_ceil(SLICE);
        let output = stored(builder, self.output)?;
        for (keys, results) in [(0, 1), (1, 2)] {
            builder.calls.push(Call {
                permutation: builder.plain(ATTENTION_GRADIENT),
                params: [&params[..], &[keys]].concat(),
                bindings: [&read[..], &[(4, output.clone())]].concat(),
                workgroups: word(samples * heads * slices * pixels.div_ceil(OWN))?,
                work: product * (2 * slices + results) as f64,
            });
        }
        Ok(())
    }
}
