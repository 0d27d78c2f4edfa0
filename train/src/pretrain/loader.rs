//! Samples that are prepared in background threads, delivered in the order of their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mdm::{Control, Error, Result};

use super::sample::{LeftOut, Sample, Sampler};
use crate::ranks::Share;

/// How long a thread sleeps before it looks again whether a call was cancelled.
const PATIENCE: Duration = Duration::from_millis(50);

pub(crate) struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    sampler: Arc<Sampler>,
    share: Share,
    state: Mutex<State>,
    /// Told when a sample is ready, and when there is room for more.
    changed: Condvar,
    ahead: u64,
}

/// Numbers are counted among the samples of this rank.
#[derive(Default)]
struct State {
    /// The number that is delivered next.
    wanted: u64,
    /// The number that nobody works on yet.
    next: u64,
    /// Counts how often the position was changed: samples of an older one are dropped.
    era: u64,
    ready: BTreeMap<u64, Result<Sample>>,
    left_out: Vec<LeftOut>,
    /// Images that were reported.
    reported: BTreeSet<usize>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            while !state.stop && state.next >= state.wanted + self.ahead {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            let (number, era) = (state.next, state.era);
            state.next += 1;
            drop(state);
            let mut left_out = Vec::new();
            let sample = self.sampler.sample(self.share.number(number), &mut |image| left_out.push(image));
            let mut state = self.lock();
            for image in left_out {
                if state.reported.insert(image.index) {
                    state.left_out.push(image);
                }
            }
            if state.era == era {
                state.ready.insert(number, sample);
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

impl Loader {
    /// Prepares up to `ahead` samples of `share` in `threads` threads, from number `first` of them on.
    pub(crate) fn new(
        sampler: Arc<Sampler>,
        share: Share,
        threads: usize,
        ahead: usize,
        first: u64,
    ) -> Result<Self> {
        let state = Mutex::new(State { wanted: first, next: first, ..State::default() });
        let shared =
            Arc::new(Shared { sampler, share, state, changed: Condvar::new(), ahead: ahead.max(1) as u64 });
        let mut loader = Self { shared, threads: Vec::new() };
        for _ in 0..threads.max(1) {
            let shared = loader.shared.clone();
            let work = move || {
                mdm::threads::claim();
                shared.work();
            };
            let thread = std::thread::Builder::new().name("mdm-images".into()).spawn(work);
            loader.threads.push(thread.map_err(|error| Error::OutOfMemory(format!("a thread: {error}")))?);
        }
        Ok(loader)
    }

    /// The next sample, and how long it was waited for.
    pub(crate) fn next(&self, control: &Control<'_>) -> Result<(Sample, Duration)> {
        let start = Instant::now();
        let mut state = self.shared.lock();
        loop {
            let wanted = state.wanted;
            if let Some(sample) = state.ready.remove(&wanted) {
                state.wanted += 1;
                drop(state);
                self.shared.changed.notify_all();
                return Ok((sample?, start.elapsed()));
            }
            control.check()?;
            let waited = self.shared.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Goes on at number `first`.
    pub(crate) fn seek(&self, first: u64) {
        let mut state = self.shared.lock();
        state.wanted = first;
        state.next = first;
        state.era += 1;
        state.ready.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Images that turned out to be unusable since the last call.
    pub(crate) fn left_out(&self) -> Vec<LeftOut> {
        std::mem::take(&mut self.shared.lock().left_out)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Panics were caught where images are read.
            let _ = thread.join();
        }
    }
}
