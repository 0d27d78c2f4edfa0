//! Status codes, error objects, and the way into the library.

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use super::handles::{self, Object};
use super::log::{self, MDM_LOG_DEBUG};
use crate::{Error, threads};

/// What became of a call: MDM_OK or one of the MDM_ERROR codes. Numbers are never reused.
pub type mdm_status = i32;

/// All went well.
pub const MDM_OK: mdm_status = 0;
/// An argument, a setting or a member of a struct is NULL, out of range or contradicts another.
pub const MDM_ERROR_INVALID_ARGUMENT: mdm_status = 1;
/// A handle is NULL, was freed, or is of another kind.
pub const MDM_ERROR_INVALID_HANDLE: mdm_status = 2;
/// The caller was built for a newer library.
pub const MDM_ERROR_ABI: mdm_status = 3;
/// A file could not be opened or read.
pub const MDM_ERROR_IO: mdm_status = 4;
/// A model file is damaged, or something else than a model.
pub const MDM_ERROR_MODEL: mdm_status = 5;
/// A tensor of a model is missing, has another shape, or holds values that are not finite.
pub const MDM_ERROR_TENSOR: mdm_status = 6;
/// An image cannot be processed: its size, its buffer or its values.
pub const MDM_ERROR_IMAGE: mdm_status = 7;
/// More memory than can be had.
pub const MDM_ERROR_OUT_OF_MEMORY: mdm_status = 8;
/// There is no such device, or it could not be opened.
pub const MDM_ERROR_DEVICE: mdm_status = 9;
/// The device stopped working; the call may be tried again, or on the CPU.
pub const MDM_ERROR_DEVICE_LOST: mdm_status = 10;
/// The call was cancelled, by a token, by a callback, or because its object was freed.
pub const MDM_ERROR_CANCELLED: mdm_status = 11;
/// The object is in use, by another thread or by the call that runs the callback in which this call was made.
pub const MDM_ERROR_BUSY: mdm_status = 12;
/// A buffer of the caller is smaller than the result.
pub const MDM_ERROR_BUFFER_TOO_SMALL: mdm_status = 13;
/// A callback of the caller reported a failure.
pub const MDM_ERROR_CALLBACK: mdm_status = 14;
/// A mistake in the library, or an earlier call on the same object met one. The object can only be freed.
pub const MDM_ERROR_INTERNAL: mdm_status = 15;

/// What went wrong, in words. An error object never changes; any thread may read it until it is freed.
pub struct mdm_error {
    _private: [u8; 0],
}

/// What is behind an `mdm_error`, and what entry points return.
#[derive(Debug)]
#[doc(hidden)]
pub struct Failure {
    status: mdm_status,
    message: CString,
}

impl Object for Failure {
    type Handle = mdm_error;
    const NAME: &'static str = "error";
}

#[doc(hidden)]
impl Failure {
    pub fn new(status: mdm_status, message: impl Into<String>) -> Self {
        Self { status, message: c_line(message) }
    }

    pub fn message(&self) -> String {
        self.message.to_string_lossy().into_owned()
    }

    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(MDM_ERROR_INVALID_ARGUMENT, message)
    }

    pub fn handle(message: impl Into<String>) -> Self {
        Self::new(MDM_ERROR_INVALID_HANDLE, message)
    }

    pub fn abi(message: impl Into<String>) -> Self {
        Self::new(MDM_ERROR_ABI, message)
    }

    pub fn busy(what: &str) -> Self {
        Self::new(
            MDM_ERROR_BUSY,
            format!(
                "the {what} is in use by another thread or by the caller of this callback; make one for each thread"
            ),
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io { .. } => MDM_ERROR_IO,
            Error::ModelFile { .. } => MDM_ERROR_MODEL,
            Error::Tensor { .. } => MDM_ERROR_TENSOR,
            Error::Invalid { .. } => MDM_ERROR_INVALID_ARGUMENT,
            Error::Image(_) => MDM_ERROR_IMAGE,
            Error::OutOfMemory(_) => MDM_ERROR_OUT_OF_MEMORY,
            Error::Device(_) => MDM_ERROR_DEVICE,
            Error::DeviceLost(_) => MDM_ERROR_DEVICE_LOST,
            Error::Cancelled => MDM_ERROR_CANCELLED,
        };
        Self::new(status, error.to_string())
    }
}

/// The text without any NUL.
#[doc(hidden)]
pub fn c_string(text: impl Into<String>) -> CString {
    let mut text: String = text.into();
    text.retain(|c| c != '\0');
    CString::new(text).unwrap_or_default()
}

