//! What follows from the gradient of a norm's coefficients.

use mdm::engine::gpu::call::{Binding, Builder, Call, word, words};
use mdm::engine::gpu::shader::ValueType;
use mdm::engine::gpu::weights::Layout;
use mdm::plan::{ParamId, TensorId};
use mdm::{Error, Result};

use super::shaders::{NORM_COEFFICIENTS_GRADIENT, plain};
use super::sums::{Totals, add_up};

/// What [`Gradient::NormCoefficients`](crate::differentiate::Gradient::NormCoefficients) names.
pub(super) struct NormCoefficients<'a> {
    pub(super) moments: &'a [TensorId],
    pub(super) pixels: usize,
    pub(super) weight: ParamId,
    pub(super) bias: ParamId,
    pub(super) scale_shift: Option<TensorId>,
    pub(super) gradient: TensorId,
    pub(super) outputs: &'a [TensorId],
    pub(super) scale_shift_output: Option<TensorId>,
}

impl NormCoefficients<'_> {
    /// `parameters` are the gradients of weight and bias.
    pub(super) fn calls(&self, builder: &mut Builder<'_>, parameters: [Binding; 2]) -> Result<()> {
        if self.moments.len() > 2 || self.outputs.len() != self.moments.len() {
            return Err(Error::invalid("program", "a norm over more than two tensors"));
        }
        let samples = builder.batch();
        let width =
            |index: usize| self.moments.get(index).map_or(0, |&id| builder.plan.tensors[id].channels / 2);
        let place = |ids: &[TensorId], index: usize| ids.get(index).map_or(Ok(0), |&id| builder.vector(id));
        let or_zero = |id: Option<TensorId>| id.map_or(Ok(0), |id| builder.vector(id).map(|at| at + 1));
        let channels = width(0) + width(1);
        let mut params = words([samples, width(0), width(1), self.pixels])?;
        params.extend([place(self.moments, 0)?, place(self.moments, 1)?, builder.vector(self.gradient)?]);
        params.extend([place(self.outputs, 0)?, place(self.outputs, 1)?]);
        params.extend([or_zero(self.scale_shift)?, or_zero(self.scale_shift_output)?]);
        let shares = builder.scratch(samples * 2 * channels, ValueType::F32)?;
        let bindings = vec![
            (1, builder.weight(self.weight, Layout::Exact)?),
            (2, builder.weight(self.bias, Layout::Exact)?),
            (3, Binding::Vectors),
            (4, shares.clone()),
        ];
        builder.calls.push(Call {
            permutation: plain(NORM_COEFFICIENTS_GRADIENT),
            params,
            bindings,
            workgroups: word((samples * channels).div_ceil(64))?,
            work: 8.0 * (samples * channels * channels / 32) as f64,
        });
        let totals = Totals { first: channels, parameters: parameters.into(), ..Totals::default() };
        add_up(builder, shares, (1, 2 * channels), totals)
    }
}
