//! Prepares and runs a plan.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::attention::Attention;
use super::buffer::{Buffer, SharedMut};
use super::conv::DirectConv;
use super::corruption::{AddNoise, Mask};
use super::head::{FeatureNorm, Head};
use super::norm::{Moments, NormCoefficients};
use super::pack::{Layout, PackedWeights};
use super::pool::Pool;
use super::simd::InstructionSet;
use super::step::{Context, Step};
use super::sums::TERMS;
use super::vector::{Linear, Sinusoid};
use super::winograd::{self, WinogradConv};
use crate::control::Control;
use crate::engine::{Inputs, Network};
use crate::model::WeightSource;
use crate::plan::{Conv, Op, ParamId, Plan};
use crate::{Error, Result};

/// Pixels of an output from which Winograd's larger tiles pay: with fewer, reading their weights costs more than the
/// multiplications that they save.
const LARGE_TILE_PIXELS: usize = 1024;

/// The same for weights that are so few that reading them costs little.
const LARGE_TILE_PIXELS_FEW_WEIGHTS: usize = 256;
const FEW_WEIGHTS: usize = 1 << 16;

/// Pixels of an output from which Winograd's smaller tiles pay.
const SMALL_TILE_PIXELS: usize = 64;

pub struct CpuNetwork {
    plan: Plan,
    set: InstructionSet,
    pool: Arc<Pool>,
    steps: Vec<Box<dyn Step>>,
    arena: Buffer,
    shared: Buffer,
    private: Vec<Mutex<Buffer>>,
    seconds: Vec<f64>,
}

impl CpuNetwork {
    pub fn new(
        plan: Plan,
        weights: &dyn WeightSource,
        packed: &mut PackedWeights,
        set: InstructionSet,
        pool: Arc<Pool>,
    ) -> Result<Self> {
        plan.check()?;
        let threads = pool.threads();
        let mut builder = StepBuilder { plan: &plan, weights, packed, set, threads, largest_tile: 4 };
        let steps = plan.ops.iter().map(|op| builder.step(op)).collect::<Result<Vec<_>>>()?;
        let sizes = steps.iter().map(|step| step.scratch());
        let (shared, private) =
            sizes.fold((0, 0), |sum, size| (sum.0.max(size.shared), sum.1.max(size.private)));
        let private = (0..threads).map(|_| Buffer::zeroed(private).map(Mutex::new)).collect::<Result<_>>()?;
        Ok(Self {
            arena: Buffer::zeroed(plan.arena_len)?,
            shared: Buffer::zeroed(shared)?,
            private,
            seconds: vec![0.0; plan.ops.len()],
            plan,
            set,
            pool,
            steps,
        })
    }
}

impl Network for CpuNetwork {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn run(
        &mut self,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        read: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        inputs.check(&self.plan)?;
        let batch = self.plan.options.batch;
        let arena = self.arena.slice_mut();
        let given = inputs.images.iter().zip(&self.plan.images);
        for (values, &id) in given.chain(inputs.timesteps.iter().zip(&self.plan.timesteps)) {
            arena[self.plan.tensors[id].range.clone()].copy_from_slice(values);
        }
        let context = Context {
            set: self.set,
            terms: TERMS,
            plan: &self.plan,
            arena: SharedMut::new(arena),
            classes: inputs.classes,
            noise: inputs.noise,
            shared: SharedMut::new(self.shared.slice_mut()),
            private: &self.private,
        };
        let (steps, seconds) = (&self.steps, &mut self.seconds);
        // One visit to the pool for the whole plan: each costs a wake-up.
        self.pool.run(control, || {
            for (step, seconds) in steps.iter().zip(seconds) {
                control.check()?;
                let start = Instant::now();
                step.run(&context);
                *seconds = start.elapsed().as_secs_f64();
            }
            Ok::<_, Error>(())
        })?;
        for (index, &id) in self.plan.outputs.iter().enumerate() {
            let tensor = &self.plan.tensors[id];
            read(index, &self.arena.slice()[tensor.range.start..][..tensor.sample_len() * batch])?;
        }
        Ok(())
    }

    fn op_seconds(&self) -> &[f64] {
        &self.seconds
    }
}

/// Turns operations into steps with packed parameters.
pub struct StepBuilder<'a> {
    pub plan: &'a Plan,
    pub weights: &'a dyn WeightSource,
    pub packed: &'a mut PackedWeights,
    pub set: InstructionSet,
    pub threads: usize,
    /// Winograd's largest tile that may be used: the larger, the faster, and the larger rounding errors: with 4 they are about twice
    /// those with 2. Products as they stand, for 0, have the smallest.
    pub largest_tile: usize,
}

