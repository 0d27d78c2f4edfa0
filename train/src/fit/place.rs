//! Where heads are trained.

use mdm::Device;
use mdm::engine::DeviceKind;
#[cfg(feature = "gpu")]
use mdm::engine::gpu::GpuEngine;
use serde::Serialize;

/// Where heads were trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeadDevice {
    /// The GPU's name; `None` for the host's processor.
    pub gpu: Option<String>,
    /// Why it is not the GPU that was chosen, where one was.
    pub fallback: Option<String>,
}

/// The device that was chosen, and whether it is to train heads.
pub(crate) struct Place<'a> {
    device: &'a Device,
    even_software: bool,
}

impl<'a> Place<'a> {
    /// The device itself, unless it is software: the host's own code does the same faster.
    pub(crate) fn of(device: &'a Device) -> Self {
        Self { device, even_software: false }
    }

    /// The device itself, also where it is software.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn even_software(device: &'a Device) -> Self {
        Self { device, even_software: true }
    }

    /// Threads of the host: as many as the device uses, or one a core for one that leaves them idle.
    pub(crate) fn threads(&self) -> usize {
        match self.device.info().threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    fn is_refused(&self) -> bool {
        self.device.info().kind == DeviceKind::SoftwareGpu && !self.even_software
    }

    /// The host's processor, in place of this device.
    pub(crate) fn host(&self) -> HeadDevice {
        let reason = || format!("{} is software; the CPU's own code is faster", self.device.info().name);
        HeadDevice { gpu: None, fallback: self.is_refused().then(reason) }
    }

    /// This device, if it is a GPU.
    #[cfg(feature = "gpu")]
    pub(crate) fn device(&self) -> HeadDevice {
        HeadDevice { gpu: self.gpu().map(|_| self.device.info().name.clone()), fallback: None }
    }

    /// The GPU that is to train heads.
    #[cfg(feature = "gpu")]
    pub(crate) fn gpu(&self) -> Option<&'a GpuEngine> {
        let engine = self.device.engine().as_any().downcast_ref();
        engine.filter(|_| !self.is_refused())
    }
}
