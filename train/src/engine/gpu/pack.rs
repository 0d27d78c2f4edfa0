//! Parameters as products read them. They change with every step and in their products' layout take several times their
//! memory, so they are packed whenever they are used, one at a time, from the copy that the optimiser changes.

use std::sync::Arc;

use mdm::engine::gpu::call::{Binding, Call, Parameters, word, words};
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::conv::TERM_PACK;
use mdm::engine::gpu::shader::{Permutation, ValueType};
use mdm::engine::gpu::weights::Layout;
use mdm::engine::winograd::transform_filter;
use mdm::plan::{Op, Param};
use mdm::{Error, Result};
use wgpu::BufferUsages as Usage;

use super::shaders::{PACK_TAPS, PACK_WINOGRAD, plain};
use super::store::{self, Pages};
use crate::differentiate::{Instruction, Program, transposed};

/// Points of a 3x3 kernel in Winograd's domain.
const POINTS: usize = 36;

/// The parameters of a program.
pub(super) struct Packed<'a> {
    params: &'a [Param],
    layout: &'a store::Layout,
    values: &'a Pages,
    /// Takes whatever is packed; each operation reads one packed parameter.
    memory: Arc<Memory>,
}

impl<'a> Packed<'a> {
    pub(super) fn new(
        context: &Context,
        program: &'a Program,
        layout: &'a store::Layout,
        values: &'a Pages,
    ) -> Result<Self> {
        let half = context.value == ValueType::F16;
        let most = program.instructions.iter().map(|instruction| match instruction {
            Instruction::Network(Op::Conv(conv)) => {
                let shape = &program.plan.params[conv.weight].shape;
                let taps: usize = shape[2..].iter().product();
                if taps == 9 && conv.stride == 1 && !half {
                    4 * POINTS * shape[0] * shape[1]
                } else {
                    context.value.size() * (taps * shape[1]).next_multiple_of(TERM_PACK) * shape[0]
                }
            }
            Instruction::Network(Op::Linear { weight, .. }) if half => {
                context.value.size() * program.plan.params[*weight].shape.iter().product::<usize>()
            }
            _ => 0,
        });
        let size = most.max().unwrap_or(0) as u64;
        let memory = Arc::new(context.buffer("packed parameters", size, Usage::STORAGE)?);
        Ok(Self { params: program.params(), layout, values, memory })
    }
}

impl Parameters for Packed<'_> {
    fn weight(
        &mut self,
        context: &Context,
        param: &Param,
        layout: Layout,
        calls: &mut Vec<Call>,
    ) -> Result<Binding> {
        let (name, turned) = match transposed(&param.name) {
            Some(original) => (original, true),
            None => (param.name.as_str(), false),
        };
        let id = self
            .params
            .iter()
            .position(|own| own.name == name)
            .ok_or_else(|| Error::tensor(name, "is not a parameter of this network"))?;
        let own = self.values.of(self.layout, id);
        let (outputs, inputs) = (param.shape[0], param.shape[1..].iter().product::<usize>());
        let in_value = Permutation::plain(PACK_TAPS, context.value);
        let (permutation, params, [rows, columns], size) = match layout {
            Layout::Exact if !turned => return Ok(own),
            Layout::Plain if !turned && context.value == ValueType::F32 => return Ok(own),
            // Nothing is exchanged where what is there is the transposed of what is wanted.
            Layout::Plain if !turned => {
                let size = context.value.size() * inputs * outputs;
                (in_value, words([outputs, inputs, 1, 1])?, [outputs, inputs], size)
            }
            Layout::Exact | Layout::Plain => {
                return Err(Error::tensor(&param.name, "is transposed and can only be packed"));
            }
            Layout::Taps => {
                let size = context.value.size() * inputs.next_multiple_of(TERM_PACK) * outputs;
                let channels = param.shape[1];
                let params = words([channels, outputs, inputs / channels, usize::from(turned)])?;
                (in_value, params, [channels, outputs], size)
            }
            Layout::Winograd => {
                let channels = param.shape[1];
                let mut params = words([channels, outputs, usize::from(turned), 0])?;
                params.extend(filter_transform().into_iter().flatten().map(f32::to_bits));
                (plain(PACK_WINOGRAD), params, [channels, outputs], 4 * POINTS * channels * outputs)
            }
        };
        let packed = Binding::Memory(self.memory.clone(), 0..size);
        calls.push(Call {
            permutation,
            params,
            bindings: vec![(1, own), (2, packed.clone())],
            workgroups: word(rows.div_ceil(16) * columns.div_ceil(16))?,
            work: size as f64,
        });
        Ok(packed)
    }

    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        Err(Error::tensor(&param.name, "is on the device only"))
    }
}

/// Rows of G, which takes a filter to Winograd's domain, filled up to four values.
fn filter_transform() -> [[f32; 4]; 6] {
    let mut rows = [[0.0; 4]; 6];
    for column in 0..3 {
        // The last row of G is 0, 0, 1: below it, what the others make of a single value stays as it is.
        let mut filter = [0.0; 9];
        filter[6 + column] = 1.0;
        transform_filter(4, &filter, |point, value| {
            if point / 6 == 5 {
                rows[point % 6][column] = value;
            }
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_transformed_as_the_engine_does() {
        let filter: Vec<f32> = (0..9).map(|i| (i as f32 * 0.7).sin()).collect();
        let g = filter_transform();
        transform_filter(4, &filter, |point, expected| {
            let mut sum = 0.0;
            for y in 0..3 {
                for x in 0..3 {
                    sum += g[point / 6][y] * filter[3 * y + x] * g[point % 6][x];
                }
            }
            assert!((sum - expected).abs() < 1e-5, "{point}: {sum} {expected}");
        });
    }
}
