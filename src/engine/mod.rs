//! Machines that execute a [`Plan`].

mod cpu;

use std::sync::Arc;

use crate::control::Control;
use crate::model::WeightSource;
use crate::plan::Plan;
use crate::{Error, Result};

/// An engine turns a plan and its parameters into something that can be run.
pub trait Engine: Send + Sync {
    /// What it runs on.
    fn info(&self) -> &DeviceInfo;

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
}

/// Packed parameters of one model on one engine. Clones share the content.
#[derive(Clone, Default)]
pub struct WeightCache(pub(crate) Arc<std::sync::Mutex<cpu::PackedWeights>>);

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

    /// Seconds spent in each operation of the last run, in the plan's order.
    fn op_seconds(&self) -> &[f64];
}

/// What a network is fed.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// For each timestep slot `[batch, height, width, in_channels]`, values in [-1, 1], already corrupted.
    pub images: &'a [&'a [f32]],
    /// For each timestep slot, one timestep a sample.
    pub timesteps: &'a [&'a [f32]],
    /// One class a sample for a class-conditional model, otherwise empty.
    pub classes: &'a [u32],
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
        wrong("image slots", self.images.len(), plan.images.len())?;
        wrong("timestep slots", self.timesteps.len(), plan.timesteps.len())?;
        for (image, id) in self.images.iter().zip(&plan.images) {
            wrong("image values", image.len(), plan.tensors[*id].sample_len() * batch)?;
        }
        for timesteps in self.timesteps {
            wrong("timesteps", timesteps.len(), batch)?;
        }
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
    /// For people.
    pub name: String,
    /// What kind of machine.
    pub kind: DeviceKind,
    /// Threads that are used.
    pub threads: usize,
    /// Instruction set that was chosen at run time, for example "avx512".
    pub instruction_set: &'static str,
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host's processor.
    Cpu,
}

/// A device that was chosen. Clones share it; any number of threads may use it.
#[derive(Clone)]
pub struct Device(Arc<dyn Engine>);

impl Device {
    /// The host's processor with a thread pool of the library's own; one thread a core where `threads` is `None`.
    pub fn cpu(threads: Option<usize>) -> Result<Self> {
        Ok(Self(Arc::new(cpu::CpuEngine::new(threads)?)))
    }

    /// The host's processor once for each instruction set that it and this library know, best first; for tests and
    /// comparisons.
    pub fn cpu_instruction_sets(threads: Option<usize>) -> Result<Vec<Self>> {
        Ok(cpu::CpuEngine::all(threads)?.into_iter().map(|engine| Self(Arc::new(engine))).collect())
    }

    /// A device by the words of the command line: `auto` or `cpu`.
    ///
    /// # Errors
    /// [`Error::Device`] for any other word.
    pub fn select(words: &str, threads: Option<usize>) -> Result<Self> {
        match words {
            "auto" | "cpu" => Self::cpu(threads),
            other => Err(Error::Device(format!(
                "{other:?} is not a device of this machine; \"cpu\" and \"auto\" are"
            ))),
        }
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    /// The engine behind it.
    pub fn engine(&self) -> &dyn Engine {
        &*self.0
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(self.info()).finish()
    }
}
