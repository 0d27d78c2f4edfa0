//! Tokens that stop a run from another thread.

use super::errors::{answer, call, deliver, free, mdm_error, mdm_status, wanted};
use super::handles::{self, Object};
use crate::CancelToken;

/// A flag that any thread may raise to stop the runs that were given it. Once raised it stays so: make one for each run.
pub struct mdm_cancel {
    _private: [u8; 0],
}

impl Object for CancelToken {
    type Handle = mdm_cancel;
    const NAME: &'static str = "cancel token";
}

/// Makes a token. Any thread may call this.
///
/// @param cancel receives the token; free it with mdm_cancel_free, also while a run uses it
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_cancel_new(
    cancel: *mut *mut mdm_cancel,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(cancel, "cancel")?;
            deliver(cancel, handles::insert(CancelToken::new())?);
            Ok(())
        })
    }
}

/// Stops every run that was given the token, which then returns MDM_ERROR_CANCELLED, on the CPU within the time of one operation of
/// the network. Any thread may call this, at any time, also before a run; a signal handler may not.
///
/// @param cancel the token
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK or MDM_ERROR_INVALID_HANDLE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_cancel_raise(cancel: *mut mdm_cancel, error: *mut *mut mdm_error) -> mdm_status {
    // SAFETY: the caller vouches for `error`.
    unsafe {
        call(error, || {
            handles::get::<CancelToken>(cancel)?.cancel();
            Ok(())
        })
    }
}

/// 1 if the token was raised, 0 if not, for NULL and for what is no token. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_cancel_is_raised(cancel: *const mdm_cancel) -> i32 {
    answer(0, || Ok(handles::get::<CancelToken>(cancel)?.is_cancelled().into()))
}

/// Frees a token; NULL is allowed. Runs that were given it go on. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_cancel_free(cancel: *mut mdm_cancel) {
    free::<CancelToken>(cancel);
}
