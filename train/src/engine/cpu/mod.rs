//! Training on the host's processor, in f32 on all cores.

#![allow(unsafe_code)]

mod attention;
mod conv_weight;
mod maps;
mod outer;
mod vectors;

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mdm::control::Control;
use mdm::engine::cpu::buffer::{Buffer, SharedMut};
use mdm::engine::cpu::network::StepBuilder;
use mdm::engine::cpu::simd::InstructionSet;
use mdm::engine::cpu::step::{Context, ScratchSize};
use mdm::engine::cpu::sums::FEW_TERMS;
use mdm::engine::cpu::{CpuEngine, PackedWeights, Pool};
use mdm::model::MapWeights;
use mdm::plan::{Op, TensorInfo};
use mdm::{Error, Result};

use self::attention::Attention;
use self::conv_weight::ConvWeight;
use self::vectors::{Linear, NormCoefficients};
use super::parameters::{Gradients, Places, Values};
use super::{given_gradients, restored};
use crate::differentiate::{Gradient, Instruction, Program};
use crate::learner::{Learner, LearnerOptions, LearnerState, Microbatch, StatePart, Update, UpdateReport};
use crate::optimise;

/// A program with its memory.
pub struct CpuProgram {
    program: Program,
    set: InstructionSet,
    pool: Arc<Pool>,
    arena: Buffer,
    shared: Buffer,
    private: Vec<Mutex<Buffer>>,
    /// Memory for the parameters of one instruction at a time, which change with every step.
    packed: PackedWeights,
    seconds: Vec<f64>,
}

impl CpuProgram {
    /// Allocates memory for `program`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(engine: &CpuEngine, program: Program) -> Result<Self> {
        let (set, pool) = (engine.set(), engine.pool().clone());
        let threads = pool.threads();
        let mut size = ScratchSize::default();
        let mut packed = PackedWeights::default();
        // Steps are made anew whenever they run, since their weights change; here they only say what they need.
        let places = Places::new(program.params());
        let zeros = Buffer::zeroed(places.len())?;
        let values = Values { places: &places, flat: zeros.slice() };
        for instruction in &program.instructions {
            let one = match instruction {
                Instruction::Network(op) => pool.run(&Control::none(), || {
                    packed.recycle();
                    let mut builder = step_builder(&program, op, &values, &mut packed, set, threads);
                    Ok::<_, Error>(builder.step(op)?.scratch())
                })?,
                Instruction::Gradient(gradient) => scratch(gradient, &program, set.panel()),
            };
            size.shared = size.shared.max(one.shared);
            size.private = size.private.max(one.private);
        }
        let private =
            (0..threads).map(|_| Buffer::zeroed(size.private).map(Mutex::new)).collect::<Result<_>>()?;
        Ok(Self {
            arena: Buffer::zeroed(program.plan.arena_len)?,
            shared: Buffer::zeroed(size.shared)?,
            private,
            packed,
            seconds: vec![0.0; program.instructions.len()],
            set,
            pool,
            program,
        })
    }

    /// What it executes.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Seconds spent in each instruction since it was made.
    pub fn seconds(&self) -> &[f64] {
        &self.seconds
    }

    /// Runs the whole program on `given`, values of tensors, and adds `share` of the gradients of all parameters to
    /// `gradients`. Returns the loss.
    ///
    /// # Errors
    /// [`Error::Cancelled`] between two instructions; [`Error::OutOfMemory`].
    pub fn run(
        &mut self,
        given: &[(usize, &[f32])],
        values: &Values<'_>,
        gradients: &mut Buffer,
        share: f32,
        control: &Control<'_>,
    ) -> Result<f64> {
        self.run_part(0..self.program.instructions.len(), given, values, gradients, share, control)
    }

    /// As [`run`](Self::run), the instructions of `part` alone.
    ///
    /// # Errors
    /// As there.
    fn run_part(
        &mut self,
        part: Range<usize>,
        given: &[(usize, &[f32])],
        values: &Values<'_>,
        gradients: &mut Buffer,
        share: f32,
        control: &Control<'_>,
    ) -> Result<f64> {
        let plan = &self.program.plan;
        let arena = self.arena.slice_mut();
        for (id, values) in given {
            let range = plan.tensors[*id].range.clone();
            if range.len() != values.len() {
                return Err(Error::invalid(
                    "micro-batch",
                    format!("has {} values where the network has {}", values.len(), range.len()),
                ));
            }
            arena[range].copy_from_slice(values);
        }
        let context = Context {
            set: self.set,
            terms: FEW_TERMS,
            plan,
            arena: SharedMut::new(arena),
            classes: &[],
            noise: &[],
            shared: SharedMut::new(self.shared.slice_mut()),
            private: &self.private,
        };
        let gradients = Gradients::new(values.places, gradients);
        let (program, threads) = (&self.program, self.private.len());
        let (packed, seconds) = (&mut self.packed, &mut self.seconds);
        self.pool.run(control, || {
            let mut loss = 0.0;
            for (instruction, seconds) in program.instructions[part.clone()].iter().zip(&mut seconds[part]) {
                control.check()?;
                let start = Instant::now();
                match instruction {
                    Instruction::Network(op) => {
                        packed.recycle();
                        step_builder(program, op, values, packed, context.set, threads)
                            .step(op)?
                            .run(&context);
                    }
                    Instruction::Gradient(gradient) => {
                        if let Some(value) = run(gradient, &context, values, &gradients, share) {
                            loss = value;
                        }
                    }
                }
                *seconds += start.elapsed().as_secs_f64();
            }
            Ok(loss)
        })
    }

    /// The value of a tensor that is kept.
    pub fn tensor(&self, id: usize) -> &[f32] {
        &self.arena.slice()[self.program.plan.tensors[id].range.clone()]
    }
}

