//! The gradient of a linear layer on vectors.

use mdm::Result;
use mdm::engine::gpu::call::{Binding, Builder, Call, word, words};
use mdm::engine::gpu::weights::Layout;
use mdm::plan::{ParamId, TensorId};

use super::shaders::{LINEAR_INPUT, LINEAR_WEIGHT, plain};

/// What [`Gradient::Linear`](crate::differentiate::Gradient::Linear) names.
pub(super) struct Linear {
    pub(super) input: TensorId,
    pub(super) silu: bool,
    pub(super) weight: ParamId,
    pub(super) gradient: TensorId,
    pub(super) output: Option<TensorId>,
}

impl Linear {
    /// `parameters` are the gradients of weight and bias.
    pub(super) fn calls(&self, builder: &mut Builder<'_>, [weight, bias]: [Binding; 2]) -> Result<()> {
        let tensors = &builder.plan.tensors;
        let (inputs, outputs) = (tensors[self.input].channels, tensors[self.gradient].channels);
        let samples = builder.batch();
        let places = [builder.vector(self.input)?, builder.vector(self.gradient)?];
        let mut params = words([samples, inputs, outputs, usize::from(self.silu)])?;
        params.extend(places);
        builder.calls.push(Call {
            permutation: plain(LINEAR_WEIGHT),
            params,
            bindings: vec![(1, Binding::Vectors), (2, weight), (3, bias)],
            workgroups: word((outputs * (inputs + 1)).div_ceil(256))?,
            work: 2.0 * (samples * inputs * outputs) as f64,
        });
        let Some(output) = self.output else { return Ok(()) };
        let mut params = words([inputs, outputs, usize::from(self.silu)])?;
        params.extend(places);
        params.push(builder.vector(output)?);
        let bindings = vec![(1, builder.weight(self.weight, Layout::Exact)?), (2, Binding::Vectors)];
        builder.calls.push(Call {
            permutation: plain(LINEAR_INPUT),
            params,
            bindings,
            workgroups: word(samples * inputs.div_ceil(32))?,
            work: 2.0 * (samples * inputs * outputs) as f64,
        });
        Ok(())
    }
}
