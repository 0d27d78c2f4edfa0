//! Machines that execute a [`Plan`].

pub(crate) mod canvas;
// The training crate of the same version builds on what is hidden here and in `plan`; nobody else is to.
#[doc(hidden)]
pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
#[doc(hidden)]
pub mod winograd;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub use canvas::{Canvas, CanvasPlace, CanvasShape};

use crate::control::Control;
use crate::corruption::NoiseKey;
use crate::model::WeightSource;
use crate::plan::Plan;
use crate::{Error, Result};

/// An engine turns a plan and its parameters into something that can be run.
pub trait Engine: Send + Sync {
    /// What it runs on.
    fn info(&self) -> &DeviceInfo;

    /// The engine itself, for the training crate.
    #[doc(hidden)]
    fn as_any(&self) -> &dyn std::any::Any;

    /// Packs the parameters that `plan` needs and allocates its memory.
    ///
    /// Networks prepared from one `cache` share packed parameters, so that plans for several batch or window sizes of
    /// one model cost one copy of the weights.
    fn prepare(
        &self,
        plan: Plan,
        weights: &dyn WeightSource,
        cache: &WeightCache,
    ) -> Result<Box<dyn Network>>;

    /// Memory in which windows add up.
    fn canvas(&self, shape: CanvasShape) -> Result<Box<dyn Canvas>> {
        Ok(Box::new(canvas::HostCanvas::new(shape)?))
    }
}

/// Packed parameters of one model on one engine. Clones share the content.
#[derive(Clone, Default)]
pub struct WeightCache {
    pub(crate) cpu: Arc<Mutex<cpu::PackedWeights>>,
    #[cfg(feature = "gpu")]
    pub(crate) gpu: Arc<Mutex<gpu::DeviceWeights>>,
}

/// A plan with its parameters and memory on a device. It belongs to one thread at a time.
pub trait Network: Send {
    /// What it executes.
    fn plan(&self) -> &Plan;

    /// Runs the plan once and hands each of [`Plan::outputs`], by its index, to `read`: dense f32, channels last.
    ///
    /// # Errors
    /// [`Error::Invalid`] where an input's length is not the plan's, [`Error::Cancelled`] between two operations.
    fn run(
        &mut self,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        read: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;

    /// Runs the plan once and adds its only output to `canvas`, the samples at `places`. It may return before all is
    /// computed; [`Canvas::take`] waits.
    ///
    /// # Errors
    /// As [`run`](Self::run), and [`Error::Invalid`] where the output is not one window for each place.
    fn run_onto(
        &mut self,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        canvas: &mut dyn Canvas,
        places: &[CanvasPlace],
    ) -> Result<()> {
        self.run(inputs, control, &mut |_, values| canvas::blend_on_host(values, canvas, places))
    }

    /// Seconds spent in each operation of the last run, in the plan's order; zeros where they are not
    /// [measured](Self::time_operations).
    fn op_seconds(&self) -> &[f64];

    /// Measures operations from now on, which may cost time; false where the device has no clock for it.
    fn time_operations(&mut self) -> bool {
        true
    }

    /// Bytes that this and all other networks on a GPU take there; 0 on the host.
    fn device_bytes(&self) -> u64 {
        0
    }

    /// What the last run asked of a GPU; nothing on the host.
    fn run_cost(&self) -> Option<RunCost> {
        None
    }

    /// Whether the device that it belongs to is gone for good: all it can do is fail.
    fn is_lost(&self) -> bool {
        false
    }
}

/// What a run asks of a GPU and of the host that feeds it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunCost {
    /// Calls of shaders.
    pub dispatches: usize,
    /// Times that work was handed over.
    pub submissions: usize,
    /// Time that the host took to upload, encode and hand over, without what it waited for the device.
    pub host_seconds: f64,
}

/// What a network is fed.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[batch, height, width, in_channels]` for each of [`Plan::images`], values in [-1, 1].
    pub images: &'a [&'a [f32]],
    /// For each timestep slot, one timestep a sample.
    pub timesteps: &'a [&'a [f32]],
    /// One class a sample for a class-conditional model, otherwise empty.
    pub classes: &'a [u32],
    /// One key a sample for a plan that [corrupts its images](Plan::reads_noise), otherwise empty.
    pub noise: &'a [NoiseKey],
}

