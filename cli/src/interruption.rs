//! Ctrl-C.

use mdm::CancelToken;

use crate::error::warn;

/// Is raised by Ctrl-C and by being asked to terminate, which `said` announces. The second time ends the process.
pub(crate) fn interruption(said: &'static str) -> CancelToken {
    let token = CancelToken::new();
    let raised = token.clone();
    let set = ctrlc::set_handler(move || {
        if raised.is_cancelled() {
            std::process::exit(130);
        }
        eprintln!("{said}; once more to stop at once");
        raised.cancel();
    });
    if let Err(error) = set {
        warn(format!("Ctrl-C will stop at once: {error}"));
    }
    token
}
