//! The gradient of a convolution's weight.
//!
//! Sums over pixels are divided into groups, always the same ones, where results are small; where they are large, tasks
//! divide the results. Either way the bits do not depend on the number of threads.

#![allow(unsafe_code)]

mod direct;
mod winograd;

use mdm::engine::cpu::step::{Context, ScratchSize};
use mdm::plan::{ParamId, Plan, Source, TensorId};

use crate::engine::parameters::Gradients;

/// Tiles from which Winograd's algorithm pays.
const FEWEST_TILES: usize = 16;

/// What [`Gradient::ConvWeight`](crate::differentiate::Gradient::ConvWeight) names.
pub(super) struct ConvWeight<'a> {
    pub source: &'a Source,
    pub gradient: TensorId,
    pub weight: ParamId,
    pub kernel: usize,
    pub stride: usize,
}

impl ConvWeight<'_> {
    fn inputs(&self, plan: &Plan) -> usize {
        self.source.parts.iter().map(|&part| plan.tensors[part].channels).sum()
    }

    fn uses_winograd(&self, plan: &Plan) -> bool {
        let chunk = |channels: usize| channels.is_multiple_of(winograd::CHUNK);
        let output = &plan.tensors[self.gradient];
        self.kernel == 3
            && self.stride == 1
            && chunk(output.channels)
            && self.source.parts.iter().all(|&part| chunk(plan.tensors[part].channels))
            && output.height.div_ceil(4) * output.width.div_ceil(4) * plan.options.batch >= FEWEST_TILES
    }

    pub(super) fn scratch(&self, plan: &Plan) -> ScratchSize {
        if self.uses_winograd(plan) {
            winograd::Winograd::new(self, plan).scratch()
        } else {
            direct::Direct::new(self, plan).scratch()
        }
    }

    pub(super) fn run(&self, context: &Context<'_>, gradients: &Gradients<'_>) {
        if self.uses_winograd(context.plan) {
            winograd::Winograd::new(self, context.plan).run(context, gradients);
        } else {
            direct::Direct::new(self, context.plan).run(context, gradients);
        }
    }
}
