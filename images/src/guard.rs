//! Decoders of damaged files may panic: that is an error of the file, not the end of everything.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use crate::error::{Result, failed};

thread_local! {
    /// Whether this thread is decoding a file, so that a panic is reported as an error and need not be printed.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` returns, or an error if it panics.
pub(crate) fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !DECODING.get() {
                others(panic);
            }
        }));
    });
    let outer = DECODING.replace(true);
    // What a decoder has half done is dropped with it.
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(outer);
    outcome.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(failed(
            path,
            format!("the decoder gave up: {message}; it may be damaged, open it in another program and save it anew"),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_the_file() {
        let path = Path::new("odd.tif");
        let error = guarded::<()>(path, || panic!("index {} out of range", 7)).unwrap_err();
        assert!(error.to_string().contains("odd.tif: the decoder gave up: index 7 out of range"), "{error}");
        assert_eq!(guarded(path, || Ok(3)).unwrap(), 3);
        assert!(!DECODING.get());
    }
}
