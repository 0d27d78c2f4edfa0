//! Engines that learn: the gradients of every operation, and what runs a training step.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod parameters;

use mdm::engine::cpu::CpuEngine;
use mdm::plan::TensorId;
use mdm::{Device, Error, Result};

use crate::differentiate::{Gradient, Instruction, Program};
use crate::learner::{Learner, LearnerOptions, LearnerState};

/// What a program that restores images answers, and its target.
fn restored(program: &Program) -> Result<(TensorId, TensorId)> {
    match (&program.answers[..], &program.targets[..], program.instructions.get(program.forward)) {
        ([answer], [target], Some(Instruction::Gradient(Gradient::Loss { .. }))) => Ok((*answer, *target)),
        _ => {
            Err(Error::invalid("learner", "was made for the activations of blocks, not for restored images"))
        }
    }
}

/// The tensors that hold the gradients of a program's answers, with their values.
fn given_gradients<'a>(program: &Program, gradients: &'a [Vec<f32>]) -> Result<Vec<(TensorId, &'a [f32])>> {
    if restored(program).is_ok() || gradients.len() != program.targets.len() {
        let reason =
            format!("{} are given, the learner has {} blocks", gradients.len(), program.targets.len());
        return Err(Error::invalid("gradients", reason));
    }
    Ok(program.targets.iter().copied().zip(gradients.iter().map(Vec::as_slice)).collect())
}

/// A network that learns on `device`, going on from `state`.
///
/// Parameters and what the optimiser knows of them are f32 everywhere. A GPU that was opened with
/// [`Precision::F16`](mdm::engine::Precision), or with `Auto` where it has f16, computes activations and their gradients in f16,
/// with a scaled loss.
///
/// # Errors
/// [`Error::Invalid`] for networks that cannot be trained; [`Error::Tensor`] where a parameter is missing or has another shape;
/// [`Error::OutOfMemory`]; [`Error::Device`] for devices that cannot train.
pub fn learner(device: &Device, options: &LearnerOptions, state: &LearnerState) -> Result<Box<dyn Learner>> {
    if let Some(engine) = device.engine().as_any().downcast_ref::<CpuEngine>() {
        return Ok(Box::new(cpu::CpuLearner::new(engine, options.clone(), state)?));
    }
    #[cfg(feature = "gpu")]
    if let Some(engine) = device.engine().as_any().downcast_ref::<mdm::engine::gpu::GpuEngine>() {
        return Ok(Box::new(gpu::GpuLearner::new(engine, options.clone(), state)?));
    }
    Err(Error::Device(format!("{} cannot train; choose \"cpu\"", device.info().name)))
}