/// The text as one line: names of files may hold anything.
pub(super) fn c_line(text: impl Into<String>) -> CString {
    c_string(text.into().replace(['\n', '\r'], " "))
}

/// Panics of the library are reported as errors and to the log, and not printed. Those of the host are none of its business.
fn quieten_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| quieten(std::panic::take_hook()));
}

/// Tells `others` of panics that are not the library's.
fn quieten(others: Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>) {
    std::panic::set_hook(Box::new(move |panic| {
        if !threads::is_ours() {
            others(panic);
        }
    }));
}

/// Runs `body` so that nothing unwinds.
pub(super) fn guard<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    quieten_panics();
    let result = catch_unwind(AssertUnwindSafe(|| threads::run(true, body)));
    result.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        // What was thrown may panic again where it is dropped.
        let message = format!("a mistake in libmdm {}: {words}; please report it", env!("CARGO_PKG_VERSION"));
        std::mem::forget(panic);
        Err(Failure::new(MDM_ERROR_INTERNAL, message))
    })
}

/// Runs a callback of the host, whose panics are its own.
#[doc(hidden)]
pub fn call_back<T>(callback: impl FnOnce() -> T) -> T {
    threads::run(false, callback)
}

/// Runs the body of an entry point: nothing unwinds, and `*error` becomes NULL or an error object.
///
/// # Safety
/// `error` is NULL or can be written to.
#[doc(hidden)]
pub unsafe fn call(error: *mut *mut mdm_error, body: impl FnOnce() -> Result<(), Failure>) -> mdm_status {
    let (status, object) = match guard(body) {
        Ok(()) => (MDM_OK, std::ptr::null_mut()),
        Err(failure) => {
            let status = failure.status;
            let _ = guard(|| {
                log::write(MDM_LOG_DEBUG, || failure.message.to_string_lossy().into_owned());
                Ok(())
            });
            let keep = || handles::insert(failure);
            (
                status,
                if error.is_null() {
                    std::ptr::null_mut()
                } else {
                    guard(keep).unwrap_or(std::ptr::null_mut())
                },
            )
        }
    };
    if !error.is_null() {
        // SAFETY: as demanded of the caller; no alignment is assumed.
        unsafe { error.write_unaligned(object) };
    }
    status
}

/// A plain answer, `otherwise` where there is none.
#[doc(hidden)]
pub fn answer<T>(otherwise: T, body: impl FnOnce() -> Result<T, Failure>) -> T {
    guard(body).unwrap_or(otherwise)
}

/// Writes a result to where the caller wants it.
///
/// # Safety
/// `out` is NULL or can be written to.
#[doc(hidden)]
pub unsafe fn deliver<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: as demanded of the caller; no alignment is assumed.
        unsafe { out.write_unaligned(value) };
    }
}

/// An error unless there is a place for the result.
#[doc(hidden)]
pub fn wanted<T>(out: *const T, name: &str) -> Result<(), Failure> {
    if out.is_null() {
        Err(Failure::argument(format!("{name} is NULL: there is no place for the result")))
    } else {
        Ok(())
    }
}

/// A static name of a status code, for example "MDM_ERROR_IO"; "unknown" for other numbers. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_status_name(status: mdm_status) -> *const c_char {
    let name = match status {
        MDM_OK => c"MDM_OK",
        MDM_ERROR_INVALID_ARGUMENT => c"MDM_ERROR_INVALID_ARGUMENT",
        MDM_ERROR_INVALID_HANDLE => c"MDM_ERROR_INVALID_HANDLE",
        MDM_ERROR_ABI => c"MDM_ERROR_ABI",
        MDM_ERROR_IO => c"MDM_ERROR_IO",
        MDM_ERROR_MODEL => c"MDM_ERROR_MODEL",
        MDM_ERROR_TENSOR => c"MDM_ERROR_TENSOR",
        MDM_ERROR_IMAGE => c"MDM_ERROR_IMAGE",
        MDM_ERROR_OUT_OF_MEMORY => c"MDM_ERROR_OUT_OF_MEMORY",
        MDM_ERROR_DEVICE => c"MDM_ERROR_DEVICE",
        MDM_ERROR_DEVICE_LOST => c"MDM_ERROR_DEVICE_LOST",
        MDM_ERROR_CANCELLED => c"MDM_ERROR_CANCELLED",
        MDM_ERROR_BUSY => c"MDM_ERROR_BUSY",
        MDM_ERROR_BUFFER_TOO_SMALL => c"MDM_ERROR_BUFFER_TOO_SMALL",
        MDM_ERROR_CALLBACK => c"MDM_ERROR_CALLBACK",
        MDM_ERROR_INTERNAL => c"MDM_ERROR_INTERNAL",
        _ => c"unknown",
    };
    name.as_ptr()
}

