//! Progress and cancellation of long calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// A flag that any thread may raise to stop a running call. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every call that was given this token to stop; they return [`Error::Cancelled`] soon after.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Units of work done: windows when segmenting or extracting features, optimiser steps when fitting.
    pub done: u64,
    /// Units of work in all; constant during one call.
    pub total: u64,
}

/// What a caller hands to a long call: a way to stop it and a way to watch it.
#[derive(Clone, Default)]
pub struct Control<'a> {
    cancel: Vec<CancelToken>,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl<'a> Control<'a> {
    /// Neither watched nor stopped.
    pub fn none() -> Self {
        Self::default()
    }

    /// Stops when `token`, or one that was given before, is raised.
    pub fn with_cancel(mut self, token: &CancelToken) -> Self {
        self.cancel.push(token.clone());
        self
    }

    /// Calls `report` now and then, from one thread at a time. It may cancel the token it was built with.
    pub fn with_progress(mut self, report: &'a (dyn Fn(Progress) + Sync)) -> Self {
        self.progress = Some(report);
        self
    }

    /// [`Error::Cancelled`] once the token was raised.
    pub fn check(&self) -> Result<()> {
        if self.cancel.iter().any(CancelToken::is_cancelled) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reports progress to whoever watches.
    pub fn report(&self, done: u64, total: u64) {
        if let Some(report) = self.progress {
            report(Progress { done, total });
        }
    }

    /// The same cancellation, unwatched: for a step inside a call that reports its own progress.
    pub fn quiet(&self) -> Control<'static> {
        Control { cancel: self.cancel.clone(), progress: None }
    }
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("cancel", &self.cancel)
            .field("watched", &self.progress.is_some())
            .finish()
    }
}
