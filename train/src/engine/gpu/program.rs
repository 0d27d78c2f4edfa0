//! A program with its memory on a device.

use std::ops::Range;
use std::sync::Arc;

use mdm::control::Control;
use mdm::engine::gpu::GpuEngine;
use mdm::engine::gpu::call::{ALIGNMENT, Builder, Place};
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::prepare::{Prepared, Sizes, place_vectors, places};
use mdm::engine::gpu::shader::ValueType;
use mdm::engine::gpu::submit::Encoder;
use mdm::engine::gpu::timing::Timing;
use mdm::engine::gpu::vector::sinusoid;
use mdm::engine::gpu::weights::write;
use mdm::plan::memory::{self, Access};
use mdm::plan::{Op, TensorId};
use mdm::{Error, Result};
use wgpu::BufferUsages as Usage;

use super::attention::Attention;
use super::conv_weight::conv_weight;
use super::linear::Linear;
use super::loss::{loss, workgroups};
use super::norm::NormCoefficients;
use super::pack::Packed;
use super::spread::spread;
use super::store::{Layout, Pages, read};
use super::sum::sum;
use super::sums::{channel_sums, norm_sums};
use crate::differentiate::{Contribution, Gradient, Instruction, Program};
use crate::engine::parameters::Places;

/// A program with its memory, its parameters and their gradients.
pub struct GpuProgram {
    pub(super) context: Arc<Context>,
    program: Program,
    parameters: Places,
    pub(super) layout: Layout,
    pub(super) values: Pages,
    pub(super) gradients: Pages,
    prepared: Prepared,
    places: Vec<Place>,
    /// What the gradient of the loss is multiplied by.
    share: Arc<Memory>,
    /// Sums of losses.
    losses: Arc<Memory>,
    /// How many.
    sums: usize,
    /// Values that the loss is the mean of.
    count: usize,
    timing: Option<Timing>,
}

impl GpuProgram {
    /// Allocates memory for `program`. Parameters and gradients are zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and those of the device.
    pub fn new(engine: &GpuEngine, program: Program) -> Result<Self> {
        let context = engine.context()?;
        context.checked(|| Self::on(context.clone(), program))
    }

    fn on(context: Arc<Context>, program: Program) -> Result<Self> {
        let plan = &program.plan;
        let batch = plan.options.batch;
        let (places, vectors) = place_vectors(plan, places_of(&program), batch)?;
        let lengths: Vec<usize> = plan
            .tensors
            .iter()
            .zip(&places)
            .map(|(tensor, place)| {
                let size = match place {
                    Place::Vector(_) => 0,
                    Place::Map => context.value.size(),
                    Place::ExactMap => ValueType::F32.size(),
                };
                (tensor.sample_len() * batch * size).next_multiple_of(4)
            })
            .collect();
        let accesses: Vec<Access> = program.instructions.iter().map(Instruction::access).collect();
        let given = given(&program, &accesses);
        let (ranges, arena) =
            memory::arrange(&lengths, ALIGNMENT, context.segment, &accesses, &given, &program.answers)?;

        let parameters = Places::new(program.params());
        let layout = Layout::new(&context, &parameters);
        let values = Pages::new(&context, "parameters", &layout)?;
        let gradients = Pages::new(&context, "gradients", &layout)?;
        let count = batch * plan.tensors[program.answers[0]].sample_len();
        let share = context.buffer("share of the gradient", 4, Usage::STORAGE | Usage::COPY_DST)?;
        let sums = program.instructions.iter().find_map(|instruction| match instruction {
            Instruction::Gradient(Gradient::Loss { loss, answer, .. }) => {
                Some(workgroups(loss, &plan.tensors[*answer], batch))
            }
            _ => None,
        });
        let sums = sums.unwrap_or(1);
        let losses =
            context.buffer("losses", 4 * sums as u64, Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC)?;
        let (share, losses) = (Arc::new(share), Arc::new(losses));

        let mut packed = Packed::new(&context, &program, &layout, &values)?;
        let mut builder = Builder::new(plan, &context, &places, 0, &mut packed);
        let (mut calls, mut scratch) = (Vec::new(), 0);
        for instruction in &program.instructions {
            let (own, needed) = match instruction {
                Instruction::Network(op) => builder.operation(op)?,
                Instruction::Gradient(gradient) => {
                    builder.scratch = 0;
                    let targets =
                        Targets { layout: &layout, gradients: &gradients, share: &share, losses: &losses };
                    targets.gradient(&mut builder, gradient)?;
                    (std::mem::take(&mut builder.calls), builder.scratch)
                }
            };
            calls.push(own);
            scratch = scratch.max(needed);
        }
        let prepared =
            Prepared::new(&context, calls, ranges, Sizes { arena, vectors, scratch, keys: batch })?;
        Ok(Self {
            context,
            program,
            parameters,
            layout,
            values,
            gradients,
            prepared,
            places,
            share,
            losses,
            sums,
            count,
            timing: None,
        })
    }