/// What makes the step of `op`. Rounding errors of the forward pass are multiplied by the loss, whose slope is steep where
/// images are flat; those of gradients are not.
fn step_builder<'a>(
    program: &'a Program,
    op: &Op,
    weights: &'a Values<'_>,
    packed: &'a mut PackedWeights,
    set: InstructionSet,
    threads: usize,
) -> StepBuilder<'a> {
    let largest_tile = match op {
        Op::Conv(conv) if conv.weight >= program.parameters => 4,
        // It rounds products before it adds them.
        _ if set == InstructionSet::Portable => 0,
        _ => 2,
    };
    StepBuilder { plan: &program.plan, weights, packed, set, threads, largest_tile }
}

fn scratch(gradient: &Gradient, program: &Program, panel: usize) -> ScratchSize {
    let plan = &program.plan;
    let batch = plan.options.batch;
    let shape = |id: &usize| {
        let TensorInfo { height, width, channels, .. } = plan.tensors[*id];
        (height * width, channels)
    };
    let shared = match gradient {
        Gradient::ConvWeight { source, gradient, weight, kernel, stride } => {
            let op =
                ConvWeight { source, gradient: *gradient, weight: *weight, kernel: *kernel, stride: *stride };
            return op.scratch(plan);
        }
        &Gradient::Attention { qkv, heads, qkv_first, gradient, output } => {
            return Attention { qkv, heads, qkv_first, gradient, output }.scratch(plan, panel);
        }
        Gradient::ChannelSums { gradient, .. } => maps::sums_scratch(&[shape(gradient)], batch, 1),
        Gradient::NormSums { source, .. } => {
            source.parts.iter().map(|part| maps::sums_scratch(&[shape(part)], batch, 2)).max().unwrap_or(0)
        }
        Gradient::Linear { input, .. } => Linear::scratch(batch, plan.tensors[*input].channels),
        Gradient::Loss { .. }
        | Gradient::Spread { .. }
        | Gradient::NormCoefficients { .. }
        | Gradient::Sum { .. } => 0,
    };
    ScratchSize { shared, private: 0 }
}