impl StepBuilder<'_> {
    fn param(&mut self, id: ParamId, layout: Layout) -> Result<Arc<Buffer>> {
        self.packed.get(&self.plan.params[id], layout, self.weights, self.set)
    }

    fn panels(&self, grouped: bool) -> Layout {
        Layout::Panels { panel: self.set.panel(), grouped }
    }

    /// The step that executes `op`, an operation of the checked plan.
    pub fn step(&mut self, op: &Op) -> Result<Box<dyn Step>> {
        let plan = self.plan;
        Ok(match op {
            &Op::Mask { image, patch, hidden, timestep, output } => {
                Box::new(Mask::new(image, patch, hidden, timestep, output, plan))
            }
            &Op::AddNoise { image, signal, spread, timestep, output } => {
                Box::new(AddNoise { image, signal, spread, timestep, output })
            }
            Op::Sinusoid { timesteps, output } => {
                Box::new(Sinusoid { timesteps: *timesteps, output: *output })
            }
            Op::Linear { input, silu, weight, bias, label_embedding, output } => Box::new(Linear {
                input: *input,
                silu: *silu,
                weight: self.param(*weight, self.panels(false))?,
                bias: self.param(*bias, Layout::Raw)?,
                label_embedding: label_embedding.map(|id| self.param(id, Layout::Raw)).transpose()?,
                output: *output,
                shared: plan.options.batch * plan.tensors[*input].channels,
            }),
            Op::Moments { input, output } => Box::new(Moments::new(*input, *output, plan)),
            Op::NormCoefficients { moments, weight, bias, scale_shift, output } => {
                Box::new(NormCoefficients {
                    moments: moments.clone(),
                    weight: self.param(*weight, Layout::Raw)?,
                    bias: self.param(*bias, Layout::Raw)?,
                    scale_shift: *scale_shift,
                    output: *output,
                })
            }
            Op::Conv(conv) => self.conv(conv)?,
            Op::Attention { qkv, heads, qkv_first, output } => {
                Box::new(Attention::new(*qkv, *heads, *qkv_first, *output, plan, self.set.panel()))
            }
            Op::FeatureNorm { blocks, size, output } => {
                Box::new(FeatureNorm::new(blocks, *size, *output, plan))
            }
            Op::Head { partial_sums, feature_norm, shape, params, output } => {
                let layouts = [Layout::Raw, self.panels(true), Layout::Raw, self.panels(true), Layout::Raw];
                let mut packed = Vec::with_capacity(params.len());
                for (&id, layout) in params.iter().zip(layouts) {
                    packed.push(self.param(id, layout)?);
                }
                let params = <[Arc<Buffer>; 5]>::try_from(packed)
                    .map_err(|_| Error::invalid("head", "has five parameters"))?;
                Box::new(Head::new(partial_sums, *feature_norm, *shape, params, *output, plan))
            }
        })
    }

    fn conv(&mut self, conv: &Conv) -> Result<Box<dyn Step>> {
        let bias = conv.bias.map(|id| self.param(id, Layout::Raw)).transpose()?;
        let output = &self.plan.tensors[conv.output];
        let pixels = output.height * output.width;
        let inputs: usize = conv.source.parts.iter().map(|&part| self.plan.tensors[part].channels).sum();
        let large = if inputs * output.channels <= FEW_WEIGHTS {
            LARGE_TILE_PIXELS_FEW_WEIGHTS
        } else {
            LARGE_TILE_PIXELS
        };
        let fastest = if pixels >= large {
            4
        } else if pixels >= SMALL_TILE_PIXELS {
            2
        } else {
            0
        };
        let tile = self.largest_tile.min(fastest);
        let panel = self.set.panel();
        let bf16 = self.set.has_bf16() && inputs.is_multiple_of(2) && self.largest_tile > 0;
        if tile > 0 && winograd::fits(conv, self.plan) {
            // Larger tiles multiply the roundings of bf16 by five, more than can be afforded.
            let bf16 = bf16 && tile == 2;
            let layout =
                if bf16 { Layout::WinogradBf16 { panel, tile } } else { Layout::Winograd { panel, tile } };
            let weight = self.param(conv.weight, layout)?;
            return Ok(match tile {
                4 => Box::new(WinogradConv::<4>::new(conv, self.plan, weight, bias, bf16, self.threads)),
                _ => Box::new(WinogradConv::<2>::new(conv, self.plan, weight, bias, bf16, self.threads)),
            });
        }
        let layout = if bf16 { Layout::PanelsBf16 { panel } } else { self.panels(false) };
        let weight = self.param(conv.weight, layout)?;
        Ok(Box::new(DirectConv::new(conv, self.plan, weight, bias, bf16)))
    }
}
