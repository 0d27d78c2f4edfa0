//! Runs that work on threads of their own, watched on the caller's.

use std::sync::mpsc;

use mdm::capi::cancel::mdm_cancel;
use mdm::capi::errors::{Failure, MDM_ERROR_OUT_OF_MEMORY, call_back};
use mdm::capi::handles;
use mdm::capi::runs::{mdm_progress, mdm_run};
use mdm::{CancelToken, Control, Progress, Result};

/// Stops when whoever frees the object that runs, or the caller's token, says so.
pub(super) fn stoppable(cancel: *mut mdm_cancel, freed: &CancelToken) -> Result<Control<'static>, Failure> {
    let control = Control::none().with_cancel(freed);
    if cancel.is_null() {
        return Ok(control);
    }
    Ok(control.with_cancel(&*handles::get::<CancelToken>(cancel)?))
}

/// Runs `body` so that the caller of `run`, and whoever frees the object that runs, can stop it.
///
/// Threads of `body` report how it gets on; the callback is called on this thread, with the latest news, while they work on. Only
/// the last report waits until the callback has answered, so that none can ask too late for the run to stop.
///
/// # Safety
/// The callback can be called with the user data.
pub(super) unsafe fn watched<T: Send>(
    run: mdm_run,
    freed: &CancelToken,
    body: impl FnOnce(&Control<'_>) -> Result<T> + Send,
) -> Result<T, Failure> {
    let stop = CancelToken::new();
    let control = stoppable(run.cancel, freed)?.with_cancel(&stop);
    let Some(progress) = run.progress else { return Ok(body(&control)?) };
    let (sender, news) = mpsc::channel();
    let work = move || {
        let report = move |progress: Progress| {
            let (answering, answered) = mpsc::channel();
            // The receiver outlives this thread.
            let _ = sender.send((progress, answering));
            if progress.done >= progress.total {
                // Nothing is ever sent: the other end is dropped after the answer.
                let _ = answered.recv();
            }
        };
        body(&control.with_progress(&report))
    };
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("mdm-run".into()).spawn_scoped(scope, work).map_err(
            |error| Failure::new(MDM_ERROR_OUT_OF_MEMORY, format!("cannot start a thread: {error}")),
        )?;
        while let Ok(mut latest) = news.recv() {
            while let Ok(newer) = news.try_recv() {
                latest = newer;
            }
            let (state, _answering): (Progress, mpsc::Sender<()>) = latest;
            let state = mdm_progress {
                struct_size: size_of::<mdm_progress>(),
                fraction: if state.total == 0 { 1.0 } else { state.done as f64 / state.total as f64 },
                windows_done: state.done,
                windows: state.total,
            };
            // SAFETY: as demanded of the caller.
            if !stop.is_cancelled() && call_back(|| unsafe { progress(run.user_data, &raw const state) }) != 0
            {
                stop.cancel();
            }
        }
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(result?)
    })
}