/// Runs one gradient; that of the loss returns the loss.
fn run(
    gradient: &Gradient,
    context: &Context<'_>,
    values: &Values<'_>,
    gradients: &Gradients<'_>,
    share: f32,
) -> Option<f64> {
    let param = |id: usize| &values.flat[values.places.range(id)];
    match gradient {
        Gradient::Loss { loss, answer, target, output } => {
            let tensor = &context.plan.tensors[*answer];
            let shape = [context.batch(), tensor.height, tensor.width, tensor.channels];
            let len = shape.iter().product();
            // SAFETY: the plan was checked: tensors lie in the arena, and the output overlaps neither of the others.
            let (answer, target, output) = unsafe {
                (
                    std::slice::from_raw_parts(context.map(*answer).data, len),
                    std::slice::from_raw_parts(context.map(*target).data, len),
                    std::slice::from_raw_parts_mut(context.output(*output).get(), len),
                )
            };
            let value = loss.evaluate(shape, answer, target, output);
            output.iter_mut().for_each(|value| *value *= share);
            return Some(value);
        }
        Gradient::ConvWeight { source, gradient, weight, kernel, stride } => {
            ConvWeight { source, gradient: *gradient, weight: *weight, kernel: *kernel, stride: *stride }
                .run(context, gradients);
        }
        Gradient::ChannelSums { gradient, bias, output } => {
            let channels = context.plan.tensors[*gradient].channels;
            let mut totals = vec![0.0; channels];
            let out = output.map(|id| context.output(id));
            maps::channel_sums(context, *gradient, |sample, c, sum| {
                totals[c] += sum;
                if let Some(out) = out {
                    // SAFETY: one value a channel and sample.
                    unsafe { *out.get().add(sample * channels + c) = sum as f32 };
                }
            });
            if let Some(bias) = bias {
                gradients.add(*bias, &totals);
            }
        }
        Gradient::Spread { input, output } => maps::spread(context, *input, *output),
        Gradient::NormSums { source, gradient, output } => {
            maps::norm_sums(context, source, *gradient, *output);
        }
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
            weight: param(*weight),
            bias: param(*bias),
            weight_id: *weight,
            bias_id: *bias,
            scale_shift: *scale_shift,
            gradient: *gradient,
            outputs,
            scale_shift_output: *scale_shift_output,
        }
        .run(context, gradients),
        Gradient::Sum { tensor, contributions, output } => {
            maps::sum(context, *tensor, contributions, *output);
        }
        Gradient::Linear { input, silu, weight, bias, gradient, output } => Linear {
            input: *input,
            silu: *silu,
            weight: param(*weight),
            weight_id: *weight,
            bias_id: *bias,
            gradient: *gradient,
            output: *output,
        }
        .run(context, gradients),
        &Gradient::Attention { qkv, heads, qkv_first, gradient, output } => {
            Attention { qkv, heads, qkv_first, gradient, output }.run(context);
        }
    }
    None
}

/// A network that learns on the host's processor.
pub struct CpuLearner {
    options: LearnerOptions,
    program: CpuProgram,
    places: Places,
    names: Vec<String>,
    step: u64,
    parameters: Buffer,
    gradients: Buffer,
    first_moment: Buffer,
    second_moment: Buffer,
    ema: Vec<Buffer>,
}

impl CpuLearner {
    /// A learner that goes on from `state`.
    ///
    /// # Errors
    /// As [`learner`](super::learner).
    pub fn new(engine: &CpuEngine, options: LearnerOptions, state: &LearnerState) -> Result<Self> {
        let program = options.program()?;
        let places = Places::new(program.params());
        let buffer = || Buffer::zeroed(places.len());
        let mut learner = Self {
            parameters: buffer()?,
            gradients: buffer()?,
            first_moment: buffer()?,
            second_moment: buffer()?,
            ema: options.ema_rates.iter().map(|_| buffer()).collect::<Result<_>>()?,
            program: CpuProgram::new(engine, program)?,
            options,
            names: places.params().iter().map(|param| param.name.clone()).collect(),
            places,
            step: 0,
        };
        learner.restore(state)?;
        Ok(learner)
    }

    /// Instructions and the seconds spent in each.
    pub fn timings(&self) -> impl Iterator<Item = (&Instruction, f64)> {
        self.program.program.instructions.iter().zip(self.program.seconds.iter().copied())
    }

    /// Bytes of activations and scratch memory.
    pub fn working_bytes(&self) -> usize {
        let private: usize = self
            .program
            .private
            .iter()
            .map(|buffer| buffer.lock().map_or(0, |buffer| buffer.slice().len()))
            .sum();
        size_of::<f32>() * (self.program.arena.slice().len() + self.program.shared.slice().len() + private)
    }
}

impl Learner for CpuLearner {
    fn options(&self) -> &LearnerOptions {
        &self.options
    }

    fn accumulate(&mut self, batch: &Microbatch<'_>, share: f32, control: &Control<'_>) -> Result<f64> {
        let program = &self.program.program;
        let (image, timesteps) = (program.plan.images[0], program.plan.timesteps[0]);
        let target = restored(program)?.1;
        let given = [(image, batch.input), (target, batch.target), (timesteps, batch.timesteps)];
        let values = Values { places: &self.places, flat: self.parameters.slice() };
        self.program.run(&given, &values, &mut self.gradients, share, control)
    }

