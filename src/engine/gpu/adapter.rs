//! Which GPUs there are.

use std::sync::OnceLock;

use super::shader::Cooperative;
use crate::engine::{DeviceInfo, DeviceKind};
use crate::{Error, Result};

/// An adapter with what the library tells of it.
pub(crate) struct Adapter {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) info: DeviceInfo,
}

/// Bytes that one workgroup may need for a small tile and its places, see `shaders/conv.wgsl`.
const LEAST_WORKGROUP_STORAGE: u32 = 16_384;

/// What is said of an adapter with matrix units.
pub(super) const MATRIX_UNITS: &str = "cooperative matrices";

/// All adapters of the backends that the library was built with, in the drivers' order.
pub(crate) fn adapters() -> Vec<Adapter> {
    // One for the process, and never dropped: with the last instance drivers are unloaded, and NVIDIA's leaves the threads that
    // used it with a destructor that is not there any more when they end.
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    // Drivers are other people's code: whatever one does here, there is just no GPU then.
    let found = super::guard(|| {
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let instance = INSTANCE.get_or_init(|| {
            windowless().unwrap_or_else(|| {
                wgpu::Instance::new(wgpu::InstanceDescriptor {
                    backends,
                    flags: wgpu::InstanceFlags::empty(),
                    backend_options: wgpu::BackendOptions { dx12: dx12(), ..Default::default() },
                    ..wgpu::InstanceDescriptor::new_without_display_handle()
                })
            })
        });
        Ok(pollster::block_on(instance.enumerate_adapters(backends)))
    });
    found.unwrap_or_default().into_iter().map(Adapter::new).collect()
}

/// DXC where it was linked (cargo feature `static-dxc`), otherwise `dxcompiler.dll` where Windows finds one, otherwise FXC, which
/// knows neither f16 nor subgroups.
fn dx12() -> wgpu::Dx12BackendOptions {
    wgpu::Dx12BackendOptions { shader_compiler: wgpu::Dx12Compiler::Auto, ..Default::default() }
}

/// Vulkan that is not told of windows, where Vulkan is all there is. wgpu asks for every window system; Mesa's drivers then
/// look for one, and print an error in the host's terminal where a machine has none.
#[cfg(all(unix, not(target_vendor = "apple"), not(target_os = "android")))]
#[allow(unsafe_code)]
fn windowless() -> Option<wgpu::Instance> {
    use wgpu::hal::{InstanceDescriptor, vulkan};
    let descriptor = InstanceDescriptor {
        name: "mdm",
        flags: wgpu::InstanceFlags::empty(),
        memory_budget_thresholds: Default::default(),
        backend_options: Default::default(),
        telemetry: None,
        display: None,
    };
    let leave_out: Box<vulkan::CreateInstanceCallback<'_>> = Box::new(|arguments| {
        let systems = [c"VK_KHR_xlib_surface", c"VK_KHR_xcb_surface", c"VK_KHR_wayland_surface"];
        arguments.extensions.retain(|name| !systems.contains(name));
    });
    // SAFETY: these extensions serve to show windows, which this library never does; nothing else depends on them.
    let instance = unsafe { vulkan::Instance::init_with_callback(&descriptor, Some(leave_out)) }.ok()?;
    // SAFETY: the instance was just made and belongs to nobody else.
    Some(unsafe { wgpu::Instance::from_hal::<wgpu::hal::api::Vulkan>(instance) })
}

#[cfg(not(all(unix, not(target_vendor = "apple"), not(target_os = "android"))))]
fn windowless() -> Option<wgpu::Instance> {
    None
}

