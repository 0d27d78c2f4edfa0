//! What the library has to say while it works, for a host's log.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

use super::errors::{Failure, c_line, call, call_back, mdm_error, mdm_status};

/// How important a message is.
pub type mdm_log_level = u32;

/// Nothing is reported.
pub const MDM_LOG_OFF: mdm_log_level = 0;
/// A mistake in the library.
pub const MDM_LOG_ERROR: mdm_log_level = 1;
/// Work goes on, but perhaps not as wished: no GPU, an unknown pixel size, an assumption about a model.
pub const MDM_LOG_WARNING: mdm_log_level = 2;
/// What was opened and chosen.
pub const MDM_LOG_INFO: mdm_log_level = 3;
/// Every run, and every error that a call returns.
pub const MDM_LOG_DEBUG: mdm_log_level = 4;

/// Receives a message.
///
/// It is called on whatever thread works, possibly on several at a time, and must neither throw nor jump out.
///
/// @param user_data as given to mdm_log_set
/// @param level     how important it is
/// @param message   one line of UTF-8, valid during the call
pub type mdm_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: mdm_log_level, message: *const c_char)>;

#[derive(Clone, Copy)]
struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, mdm_log_level, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: whoever sets a callback is told that any thread may call it with its user data.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);
static LEVEL: AtomicU32 = AtomicU32::new(MDM_LOG_OFF);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Reports a message, if anybody listens.
pub fn write(level: mdm_log_level, message: impl FnOnce() -> String) {
    if level > LEVEL.load(Ordering::Relaxed) || INSIDE.get() {
        return;
    }
    let message = c_line(message());
    let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(Sink { callback, user_data }) = *sink {
        INSIDE.set(true);
        // SAFETY: the callback is the host's and was promised to be callable until another is set, which waits for the lock.
        call_back(|| unsafe { callback(user_data, level, message.as_ptr()) });
        INSIDE.set(false);
    }
}

/// Sets who receives the library's messages, for the whole process. Nobody does at first: the library is silent.
///
/// Once this returned, the callback that was set before is not called any more, so that its user data may go. Any thread
/// may call this, except from within the callback.
///
/// @param callback  receives messages, or NULL for silence
/// @param level     the least important level that is reported
/// @param user_data handed to the callback; it must stay valid until another callback is set
/// @param error     receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_ARGUMENT for an unknown level, or MDM_ERROR_BUSY within the callback
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_log_set(
    callback: mdm_log_callback,
    level: mdm_log_level,
    user_data: *mut c_void,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for `error`.
    unsafe {
        call(error, || {
            if level > MDM_LOG_DEBUG {
                return Err(Failure::argument(format!(
                    "{level} is not a log level; 0 to {MDM_LOG_DEBUG} are"
                )));
            }
            if INSIDE.get() {
                return Err(Failure::busy("log"));
            }
            let mut sink = SINK.write().unwrap_or_else(PoisonError::into_inner);
            *sink = callback.map(|callback| Sink { callback, user_data });
            LEVEL.store(if callback.is_some() { level } else { MDM_LOG_OFF }, Ordering::Relaxed);
            Ok(())
        })
    }
}