    fn last_answer(&mut self) -> Result<Vec<f32>> {
        Ok(self.program.tensor(restored(&self.program.program)?.0).to_vec())
    }

    fn activations(
        &mut self,
        input: &[f32],
        timesteps: &[f32],
        control: &Control<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let program = &self.program.program;
        let given = [(program.plan.images[0], input), (program.plan.timesteps[0], timesteps)];
        let values = Values { places: &self.places, flat: self.parameters.slice() };
        let forward = 0..program.forward;
        self.program.run_part(forward, &given, &values, &mut self.gradients, 1.0, control)?;
        Ok(self.program.program.answers.iter().map(|&id| self.program.tensor(id).to_vec()).collect())
    }

    fn propagate(&mut self, gradients: &[Vec<f32>], control: &Control<'_>) -> Result<()> {
        let program = &self.program.program;
        let given = given_gradients(program, gradients)?;
        let values = Values { places: &self.places, flat: self.parameters.slice() };
        let backward = program.forward..program.instructions.len();
        self.program.run_part(backward, &given, &values, &mut self.gradients, 1.0, control)?;
        Ok(())
    }

    fn parameters(&self) -> &[String] {
        &self.names
    }

    fn gradients(&mut self, change: &mut dyn FnMut(&mut [f32]) -> Result<()>) -> Result<()> {
        change(self.gradients.slice_mut())
    }

    fn drop_gradients(&mut self) {
        self.gradients.slice_mut().fill(0.0);
    }

    fn update(&mut self, update: &Update) -> Result<UpdateReport> {
        let pool = self.program.pool.clone();
        pool.run(&Control::none(), || {
            let gradient_norm = optimise::norm(self.gradients.slice());
            let applied = gradient_norm.is_finite();
            if applied {
                self.step += 1;
                let mut ema: Vec<(f64, &mut [f32])> = self
                    .options
                    .ema_rates
                    .iter()
                    .copied()
                    .zip(self.ema.iter_mut().map(Buffer::slice_mut))
                    .collect();
                let scale = update.clip.map_or(1.0, |clip| (clip / gradient_norm).min(1.0));
                optimise::adamw(
                    update,
                    self.step,
                    scale,
                    self.gradients.slice(),
                    &mut optimise::Parameters {
                        values: self.parameters.slice_mut(),
                        first_moment: self.first_moment.slice_mut(),
                        second_moment: self.second_moment.slice_mut(),
                        ema: &mut ema,
                    },
                );
            }
            self.gradients.slice_mut().fill(0.0);
            Ok(UpdateReport { gradient_norm, applied })
        })
    }

    fn position(&self) -> (u64, f32) {
        (self.step, 1.0)
    }

    fn state_part(&mut self, part: StatePart) -> Result<MapWeights> {
        let buffer = match part {
            StatePart::Parameters => &self.parameters,
            StatePart::FirstMoment => &self.first_moment,
            StatePart::SecondMoment => &self.second_moment,
            StatePart::Ema(index) => match self.ema.get(index) {
                Some(average) => average,
                None => return Ok(MapWeights::default()),
            },
        };
        Ok(self.places.split(buffer.slice()))
    }

    fn restore(&mut self, state: &LearnerState) -> Result<()> {
        if state.ema.len() != self.ema.len() {
            let reason = format!("{} are there, {} are kept", state.ema.len(), self.ema.len());
            return Err(Error::invalid("moving averages", reason));
        }
        // Into new memory first: nothing is changed where a tensor is missing.
        let load = |weights| {
            let mut buffer = Buffer::zeroed(self.places.len())?;
            self.places.join(weights, buffer.slice_mut())?;
            Ok::<_, Error>(buffer)
        };
        let parameters = load(Some(&state.parameters))?;
        let (first, second) = (load(state.first_moment.as_ref())?, load(state.second_moment.as_ref())?);
        let ema = state.ema.iter().map(Some).map(load).collect::<Result<_>>()?;
        (self.parameters, self.first_moment, self.second_moment, self.ema) = (parameters, first, second, ema);
        self.step = state.step;
        self.drop_gradients();
        Ok(())
    }
}
