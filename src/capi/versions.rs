//! Versions of the library and of its binary interface.

use std::ffi::c_char;

use super::errors::{Failure, call, mdm_error, mdm_status};

/// Major version of the library that this header belongs to.
pub const MDM_VERSION_MAJOR: u32 = 0;
/// Minor version of the library that this header belongs to.
pub const MDM_VERSION_MINOR: u32 = 1;
/// Patch version of the library that this header belongs to.
pub const MDM_VERSION_PATCH: u32 = 0;

/// Version of the binary interface that this header describes. It grows by one whenever a release appends functions,
/// constants or members of structs; nothing is ever changed or removed.
pub const MDM_ABI_VERSION: u32 = 1;

/// The library's version at run time, for example "0.1.0".
///
/// The string is static. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Version of the binary interface at run time; see MDM_ABI_VERSION. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_abi_version() -> u32 {
    MDM_ABI_VERSION
}

/// Checks that the library has all that the header knows under which the caller was built. Call it once at the start as
/// mdm_check_abi(MDM_ABI_VERSION, &error). A newer library is always fine. Any thread may call this.
///
/// @param header_version MDM_ABI_VERSION
/// @param error          receives an error object on failure; may be NULL
/// @return MDM_OK, or MDM_ERROR_ABI where the library is older than the header, MDM_ERROR_INVALID_ARGUMENT for 0
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_check_abi(header_version: u32, error: *mut *mut mdm_error) -> mdm_status {
    // SAFETY: the caller vouches for `error`.
    unsafe {
        call(error, || match header_version {
            0 => Err(Failure::argument("0 is not a version; give MDM_ABI_VERSION")),
            1..=MDM_ABI_VERSION => Ok(()),
            _ => Err(Failure::abi(format!(
                "the program was built for ABI {header_version}, this library ({}) has {MDM_ABI_VERSION}; install a newer libmdm",
                env!("CARGO_PKG_VERSION")
            ))),
        })
    }
}
