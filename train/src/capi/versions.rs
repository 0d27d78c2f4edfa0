//! Version of the binary interface.

use mdm::capi::errors::{Failure, call, mdm_error, mdm_status};

/// Version of the binary interface that this header describes; that of mdm.h is counted for itself. It grows by one whenever a release
/// appends functions, constants or members of structs; nothing is ever changed or removed.
pub const MDM_TRAIN_ABI_VERSION: u32 = 1;

/// Version of the binary interface at run time; see MDM_TRAIN_ABI_VERSION. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_train_abi_version() -> u32 {
    MDM_TRAIN_ABI_VERSION
}

/// Checks that the library has all that the header knows under which the caller was built. Call it once at the start as
/// mdm_train_check_abi(MDM_TRAIN_ABI_VERSION, &error), beside mdm_check_abi. A newer library is always fine. Any thread may call
/// this.
///
/// @param header_version MDM_TRAIN_ABI_VERSION
/// @param error          receives an error object on failure; may be NULL
/// @return MDM_OK, or MDM_ERROR_ABI where the library is older than the header, MDM_ERROR_INVALID_ARGUMENT for 0
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_train_check_abi(header_version: u32, error: *mut *mut mdm_error) -> mdm_status {
    // SAFETY: the caller vouches for `error`.
    unsafe {
        call(error, || match header_version {
            0 => Err(Failure::argument("0 is not a version; give MDM_TRAIN_ABI_VERSION")),
            1..=MDM_TRAIN_ABI_VERSION => Ok(()),
            _ => Err(Failure::abi(format!(
                "the program was built for ABI {header_version} of training, this library ({}) has {MDM_TRAIN_ABI_VERSION}; \
                 install a newer libmdm_train",
                env!("CARGO_PKG_VERSION")
            ))),
        })
    }
}
