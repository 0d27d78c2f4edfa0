//! Devices: what there is, and what was chosen.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

use super::errors::{Failure, answer, c_string, call, deliver, free, mdm_error, mdm_status, wanted};
use super::handles::{self, Object};
use super::log::{self, MDM_LOG_INFO, MDM_LOG_WARNING};
use super::structs::{self, Versioned};
use crate::engine::{DeviceInfo, DeviceKind, Precision};
use crate::{Device, DeviceOptions};

/// Kinds of devices. New ones may be appended.
pub type mdm_device_kind = u32;

/// The host's processor.
pub const MDM_DEVICE_CPU: mdm_device_kind = 0;
/// A GPU with memory of its own.
pub const MDM_DEVICE_DISCRETE_GPU: mdm_device_kind = 1;
/// A GPU that shares the host's memory.
pub const MDM_DEVICE_INTEGRATED_GPU: mdm_device_kind = 2;
/// A GPU of a virtual machine.
pub const MDM_DEVICE_VIRTUAL_GPU: mdm_device_kind = 3;
/// The host's processor behind a GPU's interface: correct and slow, for tests.
pub const MDM_DEVICE_SOFTWARE_GPU: mdm_device_kind = 4;
/// A GPU whose driver does not say more.
pub const MDM_DEVICE_OTHER_GPU: mdm_device_kind = 5;

/// Number formats of activations and weights.
pub type mdm_precision = u32;

/// f16 on a GPU that has it, otherwise f32.
pub const MDM_PRECISION_AUTO: mdm_precision = 0;
/// The most exact.
pub const MDM_PRECISION_F32: mdm_precision = 1;
/// On a GPU: half the memory, and faster; relative errors of 1e-3 instead of 1e-6. The CPU computes in f32.
pub const MDM_PRECISION_F16: mdm_precision = 2;
/// On a CPU with AVX512-BF16: faster; relative errors below 1e-2 instead of 1e-6. Other CPUs compute in f32 and log a warning;
/// GPUs do not have it.
pub const MDM_PRECISION_BF16: mdm_precision = 3;

/// How a device is opened. Zero is every member's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_device_options {
    /// sizeof(mdm_device_options)
    pub struct_size: usize,
    /// Threads on the CPU; 0 for one a core.
    pub threads: u32,
    /// Number format: one of the MDM_PRECISION constants.
    pub precision: mdm_precision,
    /// Bytes of device memory that may be used on a GPU; 0 for as much as there is.
    pub memory: u64,
    /// Folder (UTF-8) in which a GPU's compiled shaders are kept, so that the next start is faster; NULL for none.
    pub pipeline_cache: *const c_char,
}

/// What is known of a device. Strings are UTF-8, never NULL, and belong to the object that was asked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_device_info {
    /// sizeof(mdm_device_info)
    pub struct_size: usize,
    /// For people, and a way to choose it.
    pub name: *const c_char,
    /// What it is driven through: "vulkan", "metal", "dx12" or "cpu".
    pub backend: *const c_char,
    /// The driver's name and version; empty for the host's processor.
    pub driver: *const c_char,
    /// Instruction set that was chosen, for example "avx512"; "wgsl" for a GPU.
    pub instruction_set: *const c_char,
    /// What a GPU can do beyond the least, separated by ", ": "f16", "subgroups" and so on.
    pub supports: *const c_char,
    /// Bytes of its own memory; 0 where that is unknown.
    pub memory: u64,
    /// One of the MDM_DEVICE constants.
    pub kind: mdm_device_kind,
    /// Threads that are used; 0 for a GPU.
    pub threads: u32,
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_device_options {
    const NAME: &'static str = "mdm_device_options";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_device_info {
    const NAME: &'static str = "mdm_device_info";
    const LEAST: usize = size_of::<usize>();
}

/// The devices of this machine at the time of the call. It never changes; any thread may read it.
pub struct mdm_device_list {
    _private: [u8; 0],
}

/// A device that was chosen. Any number of threads may use it.
pub struct mdm_device {
    _private: [u8; 0],
}

