//! Whose code a thread runs: the library's, or that of its host.

use std::cell::Cell;

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Says that the thread was started by the library and runs its code.
pub fn claim() {
    OURS.set(true);
}

/// Whether the thread runs code of the library.
pub(crate) fn is_ours() -> bool {
    OURS.get()
}

/// Runs `body`, which is the library's or not, and then goes on as before, also where it panics.
pub(crate) fn run<T>(ours: bool, body: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            OURS.set(self.0);
        }
    }
    let _before = Before(OURS.replace(ours));
    body()
}
