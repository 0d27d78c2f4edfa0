//! How much memory an adapter has.

#![allow(unsafe_code)]

/// Bytes of the largest heap in the device's own memory, where the driver says so.
#[cfg(not(target_vendor = "apple"))]
pub(super) fn of_adapter(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handles live as long as `adapter`, and nothing is destroyed.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    const DEVICE_LOCAL: u32 = 1;
    let count = (properties.memory_heap_count as usize).min(properties.memory_heaps.len());
    properties.memory_heaps[..count]
        .iter()
        .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0)
        .map(|heap| heap.size)
        .max()
}

/// Unknown: Metal shares the host's memory, and its driver does not say how much of it a device may take.
#[cfg(target_vendor = "apple")]
pub(super) fn of_adapter(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}