    /// From now on each run of the whole program tells what its instructions take. Returns whether the device can tell.
    ///
    /// # Errors
    /// Those of the device.
    pub fn time_instructions(&mut self) -> Result<bool> {
        if self.timing.is_none() && self.context.timestamps {
            let count = self.program.instructions.len();
            self.timing = Some(self.context.checked(|| Timing::new(&self.context, count))?);
        }
        Ok(self.timing.is_some())
    }

    /// The instructions with the seconds that the last run of the whole program took for each, by the device's clock; none
    /// unless they are timed.
    ///
    /// # Errors
    /// Those of the device.
    pub fn timings(&self) -> Result<Vec<(&Instruction, f64)>> {
        let Some(timing) = &self.timing else { return Ok(Vec::new()) };
        let instructions = &self.program.instructions;
        let seconds = self.context.checked(|| timing.read(&self.context, instructions.len()))?;
        Ok(instructions.iter().zip(seconds).collect())
    }

    /// What it executes.
    pub fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn parameters(&self) -> &Places {
        &self.parameters
    }

    /// Runs the whole program on `given`, values of tensors, and adds `share` of the gradients of all parameters to those that
    /// are there. Returns the loss, if the program has one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that are not the program's; [`Error::Cancelled`] between two submissions; those of the
    /// device.
    pub fn run(&mut self, given: &[(TensorId, &[f32])], share: f32, control: &Control<'_>) -> Result<f64> {
        self.run_part(0..self.program.instructions.len(), given, share, control)
    }

    /// As [`run`](Self::run), the instructions of `part` alone.
    ///
    /// # Errors
    /// As there.
    pub(super) fn run_part(
        &mut self,
        part: Range<usize>,
        given: &[(TensorId, &[f32])],
        share: f32,
        control: &Control<'_>,
    ) -> Result<f64> {
        let plan = &self.program.plan;
        for (id, values) in given {
            let len = plan.tensors[*id].sample_len() * plan.options.batch;
            if len != values.len() {
                let reason = format!("has {} values where the network has {len}", values.len());
                return Err(Error::invalid("micro-batch", reason));
            }
        }
        control.check()?;
        let context = self.context.clone();
        let losses = context.checked(|| {
            for (id, values) in given {
                self.give(*id, values);
            }
            let share = share / self.count as f32;
            write(&context, &self.share.buffer, 0, &[share], ValueType::F32);
            let whole = part.len() == self.prepared.steps.len();
            let timing = self.timing.as_ref().filter(|_| whole);
            let mut encoder = Encoder::new(&context, control, None);
            for index in part {
                let timing = timing.and_then(|timing| timing.of_operation(index));
                encoder.operation(self.prepared.steps[index].iter(), timing.as_ref())?;
            }
            encoder.submit(|commands| {
                if let Some(timing) = timing {
                    timing.resolve(commands);
                }
            })?;
            encoder.wait()?;
            read(&context, &self.losses, 0, self.sums, ValueType::F32)
        })?;
        Ok(losses.into_iter().map(f64::from).sum::<f64>() / self.count as f64)
    }

