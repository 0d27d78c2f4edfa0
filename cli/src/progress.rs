//! A progress bar on terminals.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bar steps an item: items advance by their windows.
const STEPS: u64 = 1000;

/// Progress over items (images) made of windows. Draws nothing unless standard error is a terminal.
pub(crate) struct ItemProgress {
    bar: ProgressBar,
    state: Mutex<State>,
    began: Instant,
}

struct State {
    item: u64,
    items: u64,
    /// Windows of the items before this one.
    windows_before: u64,
    windows: u64,
}

impl ItemProgress {
    pub(crate) fn new(items: usize) -> Self {
        let bar = styled(items as u64 * STEPS);
        bar.enable_steady_tick(Duration::from_millis(200));
        let state = State { item: 0, items: items as u64, windows_before: 0, windows: 0 };
        Self { bar, state: Mutex::new(state), began: Instant::now() }
    }

    /// Begins the next item.
    pub(crate) fn begin(&self, item: usize) {
        self.update(|state| {
            state.item = item as u64;
            state.windows_before += state.windows;
            state.windows = 0;
            0
        });
    }

    /// Of the current item, so many windows are done.
    pub(crate) fn windows(&self, done: u64, total: u64) {
        self.update(|state| {
            state.windows = done;
            done * STEPS / total.max(1)
        });
    }

    fn update(&self, change: impl FnOnce(&mut State) -> u64) {
        let Ok(mut state) = self.state.lock() else { return };
        let part = change(&mut state);
        self.bar.set_position(state.item * STEPS + part.min(STEPS));
        let rate =
            (state.windows_before + state.windows) as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let (item, items) = (state.item, state.items);
        self.bar.set_message(format!("{item}/{items} images, {rate:.1} windows/s"));
    }

    /// Runs something that prints.
    pub(crate) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of one call that counts its own steps.
pub(crate) struct StepProgress(ProgressBar);

impl StepProgress {
    pub(crate) fn new(what: &'static str) -> Self {
        let bar = styled(0);
        bar.set_message(what);
        Self(bar)
    }

    pub(crate) fn report(&self, progress: mdm::Progress) {
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
    }

    /// Runs something that prints.
    pub(crate) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.suspend(work)
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

fn styled(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template("[{elapsed_precise}] {wide_bar} {percent}% {msg}, {eta} left")
    {
        bar.set_style(style);
    }
    bar
}

/// Progress of a training run, in lines where standard error is no terminal.
pub(crate) struct TrainingProgress {
    bar: ProgressBar,
    printed: Mutex<Instant>,
    terminal: bool,
}

impl TrainingProgress {
    /// Between two lines.
    const LINES: Duration = Duration::from_secs(60);

    pub(crate) fn new(done: u64, steps: u64) -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let bar =
            ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr()).with_position(done);
        bar.reset_eta();
        let template = "[{elapsed_precise}] {wide_bar} {pos}/{len} {msg}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, printed: Mutex::new(Instant::now()), terminal }
    }

    /// So many steps are done, of `steps`; `message` says more.
    pub(crate) fn report(&self, step: u64, steps: u64, message: String) {
        if self.terminal {
            self.show(step, message);
        } else if self.is_due(step == steps) {
            eprintln!("step {step} of {steps}: {message}");
        }
    }

    /// This part of a run is done that was made of 1000 steps; `message` says more.
    pub(crate) fn report_part(&self, done: f64, message: String) {
        if self.terminal {
            self.show((1000.0 * done) as u64, message);
        } else if self.is_due(done >= 1.0) {
            eprintln!("{:.0} %: {message}", 100.0 * done);
        }
    }

    fn show(&self, position: u64, message: String) {
        self.bar.set_message(message);
        self.bar.set_position(position);
    }

    /// Whether it is time for a line, as it always is at the end.
    fn is_due(&self, end: bool) -> bool {
        let Ok(mut printed) = self.printed.lock() else { return false };
        let due = end || printed.elapsed() >= Self::LINES;
        if due {
            *printed = Instant::now();
        }
        due
    }

    /// Runs something that prints.
    pub(crate) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
