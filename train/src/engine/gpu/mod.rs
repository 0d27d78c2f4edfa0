//! Training on a GPU: every gradient as WGSL, one operation a file, beside the operations of the inference engine.
//!
//! Parameters, their gradients and what the optimiser knows of them stay on the device, in f32. Activations and what flows back
//! through them are in the format that the device was opened with: f32, or f16 with sums in f32 and a scaled loss
//! (Micikevicius et al. 2018).

mod attention;
mod conv_weight;
mod linear;
mod loss;
mod norm;
pub(crate) mod optimiser;
mod pack;
mod program;
pub(crate) mod shaders;
mod spread;
pub(crate) mod store;
mod sum;
mod sums;

use std::sync::Arc;

use mdm::control::Control;
use mdm::engine::gpu::GpuEngine;
use mdm::engine::gpu::context::Context;
use mdm::engine::gpu::shader::ValueType;
use mdm::model::MapWeights;
use mdm::{Error, Result};

use self::optimiser::Optimiser;
pub use self::program::GpuProgram;
pub use self::shaders::permutations;
use super::{given_gradients, restored};
use crate::differentiate::Instruction;
use crate::learner::{Learner, LearnerOptions, LearnerState, Microbatch, StatePart, Update, UpdateReport};

/// A network that learns on a GPU.
pub struct GpuLearner {
    context: Arc<Context>,
    options: LearnerOptions,
    program: GpuProgram,
    optimiser: Optimiser,
    names: Vec<String>,
    step: u64,
    /// What the loss is multiplied by, so that gradients in f16 neither vanish nor overflow; 1 in f32. A power of two.
    loss_scale: f32,
}

/// Where the scale of the loss begins.
const FIRST_SCALE: f32 = 65_536.0;

/// The largest scale of the loss.
const MOST_SCALE: f32 = 16_777_216.0;

/// Each time so many steps were applied the scale of the loss is doubled; where gradients overflow it is halved.
const STEPS_OF_SCALE: u64 = 1000;

impl GpuLearner {
    /// A learner that goes on from `state`.
    ///
    /// # Errors
    /// As [`learner`](super::learner).
    pub fn new(engine: &GpuEngine, options: LearnerOptions, state: &LearnerState) -> Result<Self> {
        let program = GpuProgram::new(engine, options.program()?)?;
        let context = program.context.clone();
        let optimiser = context.checked(|| Optimiser::new(&context, &program, &options.ema_rates))?;
        let names = program.parameters().params().iter().map(|param| param.name.clone()).collect();
        let mut learner = Self { context, options, program, optimiser, names, step: 0, loss_scale: 1.0 };
        learner.restore(state)?;
        Ok(learner)
    }

    /// From now on each step tells what its instructions take. Returns whether the device can tell.
    ///
    /// # Errors
    /// Those of the device.
    pub fn time_instructions(&mut self) -> Result<bool> {
        self.program.time_instructions()
    }

    /// The instructions of forward and backward pass with the seconds of each in the last step, by the device's clock; none
    /// unless they are timed.
    ///
    /// # Errors
    /// Those of the device.
    pub fn timings(&self) -> Result<Vec<(&Instruction, f64)>> {
        self.program.timings()
    }