impl Adapter {
    fn new(adapter: wgpu::Adapter) -> Self {
        let known = adapter.get_info();
        let features = adapter.features();
        let mut supports = Vec::new();
        let mut note = |there: bool, what| supports.extend(there.then_some(what));
        note(features.contains(wgpu::Features::SHADER_F16), "f16");
        note(features.contains(wgpu::Features::SUBGROUP), "subgroups");
        note(features.contains(wgpu::Features::TIMESTAMP_QUERY), "timestamps");
        note(features.contains(wgpu::Features::PIPELINE_CACHE), "pipeline cache");
        note(features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX), MATRIX_UNITS);
        let info = DeviceInfo {
            kind: match known.device_type {
                wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu,
                wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
                wgpu::DeviceType::VirtualGpu => DeviceKind::VirtualGpu,
                wgpu::DeviceType::Cpu => DeviceKind::SoftwareGpu,
                wgpu::DeviceType::Other => DeviceKind::OtherGpu,
            },
            name: known.name,
            backend: match known.backend {
                wgpu::Backend::Vulkan => "vulkan",
                wgpu::Backend::Metal => "metal",
                wgpu::Backend::Dx12 => "dx12",
                _ => "other",
            },
            driver: format!("{} {}", known.driver, known.driver_info).trim().to_owned(),
            memory: super::memory::of_adapter(&adapter),
            threads: 0,
            instruction_set: "wgsl",
            precision: if supports.contains(&"f16") { "f16" } else { "f32" },
            supports,
            warning: None,
        };
        Self { adapter, info }
    }

    /// Matrix units that the shaders can use: f16 factors, f32 sums, and subgroups of one known size.
    pub(crate) fn cooperative(&self) -> Option<Cooperative> {
        let features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16;
        if !self.adapter.features().contains(features) {
            return None;
        }
        let info = self.adapter.get_info();
        // Apple's SIMD groups have 32 threads, whatever range the backend gives.
        let metal = info.backend == wgpu::Backend::Metal;
        let unit = if metal { Cooperative::METAL } else { Cooperative::VULKAN };
        let subgroups =
            metal || (info.subgroup_min_size, info.subgroup_max_size) == (unit.subgroup, unit.subgroup);
        let storage = self.adapter.limits().max_compute_workgroup_storage_size >= unit.storage;
        let known = self.adapter.cooperative_matrix_properties().iter().any(|own| {
            [own.m_size, own.n_size, own.k_size] == [unit.size; 3]
                && own.ab_type == wgpu::CooperativeScalarType::F16
                && own.cr_type == wgpu::CooperativeScalarType::F32
        });
        let passes =
            !unit.moves_bits() || self.adapter.features().contains(wgpu::Features::PASSTHROUGH_SHADERS);
        (subgroups && storage && known && passes).then_some(unit)
    }

    /// What the adapter lacks of what the shaders need, in words.
    pub(crate) fn lacks(&self) -> Option<String> {
        let limits = self.adapter.limits();
        let features = self.adapter.features();
        if !features.contains(wgpu::Features::IMMEDIATES) {
            return Some("its driver offers no immediates".into());
        }
        let needed = [
            ("storage buffers a shader", limits.max_storage_buffers_per_shader_stage, 8),
            ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, LEAST_WORKGROUP_STORAGE),
            ("threads a workgroup", limits.max_compute_invocations_per_workgroup, 256),
            (
                "workgroups a dimension",
                limits.max_compute_workgroups_per_dimension,
                super::context::GRID_WIDTH,
            ),
        ];
        needed
            .iter()
            .find(|(_, has, needs)| has < needs)
            .map(|(what, has, needs)| format!("it offers {has} {what}, {needs} are needed"))
    }
}

/// The first adapter that a person would choose: discrete before integrated ones, never software.
pub(crate) fn best(adapters: Vec<Adapter>) -> Result<Adapter> {
    let rank = |kind| match kind {
        DeviceKind::DiscreteGpu => Some(0),
        DeviceKind::IntegratedGpu => Some(1),
        DeviceKind::VirtualGpu | DeviceKind::OtherGpu => Some(2),
        DeviceKind::SoftwareGpu | DeviceKind::Cpu => None,
    };
    let names: Vec<String> = adapters.iter().map(|adapter| adapter.info.name.clone()).collect();
    adapters
        .into_iter()
        .filter_map(|adapter| Some((rank(adapter.info.kind)?, adapter)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, adapter)| adapter)
        .ok_or_else(|| {
            Error::Device(if names.is_empty() {
                "no driver for Vulkan, Metal or DX12 shows a GPU".into()
            } else {
                format!(
                    "there are only software adapters ({}), which are slower than the CPU engine",
                    names.join(", ")
                )
            })
        })
}