struct Described {
    info: DeviceInfo,
    name: CString,
    backend: CString,
    driver: CString,
    instruction_set: CString,
    supports: CString,
}

impl Described {
    fn new(info: DeviceInfo) -> Self {
        Self {
            name: c_string(&info.name),
            backend: c_string(info.backend),
            driver: c_string(&info.driver),
            instruction_set: c_string(info.instruction_set),
            supports: c_string(info.supports.join(", ")),
            info,
        }
    }

    fn as_c(&self) -> mdm_device_info {
        mdm_device_info {
            struct_size: 0,
            name: self.name.as_ptr(),
            backend: self.backend.as_ptr(),
            driver: self.driver.as_ptr(),
            instruction_set: self.instruction_set.as_ptr(),
            supports: self.supports.as_ptr(),
            memory: self.info.memory.unwrap_or(0),
            kind: match self.info.kind {
                DeviceKind::Cpu => MDM_DEVICE_CPU,
                DeviceKind::DiscreteGpu => MDM_DEVICE_DISCRETE_GPU,
                DeviceKind::IntegratedGpu => MDM_DEVICE_INTEGRATED_GPU,
                DeviceKind::VirtualGpu => MDM_DEVICE_VIRTUAL_GPU,
                DeviceKind::SoftwareGpu => MDM_DEVICE_SOFTWARE_GPU,
                DeviceKind::OtherGpu => MDM_DEVICE_OTHER_GPU,
            },
            threads: u32::try_from(self.info.threads).unwrap_or(u32::MAX),
        }
    }
}

struct DeviceList(Vec<Described>);

impl Object for DeviceList {
    type Handle = mdm_device_list;
    const NAME: &'static str = "device list";
}

#[doc(hidden)]
pub struct OpenDevice {
    #[doc(hidden)]
    pub device: Device,
    described: Described,
    reason: CString,
}

impl Object for OpenDevice {
    type Handle = mdm_device;
    const NAME: &'static str = "device";
}

/// A string of the caller.
///
/// # Safety
/// `text` is NULL or ends with a NUL.
#[doc(hidden)]
pub unsafe fn utf8<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format!("{name} is NULL")));
    }
    // SAFETY: as demanded of the caller.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|error| {
        Failure::argument(format!("{name} {:?} is not UTF-8: {error}", text.to_string_lossy()))
    })
}

/// Sets an options struct of `struct_size` bytes to its defaults; MDM_DEVICE_OPTIONS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_device_options_init(options: *mut mdm_device_options, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(options, struct_size) }
}

/// Lists the devices of this machine: GPUs in the order of their drivers, then the host's processor, which is always
/// there. May take a second where drivers are loaded. Any thread may call this.
///
/// @param list  receives the list; free it with mdm_device_list_free
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_ARGUMENT, or MDM_ERROR_DEVICE if not even threads can be started
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_device_list_new(
    list: *mut *mut mdm_device_list,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(list, "list")?;
            let devices = Device::list()?.into_iter().map(Described::new).collect();
            deliver(list, handles::insert(DeviceList(devices))?);
            Ok(())
        })
    }
}

/// Number of devices in a list; 0 for NULL and for what is no list. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_device_list_count(list: *const mdm_device_list) -> usize {
    answer(0, || Ok(handles::get::<DeviceList>(list)?.0.len()))
}

/// Tells what is known of a device of a list. The strings belong to the list. Any thread may call this.
///
/// @param list  the list
/// @param index 0 to mdm_device_list_count - 1; in decimal it is also a name of the device for mdm_device_open
/// @param info  filled in; its struct_size must be set
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_device_list_info(
    list: *const mdm_device_list,
    index: usize,
    info: *mut mdm_device_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let list = handles::get::<DeviceList>(list)?;
            let device = list.0.get(index).ok_or_else(|| {
                Failure::argument(format!("there is no device {index}; the list has {}", list.0.len()))
            })?;
            structs::write(info, &device.as_c())
        })
    }
}