    /// Bytes of the device's memory that are in use.
    pub fn device_bytes(&self) -> u64 {
        self.context.used.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Learner for GpuLearner {
    fn options(&self) -> &LearnerOptions {
        &self.options
    }

    fn accumulate(&mut self, batch: &Microbatch<'_>, share: f32, control: &Control<'_>) -> Result<f64> {
        let program = self.program.program();
        let (image, timesteps) = (program.plan.images[0], program.plan.timesteps[0]);
        let target = restored(program)?.1;
        let given = [(image, batch.input), (target, batch.target), (timesteps, batch.timesteps)];
        self.program.run(&given, share * self.loss_scale, control)
    }

    fn last_answer(&mut self) -> Result<Vec<f32>> {
        self.program.tensor(restored(self.program.program())?.0)
    }

    fn activations(
        &mut self,
        input: &[f32],
        timesteps: &[f32],
        control: &Control<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let program = self.program.program();
        let given = [(program.plan.images[0], input), (program.plan.timesteps[0], timesteps)];
        let forward = 0..program.forward;
        self.program.run_part(forward, &given, 1.0, control)?;
        self.program.program().answers.iter().map(|&id| self.program.tensor(id)).collect()
    }

    fn propagate(&mut self, gradients: &[Vec<f32>], control: &Control<'_>) -> Result<()> {
        let scaled: Vec<Vec<f32>> = gradients
            .iter()
            .map(|values| values.iter().map(|value| value * self.loss_scale).collect())
            .collect();
        let program = self.program.program();
        let given = given_gradients(program, &scaled)?;
        let backward = program.forward..program.instructions.len();
        self.program.run_part(backward, &given, 1.0, control)?;
        Ok(())
    }

    fn parameters(&self) -> &[String] {
        &self.names
    }

    fn gradients(&mut self, change: &mut dyn FnMut(&mut [f32]) -> Result<()>) -> Result<()> {
        let mut flat = self.program.gradients()?;
        // The scale is a power of two: nothing is rounded.
        flat.iter_mut().for_each(|value| *value /= self.loss_scale);
        change(&mut flat)?;
        flat.iter_mut().for_each(|value| *value *= self.loss_scale);
        self.program.set_gradients(&flat)
    }

    fn drop_gradients(&mut self) {
        // A device that was lost has none; the next call says so.
        let _ = self.context.checked(|| {
            let mut commands =
                self.context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.program.gradients.clear(&mut commands);
            self.context.queue.submit([commands.finish()]);
            Ok(())
        });
    }

    fn update(&mut self, update: &Update) -> Result<UpdateReport> {
        let context = self.context.clone();
        let loss_scale = f64::from(self.loss_scale);
        let gradient_norm = context.checked(|| self.optimiser.norm(&context))? / loss_scale;
        let applied = gradient_norm.is_finite();
        if applied {
            let scale = update.clip.map_or(1.0, |clip| (clip / gradient_norm).min(1.0));
            let step = self.step + 1;
            context.checked(|| self.optimiser.step(&context, update, step, scale / loss_scale))?;
            self.step = step;
        } else {
            self.drop_gradients();
        }
        if context.value == ValueType::F16 {
            if !applied {
                self.loss_scale = (self.loss_scale / 2.0).max(1.0);
            } else if self.step.is_multiple_of(STEPS_OF_SCALE) {
                self.loss_scale = (self.loss_scale * 2.0).min(MOST_SCALE);
            }
        }
        Ok(UpdateReport { gradient_norm, applied })
    }

    fn position(&self) -> (u64, f32) {
        (self.step, self.loss_scale)
    }

    fn state_part(&mut self, part: StatePart) -> Result<MapWeights> {
        let (program, optimiser) = (&self.program, &self.optimiser);
        let pages = match part {
            StatePart::Parameters => &program.values,
            StatePart::FirstMoment => &optimiser.first,
            StatePart::SecondMoment => &optimiser.second,
            StatePart::Ema(index) => match optimiser.averages.get(index) {
                Some((_, pages)) => pages,
                None => return Ok(MapWeights::default()),
            },
        };
        let parameters = program.parameters();
        let mut flat = vec![0.0; parameters.len()];
        self.context.checked(|| pages.download(&self.context, &program.layout, parameters, &mut flat))?;
        Ok(parameters.split(&flat))
    }

    fn restore(&mut self, state: &LearnerState) -> Result<()> {
        let (program, optimiser) = (&self.program, &self.optimiser);
        if state.ema.len() != optimiser.averages.len() {
            let reason = format!("{} are there, {} are kept", state.ema.len(), optimiser.averages.len());
            return Err(Error::invalid("moving averages", reason));
        }
        let parameters = program.parameters();
        let mut all = vec![
            (&program.values, Some(&state.parameters)),
            (&optimiser.first, state.first_moment.as_ref()),
            (&optimiser.second, state.second_moment.as_ref()),
        ];
        all.extend(optimiser.averages.iter().map(|(_, pages)| pages).zip(state.ema.iter().map(Some)));
        let mut flat = vec![0.0; parameters.len()];
        // Nothing is changed where a tensor is missing.
        for (_, weights) in &all {
            parameters.join(*weights, &mut flat)?;
        }
        for (pages, weights) in all {
            parameters.join(weights, &mut flat)?;
            self.context.checked(|| pages.upload(&self.context, &program.layout, parameters, &flat))?;
        }
        self.step = state.step;
        self.loss_scale = match self.context.value {
            ValueType::F32 => 1.0,
            // What came from training in f32 has no scale yet.
            ValueType::F16 if state.loss_scale > 1.0 && state.loss_scale <= MOST_SCALE => state.loss_scale,
            ValueType::F16 => FIRST_SCALE,
        };
        self.drop_gradients();
        Ok(())
    }
}
