//! Engines that learn: the gradients of every operation, and what runs a training step.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod parameters;

use mdm::engine::cpu::CpuEngine;
use mdm::{Device, Error, Result};

use crate::learner::{Learner, LearnerOptions, LearnerState};

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