/// Frees a list; NULL is allowed. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_device_list_free(list: *mut mdm_device_list) {
    free::<DeviceList>(list);
}

/// Opens a device. Any thread may call this.
///
/// @param choice  "auto" or NULL for the best GPU (never one that is software) or else the CPU, which never fails for lack of a
///                GPU and tells mdm_device_reason why; "gpu" for the best GPU or an error; "cpu"; or a number, a name or a part
///                of a name from the list
/// @param options how to open it; NULL for defaults
/// @param device  receives the device; free it with mdm_device_free, at any time: whatever was made with it keeps it alive
/// @param error   receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI or MDM_ERROR_DEVICE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_device_open(
    choice: *const c_char,
    options: *const mdm_device_options,
    device: *mut *mut mdm_device,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(device, "device")?;
            let choice = if choice.is_null() { "auto" } else { utf8(choice, "choice")? };
            let options = options_of(structs::read_or_default(options)?)?;
            let chosen = Device::select(choice, &options)?;
            let info = chosen.info();
            let reason = match chosen.fallback() {
                Some(reason) => {
                    log::write(MDM_LOG_WARNING, || format!("no GPU is used: {reason}"));
                    format!("no GPU is used: {reason}")
                }
                None if choice == "auto" || choice == "gpu" => "the best GPU of this machine".into(),
                None => format!("asked for as {choice:?}"),
            };
            if let Some(warning) = &info.warning {
                log::write(MDM_LOG_WARNING, || format!("{}: {warning}", info.name));
            }
            if options.precision == Precision::Bf16 && info.precision != "bf16" {
                log::write(MDM_LOG_WARNING, || "this processor has no bf16; it computes in f32".into());
            }
            log::write(MDM_LOG_INFO, || format!("device: {} through {}, {reason}", info.name, info.backend));
            let described = Described::new(info.clone());
            deliver(
                device,
                handles::insert(OpenDevice { described, reason: c_string(reason), device: chosen })?,
            );
            Ok(())
        })
    }
}

/// # Safety
/// The folder is NULL or ends with a NUL.
unsafe fn options_of(options: mdm_device_options) -> Result<DeviceOptions, Failure> {
    const MOST_THREADS: u32 = 1024;
    if options.threads > MOST_THREADS {
        return Err(Failure::argument(format!("threads: {} are more than {MOST_THREADS}", options.threads)));
    }
    let precision = match options.precision {
        MDM_PRECISION_AUTO => Precision::Auto,
        MDM_PRECISION_F32 => Precision::F32,
        MDM_PRECISION_F16 => Precision::F16,
        MDM_PRECISION_BF16 => Precision::Bf16,
        other => {
            return Err(Failure::argument(format!(
                "precision: {other} is none of the MDM_PRECISION constants"
            )));
        }
    };
    let pipeline_cache = if options.pipeline_cache.is_null() {
        None
    } else {
        // SAFETY: as demanded of the caller.
        Some(PathBuf::from(unsafe { utf8(options.pipeline_cache, "pipeline_cache") }?))
    };
    Ok(DeviceOptions {
        threads: (options.threads > 0).then_some(options.threads as usize),
        precision,
        memory: (options.memory > 0).then_some(options.memory),
        pipeline_cache,
    })
}

/// Tells what was chosen. The strings belong to the device. Any thread may call this.
///
/// @param device the device
/// @param info   filled in; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_device_get_info(
    device: *const mdm_device,
    info: *mut mdm_device_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe { call(error, || structs::write(info, &handles::get::<OpenDevice>(device)?.described.as_c())) }
}

/// Why this device was chosen, in words: for "auto" on the CPU, why no GPU is used. The string belongs to the device; an
/// empty string for NULL and for what is no device. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_device_reason(device: *const mdm_device) -> *const c_char {
    answer(c"".as_ptr(), || Ok(handles::get::<OpenDevice>(device)?.reason.as_ptr()))
}

/// Frees a device; NULL is allowed. Segmenters that use it keep it alive. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_device_free(device: *mut mdm_device) {
    free::<OpenDevice>(device);
}
