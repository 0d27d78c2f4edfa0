//! The native engine: f32 on all cores, or products of bf16 where that is asked for, with a thread pool of its own.
//!
//! Results are the same bits whatever the number of threads: threads divide outputs, never sums.

pub mod attention;
pub mod buffer;
pub mod caches;
pub mod conv;
pub mod corruption;
pub mod head;
pub mod network;
pub mod norm;
pub mod pack;
pub mod pool;
pub mod product;
pub mod reader;
pub mod simd;
pub mod step;
pub mod sums;
pub mod upsample;
pub mod vector;
pub mod winograd;

use std::sync::{Arc, PoisonError};

pub use pack::PackedWeights;
pub use pool::Pool;
use simd::InstructionSet;

use super::{DeviceInfo, DeviceKind, Engine, Network, Precision, WeightCache};
use crate::model::WeightSource;
use crate::plan::Plan;
use crate::{Control, Error, Result};

/// The host's processor.
pub struct CpuEngine {
    info: DeviceInfo,
    set: InstructionSet,
    pool: Arc<Pool>,
}

impl CpuEngine {
    /// With one thread a core where `threads` is `None`. In f32, unless bf16 is asked for and the processor has it.
    pub fn new(threads: Option<usize>, precision: Precision) -> Result<Self> {
        let bf16 = if precision == Precision::Bf16 { InstructionSet::with_bf16() } else { None };
        Self::with_instruction_set(threads, bf16.unwrap_or(InstructionSet::available()[0]))
    }

    /// All engines in f32 that this machine can run, one for each instruction set, best first.
    pub fn all(threads: Option<usize>) -> Result<Vec<Self>> {
        InstructionSet::available().into_iter().map(|set| Self::with_instruction_set(threads, set)).collect()
    }

    /// The instruction set in f32, in which training computes.
    pub fn set(&self) -> InstructionSet {
        if self.set.has_bf16() { InstructionSet::available()[0] } else { self.set }
    }

    /// The threads.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn with_instruction_set(threads: Option<usize>, set: InstructionSet) -> Result<Self> {
        let threads = match threads {
            Some(0) => return Err(Error::invalid("threads", "at least one is needed")),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let info = DeviceInfo {
            name: format!("CPU ({}, {threads} threads)", std::env::consts::ARCH),
            kind: DeviceKind::Cpu,
            backend: "cpu",
            driver: String::new(),
            memory: None,
            threads,
            instruction_set: set.name(),
            supports: Vec::new(),
            precision: if set.has_bf16() { "bf16" } else { "f32" },
            warning: None,
        };
        Ok(Self { info, set, pool: Arc::new(Pool::new(threads)?) })
    }
}

impl Engine for CpuEngine {
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
        let pool = self.pool.clone();
        let network = self.pool.run(&Control::none(), || {
            // Locked by who has its turn, so that nobody waits for his turn with it. A poisoned lock means that packing
            // panicked; what was packed before is whole.
            let mut packed = cache.cpu.lock().unwrap_or_else(PoisonError::into_inner);
            let network = network::CpuNetwork::new(plan, weights, &mut packed, self.set, pool);
            packed.drop_spare();
            network
        })?;
        Ok(Box::new(network))
    }
}