impl Inputs<'_> {
    /// Checks all lengths against `plan`.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let batch = plan.options.batch;
        let wrong = |what, got: usize, want: usize| {
            if got == want {
                Ok(())
            } else {
                Err(Error::invalid(what, format!("{got} given, the plan has {want}")))
            }
        };
        wrong("images", self.images.len(), plan.images.len())?;
        wrong("timestep slots", self.timesteps.len(), plan.timesteps.len())?;
        for (image, id) in self.images.iter().zip(&plan.images) {
            wrong("image values", image.len(), plan.tensors[*id].sample_len() * batch)?;
        }
        for timesteps in self.timesteps {
            wrong("timesteps", timesteps.len(), batch)?;
        }
        wrong("noise keys", self.noise.len(), if plan.reads_noise() { batch } else { 0 })?;
        match plan.config.num_classes {
            None => wrong("classes", self.classes.len(), 0),
            Some(count) => {
                wrong("classes", self.classes.len(), batch)?;
                match self.classes.iter().find(|&&class| class as usize >= count) {
                    Some(class) => Err(Error::invalid("classes", format!("{class} is not below {count}"))),
                    None => Ok(()),
                }
            }
        }
    }
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For people, and a way to choose it.
    pub name: String,
    /// What kind of machine.
    pub kind: DeviceKind,
    /// What it is driven through: "vulkan", "metal", "dx12" or "cpu".
    pub backend: &'static str,
    /// The driver's name and version; empty for the host's processor.
    pub driver: String,
    /// Bytes of its own memory, where that is known.
    pub memory: Option<u64>,
    /// Threads that are used; 0 for a GPU.
    pub threads: usize,
    /// Instruction set that was chosen at run time, for example "avx512"; "wgsl" for a GPU.
    pub instruction_set: &'static str,
    /// What a GPU can do beyond the least: "f16", "subgroups", "timestamps", "pipeline cache", "cooperative matrices".
    pub supports: Vec<&'static str>,
    /// Number format of activations and weights on a GPU, "f32" or "f16", of products on the CPU, "f32" or "bf16"; where the device is not opened, that of
    /// [`Precision::Auto`].
    pub precision: &'static str,
    /// What was found to be wrong with the device when it was opened, and what is done instead.
    pub warning: Option<String>,
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host's processor.
    Cpu,
    /// A GPU with memory of its own.
    DiscreteGpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// A GPU of a virtual machine.
    VirtualGpu,
    /// The host's processor behind a GPU's interface: correct and slow, for tests.
    SoftwareGpu,
    /// A GPU whose driver does not say more.
    OtherGpu,
}

impl DeviceKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::DiscreteGpu => "discrete GPU",
            Self::IntegratedGpu => "integrated GPU",
            Self::VirtualGpu => "virtual GPU",
            Self::SoftwareGpu => "software GPU",
            Self::OtherGpu => "GPU",
        }
    }
}

/// Number formats; sums are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f16 on a GPU that has it, otherwise f32.
    #[default]
    Auto,
    /// The most exact.
    F32,
    /// On a GPU: half the memory, and faster; relative errors of 1e-3 instead of 1e-6. The CPU computes in f32.
    F16,
    /// On a CPU with AVX512-BF16: faster, and less memory for weights; relative errors below 1e-2 instead of 1e-6. Other CPUs
    /// compute in f32, which [`DeviceInfo::precision`] tells; GPUs do not have it. Training stays in f32.
    Bf16,
}

/// How a device is opened.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Threads of the CPU engine; one a core where there is no number.
    pub threads: Option<usize>,
    /// Number format of activations and weights.
    pub precision: Precision,
    /// Bytes of device memory that may be used on a GPU; as much as there is where there is no number.
    pub memory: Option<u64>,
    /// Folder in which a GPU's compiled shaders are kept, so that the next start is faster; none where there is no folder.
    pub pipeline_cache: Option<PathBuf>,
}

/// A device that was chosen. Clones share it; any number of threads may use it.
#[derive(Clone)]
pub struct Device {
    engine: Arc<dyn Engine>,
    fallback: Option<Arc<str>>,
}