/// The code that the failed call returned; MDM_OK for NULL, MDM_ERROR_INVALID_HANDLE for what is no error. Any thread may
/// call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_error_status(error: *const mdm_error) -> mdm_status {
    if error.is_null() {
        return MDM_OK;
    }
    answer(MDM_ERROR_INVALID_HANDLE, || Ok(handles::get::<Failure>(error)?.status))
}

/// What was wrong, where, and what to do about it: one line of UTF-8 in English, never NULL. It belongs to the error and
/// is valid until that is freed; an empty string for NULL and for what is no error. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_error_message(error: *const mdm_error) -> *const c_char {
    answer(c"".as_ptr(), || Ok(handles::get::<Failure>(error)?.message.as_ptr()))
}

/// Frees an error; NULL is allowed. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_error_free(error: *mut mdm_error) {
    free::<Failure>(error);
}

/// Objects of all kinds that were made and not yet freed, for tests of hosts. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_object_count() -> usize {
    answer(0, || Ok(handles::count()))
}

/// Body of every function that frees.
#[doc(hidden)]
pub fn free<T: Object>(handle: *const T::Handle) {
    answer((), || {
        drop(handles::remove::<T>(handle));
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use std::ffi::CStr;

    use super::*;

    /// Status and message of a call with this body.
    fn called(body: impl FnOnce() -> Result<(), Failure>) -> (mdm_status, String) {
        let mut error = std::ptr::null_mut();
        // SAFETY: `error` can be written to.
        let status = unsafe { call(&raw mut error, body) };
        assert_eq!(mdm_error_status(error), status);
        // SAFETY: the message ends with a NUL and lives until the error is freed.
        let message = unsafe { CStr::from_ptr(mdm_error_message(error)) }.to_str().unwrap().to_owned();
        mdm_error_free(error);
        (status, message)
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let (status, message) = called(|| panic!("of {} parts", 2));
        assert_eq!(status, MDM_ERROR_INTERNAL);
        assert!(message.contains("of 2 parts") && message.contains("report"), "{message}");
        let (status, message) = called(|| panic!("plain"));
        assert_eq!(status, MDM_ERROR_INTERNAL);
        assert!(message.contains("plain"), "{message}");

        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let (status, message) = called(|| std::panic::panic_any(Bomb));
        assert_eq!(status, MDM_ERROR_INTERNAL);
        assert!(message.contains("no reason"), "{message}");
        assert_eq!(answer(7, || -> Result<i32, Failure> { panic!("no answer") }), 7);
        assert_eq!(called(|| Ok(())), (MDM_OK, String::new()));
    }

    #[test]
    fn panics_are_told_where_they_are_the_hosts() {
        thread_local! {
            static TOLD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
        }
        fn told(body: impl FnOnce()) -> bool {
            TOLD.set(false);
            let _ = catch_unwind(AssertUnwindSafe(body));
            TOLD.get()
        }
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            TOLD.set(true);
            others(panic);
        }));
        quieten(std::panic::take_hook());
        assert!(told(|| panic!("a host's own")));
        assert!(!told(|| drop(called(|| panic!("the library's")))));
        assert!(told(|| drop(called(|| call_back(|| panic!("of a callback"))))));
        assert!(!told(|| drop(called(|| {
            call_back(|| ());
            panic!("after a callback")
        }))));
        let host = std::thread::Builder::new().name("mdm-host".into());
        assert!(host.spawn(|| told(|| panic!("of a host's thread"))).unwrap().join().unwrap());
        let worker = std::thread::spawn(|| {
            threads::claim();
            (told(|| panic!("of a worker")), told(|| call_back(|| panic!("of a callback on a worker"))))
        });
        assert_eq!(worker.join().unwrap(), (false, true));
    }

    #[test]
    fn every_error_of_the_library_has_its_number() {
        let io = std::io::Error::other("torn");
        let errors = [
            (Error::Io { action: "read", path: "a\nb".into(), source: io }, MDM_ERROR_IO),
            (Error::Image("b".into()), MDM_ERROR_IMAGE),
            (Error::OutOfMemory("c".into()), MDM_ERROR_OUT_OF_MEMORY),
            (Error::Device("d".into()), MDM_ERROR_DEVICE),
            (Error::DeviceLost("e\0f".into()), MDM_ERROR_DEVICE_LOST),
            (Error::Cancelled, MDM_ERROR_CANCELLED),
        ];
        for (error, expected) in errors {
            let words = error.to_string().replace('\0', "").replace('\n', " ");
            assert_eq!(called(|| Err(error.into())), (expected, words));
        }
    }
}
