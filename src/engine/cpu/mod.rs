//! The native engine: f32 on all cores.

use super::{DeviceInfo, DeviceKind, Engine, Network, WeightCache};
use crate::model::WeightSource;
use crate::plan::Plan;
use crate::{Error, Result};

/// Packed parameters.
#[derive(Default)]
pub(crate) struct PackedWeights {}

/// The host's processor.
pub(crate) struct CpuEngine {
    info: DeviceInfo,
}

impl CpuEngine {
    pub(crate) fn new(threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or(1);
        let info =
            DeviceInfo { name: String::new(), kind: DeviceKind::Cpu, threads, instruction_set: "portable" };
        Ok(Self { info })
    }
}

impl Engine for CpuEngine {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn prepare(&self, _: Plan, _: &dyn WeightSource, _: &WeightCache) -> Result<Box<dyn Network>> {
        Err(Error::Device("the engine is missing".to_owned()))
    }
}