impl Device {
    fn new(engine: impl Engine + 'static) -> Self {
        Self { engine: Arc::new(engine), fallback: None }
    }

    /// The host's processor with a thread pool of the library's own; one thread a core where `threads` is `None`.
    pub fn cpu(threads: Option<usize>) -> Result<Self> {
        Ok(Self::new(cpu::CpuEngine::new(threads, Precision::F32)?))
    }

    /// The same in the number format of `options`.
    fn cpu_with(options: &DeviceOptions) -> Result<Self> {
        Ok(Self::new(cpu::CpuEngine::new(options.threads, options.precision)?))
    }

    /// The host's processor once for each instruction set that it and this library know, best first; for tests and
    /// comparisons.
    pub fn cpu_instruction_sets(threads: Option<usize>) -> Result<Vec<Self>> {
        Ok(cpu::CpuEngine::all(threads)?.into_iter().map(Self::new).collect())
    }

    /// All devices: GPUs in the order of their drivers, then the host's processor. Their places in this list are the numbers
    /// that [`select`](Self::select) takes.
    ///
    /// # Errors
    /// [`Error::Device`] if the CPU engine cannot be started. A GPU whose driver fails is not listed.
    pub fn list() -> Result<Vec<DeviceInfo>> {
        #[cfg(feature = "gpu")]
        let gpus = gpu::adapters().into_iter().map(|adapter| adapter.info);
        #[cfg(not(feature = "gpu"))]
        let gpus = std::iter::empty();
        Ok(gpus.chain([Self::cpu(None)?.info().clone()]).collect())
    }

    /// A device by the words of the command line: `auto`, `gpu`, `cpu`, a number or a name (or a part of one) from the
    /// [list](Self::list).
    ///
    /// `auto` takes the best GPU, never one that is software, or else the CPU, and says [why](Self::fallback).
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device, it cannot be opened, or it lacks what the options ask for.
    pub fn select(words: &str, options: &DeviceOptions) -> Result<Self> {
        match words {
            "cpu" => Self::cpu_with(options),
            "auto" => match Self::best_gpu(options) {
                Ok(device) => Ok(device),
                Err(reason) => {
                    let reason = match reason {
                        Error::Device(reason) => reason,
                        other => other.to_string(),
                    };
                    Ok(Self { fallback: Some(reason.into()), ..Self::cpu_with(options)? })
                }
            },
            "gpu" => Self::best_gpu(options),
            _ => Self::named(words, options),
        }
    }

    #[cfg(feature = "gpu")]
    fn best_gpu(options: &DeviceOptions) -> Result<Self> {
        Ok(Self::new(gpu::GpuEngine::new(gpu::best(gpu::adapters())?, options)?))
    }

    #[cfg(not(feature = "gpu"))]
    fn best_gpu(_options: &DeviceOptions) -> Result<Self> {
        Err(Error::Device("this build of the library has no GPU engine".into()))
    }

    fn named(words: &str, options: &DeviceOptions) -> Result<Self> {
        let list = Self::list()?;
        let lower = words.to_lowercase();
        let number = words.parse::<usize>().ok().filter(|&number| number < list.len());
        let found = number.or_else(|| list.iter().position(|info| info.name.to_lowercase() == lower));
        let found = found.or_else(|| list.iter().position(|info| info.name.to_lowercase().contains(&lower)));
        let names: Vec<String> =
            list.iter().enumerate().map(|(number, info)| format!("{number} ({})", info.name)).collect();
        let unknown = || {
            Error::Device(format!(
                "{words:?} is not a device of this machine; \"auto\", \"gpu\", \"cpu\" and these are: {}",
                names.join(", ")
            ))
        };
        let found = found.filter(|_| !words.is_empty()).ok_or_else(unknown)?;
        #[cfg(feature = "gpu")]
        if let Some(adapter) = gpu::adapters().into_iter().nth(found) {
            return Ok(Self::new(gpu::GpuEngine::new(adapter, options)?));
        }
        let _ = found;
        Self::cpu_with(options)
    }

    /// Why `auto` did not take a GPU, if it did not.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.engine.info()
    }

    /// The engine behind it.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(self.info()).finish()
    }
}
