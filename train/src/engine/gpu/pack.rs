//! Parameters as products read them. They change with every step and in their products' layout take several times their
//! memory, so they are packed whenever they are used, one at a time, from the copy that the optimiser changes.

use std::sync::Arc;

use mdm::engine::gpu::call::{Binding, Call, Parameters, word, words};
use mdm::engine::gpu::context::{Context, Memory};
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
        let most = program.instructions.iter().map(|instruction| match instruction {
            Instruction::Network(Op::Conv(conv)) => {
                let shape = &program.plan.params[conv.weight].shape;
                let taps: usize = shape[2..].iter().product();
                let filters = shape[0] * shape[1];
                let outputs = shape[0];
                // Rows of zeros come on top.
                if taps == 9 && conv.stride == 1 { POINTS * filters } else { taps * filters + 3 * outputs }
            }
            _ => 0,
        });
        let size = 4 * most.max().unwrap_or(0) as u64;
        let memory = Arc::new(context.buffer("packed parameters", size, Usage::STORAGE)?);
        Ok(Self { params: program.params(), layout, values, memory })
    }
}

impl Parameters for Packed<'_> {
    fn weight(
        &mut self,
        _context: &Context,
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
        let (permutation, len) = match layout {
            Layout::Exact | Layout::Plain if !turned => return Ok(own),
            Layout::Exact | Layout::Plain => {
                return Err(Error::tensor(&param.name, "is transposed and can only be packed"));
            }
            Layout::Taps => {
                let rows: usize = param.shape[1..].iter().product();
                (plain(PACK_TAPS), rows.next_multiple_of(4) * param.shape[0])
            }
            Layout::Winograd => (plain(PACK_WINOGRAD), POINTS * param.shape[0] * param.shape[1]),
        };
        let (outputs, inputs) = (param.shape[0], param.shape[1]);
        let taps: usize = param.shape[2..].iter().product();
        let mut params = words([inputs, outputs])?;
        if layout == Layout::Taps {
            params.push(word(taps)?);
        }
        params.push(u32::from(turned));
        if layout == Layout::Winograd {
            params.push(0);
            params.extend(filter_transform().into_iter().flatten().map(f32::to_bits));
        }
        let packed = Binding::Memory(self.memory.clone(), 0..4 * len);
        calls.push(Call {
            permutation,
            params,
            bindings: vec![(1, own), (2, packed.clone())],
            workgroups: word(inputs.div_ceil(16) * outputs.div_ceil(16))?,
            work: 4.0 * len as f64,
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