    fn give(&self, id: TensorId, values: &[f32]) {
        let context = &self.context;
        let to_vectors = |at: usize, values: &[f32]| {
            write(context, &self.prepared.vectors.buffer, 4 * at as u64, values, ValueType::F32);
        };
        match self.places[id] {
            Place::Vector(at) => to_vectors(at, values),
            Place::Map | Place::ExactMap => {
                let (memory, range) = self.prepared.arena.map(id);
                write(context, &memory.buffer, range.start as u64, values, self.format(id));
            }
        }
        for instruction in &self.program.instructions {
            if let Instruction::Network(Op::Sinusoid { timesteps, output }) = instruction
                && *timesteps == id
                && let Place::Vector(at) = self.places[*output]
            {
                let half = self.program.plan.tensors[*output].channels / 2;
                let angles: Vec<f32> = values.iter().flat_map(|&t| sinusoid(t, half)).collect();
                to_vectors(at, &angles);
            }
        }
    }

    /// The value of a tensor that is kept.
    ///
    /// # Errors
    /// Those of the device.
    pub fn tensor(&self, id: TensorId) -> Result<Vec<f32>> {
        let (context, prepared, format) = (&self.context, &self.prepared, self.format(id));
        let count = self.program.plan.tensors[id].sample_len() * self.program.plan.options.batch;
        context.checked(|| match self.places[id] {
            Place::Vector(at) => read(context, &prepared.vectors, 4 * at, count, format),
            Place::Map | Place::ExactMap => {
                let (memory, range) = prepared.arena.map(id);
                read(context, memory, range.start, count, format)
            }
        })
    }

    fn format(&self, id: TensorId) -> ValueType {
        match self.places[id] {
            Place::Map => self.context.value,
            Place::ExactMap | Place::Vector(_) => ValueType::F32,
        }
    }

    /// Replaces the parameters, all of them in their order.
    ///
    /// # Errors
    /// Those of the device.
    pub fn set_values(&mut self, flat: &[f32]) -> Result<()> {
        self.context.checked(|| self.values.upload(&self.context, &self.layout, &self.parameters, flat))
    }

    /// Replaces the gradients of all parameters.
    ///
    /// # Errors
    /// Those of the device.
    pub fn set_gradients(&mut self, flat: &[f32]) -> Result<()> {
        self.context.checked(|| self.gradients.upload(&self.context, &self.layout, &self.parameters, flat))
    }

    /// The gradients of all parameters.
    ///
    /// # Errors
    /// Those of the device.
    pub fn gradients(&self) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; self.parameters.len()];
        self.context
            .checked(|| self.gradients.download(&self.context, &self.layout, &self.parameters, &mut flat))?;
        Ok(flat)
    }
}

/// Where gradients go.
struct Targets<'a> {
    layout: &'a Layout,
    gradients: &'a Pages,
    share: &'a Arc<Memory>,
    losses: &'a Arc<Memory>,
}

impl Targets<'_> {
    /// Adds the calls of one gradient.
    fn gradient(&self, builder: &mut Builder<'_>, gradient: &Gradient) -> Result<()> {
        let of = |id: usize| self.gradients.of(self.layout, id);
        match gradient {
            Gradient::Loss { loss: kind, answer, target, output } => {
                loss(builder, kind, [*answer, *target, *output], self.share, self.losses)
            }
            Gradient::ConvWeight { source, gradient, weight, kernel, stride } => {
                conv_weight(builder, source, *gradient, (*kernel, *stride), of(*weight))
            }
            Gradient::ChannelSums { gradient, bias, output } => {
                channel_sums(builder, *gradient, bias.map(of), *output)
            }
            Gradient::Spread { input, output } => spread(builder, *input, *output),
            Gradient::NormSums { source, gradient, output } => norm_sums(builder, source, *gradient, *output),
            Gradient::NormCoefficients {
                moments,
                pixels,
                weight,
                bias,
                scale_shift,
                gradient,
                outputs,
                scale_shift_output,
            } => NormCoefficients {
                moments,
                pixels: *pixels,
                weight: *weight,
                bias: *bias,
                scale_shift: *scale_shift,
                gradient: *gradient,
                outputs,
                scale_shift_output: *scale_shift_output,
            }
            .calls(builder, [of(*weight), of(*bias)]),
            Gradient::Sum { tensor, contributions, output } => sum(builder, *tensor, contributions, *output),
            Gradient::Linear { input, silu, weight, bias, gradient, output } => {
                Linear { input: *input, silu: *silu, weight: *weight, gradient: *gradient, output: *output }
                    .calls(builder, [of(*weight), of(*bias)])
            }
            &Gradient::Attention { qkv, heads, qkv_first, gradient, output } => {
                Attention { qkv, heads, qkv_first, gradient, output }.calls(builder)
            }
        }
    }
}

