//! The WGSL engine: a plan as compute shaders through wgpu, on Vulkan, Metal and DX12.
//!
//! A device is a guest's: submissions are short, nothing that a driver does is allowed to unwind into the caller, and a
//! device that was lost is opened anew by the next call.

mod adapter;
mod attention;
mod calibrate;
#[doc(hidden)]
pub mod call;
mod canvas;
#[doc(hidden)]
pub mod context;
#[doc(hidden)]
pub mod conv;
mod corruption;
mod group_norm;
mod head;
mod memory;
mod network;
mod norm;
mod normalise;
mod pack;
mod pipeline;
#[doc(hidden)]
pub mod prepare;
#[doc(hidden)]
pub mod segments;
mod self_test;
pub mod shader;
#[doc(hidden)]
pub mod spirv;
#[doc(hidden)]
pub mod submit;
mod template;
#[cfg(test)]
mod tests;
#[doc(hidden)]
pub mod timing;
#[doc(hidden)]
pub mod vector;
#[doc(hidden)]
pub mod weights;
#[doc(hidden)]
pub mod winograd;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use adapter::{Adapter, adapters, best};
use context::Context;
use shader::ValueType;
pub(crate) use weights::DeviceWeights;

use super::canvas::HostCanvas;
use super::{Canvas, CanvasShape, DeviceInfo, DeviceOptions, Engine, Network, Precision, WeightCache};
use crate::model::WeightSource;
use crate::plan::Plan;
use crate::{Error, Result};

/// A GPU.
#[doc(hidden)]
pub struct GpuEngine {
    info: DeviceInfo,
    adapter: Adapter,
    value: ValueType,
    memory: Option<u64>,
    cache: Option<PathBuf>,
    context: Mutex<Arc<Context>>,
}

impl GpuEngine {
    /// Opens the device.
    pub(crate) fn new(adapter: Adapter, options: &DeviceOptions) -> Result<Self> {
        let name = adapter.info.name.clone();
        if let Some(reason) = adapter.lacks() {
            return Err(Error::Device(format!("{name} cannot be used: {reason}")));
        }
        let half = adapter.info.supports.contains(&"f16");
        let value = match options.precision {
            Precision::F16 if !half => {
                return Err(Error::Device(format!("{name} has no f16; use f32")));
            }
            Precision::Bf16 => {
                return Err(Error::Device(format!("{name} has no bf16; use f16 or f32")));
            }
            Precision::Auto if half => ValueType::F16,
            Precision::F16 => ValueType::F16,
            Precision::Auto | Precision::F32 => ValueType::F32,
        };
        let (memory, cache) = (options.memory, options.pipeline_cache.clone());
        let context = guard(|| Context::new(&adapter, value, memory, cache.clone()))?;
        let mut info = DeviceInfo { precision: value.name(), ..adapter.info.clone() };
        if let Some(fault) = context.fault() {
            info.supports.retain(|what| *what != adapter::MATRIX_UNITS);
            info.warning = Some(fault.to_owned());
        }
        Ok(Self { info, adapter, value, memory, cache, context: Mutex::new(Arc::new(context)) })
    }

    /// Opens the device anew and divides what is larger than `segment` bytes, where buffers of that size are possible. Tests
    /// have no arenas of the size that makes it necessary.
    ///
    /// # Errors
    /// Those of the device.
    pub fn reopen_with_segments(&self, segment: usize) -> Result<()> {
        let mut opened = guard(|| Context::new(&self.adapter, self.value, self.memory, self.cache.clone()))?;
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        opened.divide(segment);
        *context = Arc::new(opened);
        Ok(())
    }

    /// The open device, a new one if it was lost.
    pub fn context(&self) -> Result<Arc<Context>> {
        // A poisoned lock means that opening a device panicked; the one that is there is whole.
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        if context.is_lost() {
            let open = || Context::new(&self.adapter, self.value, self.memory, self.cache.clone());
            *context = Arc::new(guard(open)?);
        }
        Ok(context.clone())
    }
}

impl Engine for GpuEngine {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn prepare(
        &self,
        plan: Plan,
        weights: &dyn WeightSource,
        cache: &WeightCache,
    ) -> Result<Box<dyn Network>> {
        let context = self.context()?;
        // A poisoned lock means that an upload panicked; what was uploaded before is whole.
        let mut known = cache.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        let network =
            context.checked(|| network::GpuNetwork::new(context.clone(), plan, weights, &mut known))?;
        Ok(Box::new(network))
    }

    fn canvas(&self, shape: CanvasShape) -> Result<Box<dyn Canvas>> {
        let context = self.context()?;
        match context.checked(|| canvas::GpuCanvas::new(context.clone(), shape.clone())) {
            Ok(canvas) => Ok(Box::new(canvas)),
            // A wide image's band may be more than a device binds; the host has room for it.
            Err(Error::OutOfMemory(_)) => Ok(Box::new(HostCanvas::new(shape)?)),
            Err(other) => Err(other),
        }
    }
}

/// Calls `work`; a panic in a driver or in wgpu becomes an error.
fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(Error::DeviceLost(format!("its driver failed: {reason}")))
    })
}