/// Tensors that have a value before the program runs: those that callers may give, read or not, and whatever is read before
/// it is written.
fn given(program: &Program, accesses: &[Access]) -> Vec<TensorId> {
    let plan = &program.plan;
    let mut given: Vec<TensorId> =
        plan.images.iter().chain(&plan.timesteps).chain(&program.targets).copied().collect();
    let mut written = vec![false; plan.tensors.len()];
    for access in accesses {
        given.extend(access.reads.iter().copied().filter(|&id| !written[id]));
        access.writes.iter().for_each(|&id| written[id] = true);
    }
    given.sort_unstable();
    given.dedup();
    given
}

/// Where each tensor lives, by how instructions use it.
fn places_of(program: &Program) -> Vec<Place> {
    let operations = program.instructions.iter().filter_map(|instruction| match instruction {
        Instruction::Network(op) => Some(op),
        Instruction::Gradient(_) => None,
    });
    let mut places = places(program.plan.tensors.len(), operations);
    let mut vector = |id: TensorId| places[id] = Place::Vector(0);
    for instruction in &program.instructions {
        let Instruction::Gradient(gradient) = instruction else { continue };
        match gradient {
            Gradient::ChannelSums { output, .. } => output.iter().copied().for_each(&mut vector),
            Gradient::NormSums { source, output, .. } => {
                source.norm.iter().map(|norm| norm.coefficients).chain([*output]).for_each(&mut vector);
            }
            Gradient::NormCoefficients {
                moments,
                scale_shift,
                gradient,
                outputs,
                scale_shift_output,
                ..
            } => moments
                .iter()
                .chain(scale_shift)
                .chain([gradient])
                .chain(outputs)
                .chain(scale_shift_output)
                .copied()
                .for_each(&mut vector),
            Gradient::Linear { input, gradient, output, .. } => {
                [*input, *gradient].into_iter().chain(*output).for_each(&mut vector);
            }
            Gradient::ConvWeight { source, .. } => {
                source.norm.iter().map(|norm| norm.coefficients).for_each(&mut vector);
            }
            Gradient::Sum { contributions, .. } => {
                for contribution in contributions {
                    match contribution {
                        Contribution::Read { norm, .. } => {
                            norm.iter().map(|norm| norm.coefficients).for_each(&mut vector);
                        }
                        Contribution::Affine { coefficients } => vector(*coefficients),
                    }
                }
            }
            Gradient::Loss { .. } | Gradient::Spread { .. } | Gradient::Attention { .. } => {}
        }
    }
    // Whatever flows back into a vector is one.
    for instruction in &program.instructions {
        if let Instruction::Gradient(Gradient::Sum { tensor, output, .. }) = instruction
            && places[*tensor] == Place::Vector(0)
        {
            places[*output] = Place::Vector(0);
        }
    }
    // An answer that only the loss reads is kept as exact as it was computed.
    for instruction in &program.instructions {
        let Instruction::Gradient(Gradient::Loss { answer, target, .. }) = instruction else { continue };
        let convolved = program
            .instructions
            .iter()
            .any(|other| matches!(other, Instruction::Network(Op::Conv(conv)) if conv.output == *answer));
        let others = program
            .instructions
            .iter()
            .filter(|other| *other != instruction)
            .any(|other| other.access().reads.iter().any(|id| id == answer || id == target));
        if convolved && !others {
            [*answer, *target].into_iter().for_each(|id| places[id] = Place::ExactMap);
        }
    }
    places
}
