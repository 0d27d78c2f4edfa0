//! The threads of an engine.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::{Control, Error, Result};

/// A pool of threads. They have ended when it is dropped, so that nothing of a host's objects outlives them.
pub struct Pool {
    // Dropped first, which asks the threads to end.
    pool: rayon::ThreadPool,
    _threads: Threads,
    turns: Turns,
    /// The process whose threads they are.
    process: u32,
}

impl Pool {
    pub(super) fn new(count: usize) -> Result<Self> {
        let mut threads = Threads(Vec::with_capacity(count));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("mdm-{index}"))
            .spawn_handler(|thread| {
                let builder = Builder::new().name(thread.name().unwrap_or("mdm").to_owned());
                let work = || {
                    crate::threads::claim();
                    thread.run();
                };
                threads.0.push(builder.spawn(work)?);
                Ok(())
            })
            .build()
            .map_err(|error| {
                Error::Device(format!("cannot start {count} threads: {error}; ask for fewer"))
            })?;
        Ok(Self { pool, _threads: threads, turns: Turns::default(), process: std::process::id() })
    }
}

impl Pool {
    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Does `work` on the threads of the pool, in which parallel iterators then run. One caller comes after another, in the
    /// order in which they came, and waits without doing anything else: neither what a host's pool has queued, which might
    /// want what this caller has locked, nor another caller's work.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Cancelled`] while it waits; [`Error::Device`] in a process that was forked after the pool was
    /// made, where its threads are not.
    pub fn run<R: Send>(&self, control: &Control<'_>, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        if self.process != std::process::id() {
            return Err(Error::Device(
                "the CPU device was made before this process was forked; open it anew after the fork".into(),
            ));
        }
        if self.pool.current_thread_index().is_some() {
            return work();
        }
        let _turn = self.turns.wait(control)?;
        if rayon::current_thread_index().is_none() {
            return self.pool.install(work);
        }
        // A worker of another pool would take up that pool's work while it waits for this one.
        std::thread::scope(|scope| match scope.spawn(|| self.pool.install(work)).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

/// Lets one caller in after another.
#[derive(Default)]
struct Turns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Who is inside and who waits, in order.
    callers: VecDeque<u64>,
    last: u64,
}

/// How often somebody who waits looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(5);

impl Turns {
    /// Waits until all who came before are done.
    fn wait(&self, control: &Control<'_>) -> Result<Turn<'_>> {
        let mut queue = self.lock();
        queue.last += 1;
        let turn = Turn { turns: self, number: queue.last };
        queue.callers.push_back(turn.number);
        while queue.callers.front() != Some(&turn.number) {
            let waited = self.changed.wait_timeout(queue, LOOK);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            if let Err(cancelled) = control.check() {
                // Leaving locks the queue.
                drop(queue);
                return Err(cancelled);
            }
        }
        drop(queue);
        Ok(turn)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here panics.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, left when dropped.
struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().callers.retain(|&number| number != self.number);
        self.turns.changed.notify_all();
    }
}

/// Waited for when dropped.
struct Threads(Vec<JoinHandle<()>>);

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            // The last owner may be one of them.
            if thread.thread().id() != std::thread::current().id() {
                // Rayon catches panics of the work.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use rayon::iter::{IntoParallelIterator, ParallelIterator};

    use super::*;
    use crate::CancelToken;

    #[test]
    fn a_waiting_worker_of_a_host_does_not_take_up_other_work() {
        thread_local!(static INSIDE: AtomicUsize = const { AtomicUsize::new(0) });
        let (host, pool) =
            (rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap(), Pool::new(2).unwrap());
        let deepest = host.install(|| {
            let call = |_| {
                let depth = INSIDE.with(|inside| inside.fetch_add(1, Ordering::Relaxed));
                let work = || Ok((0..100).into_par_iter().map(|i| i * i % 7).sum::<usize>());
                pool.run(&Control::none(), work).unwrap();
                INSIDE.with(|inside| inside.fetch_sub(1, Ordering::Relaxed));
                depth
            };
            (0..64).into_par_iter().map(call).max()
        });
        assert_eq!(deepest, Some(0));
    }

    #[test]
    fn waiting_ends_when_it_is_cancelled_and_others_go_on() {
        let pool = Pool::new(1).unwrap();
        std::thread::scope(|scope| {
            let (begun, has_begun) = mpsc::channel();
            let (end, ends) = mpsc::channel::<()>();
            let pool = &pool;
            let long = scope.spawn(move || {
                pool.run(&Control::none(), move || {
                    begun.send(()).unwrap();
                    ends.recv().unwrap();
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            let token = CancelToken::new();
            let control = Control::none().with_cancel(&token);
            let cancelled = scope.spawn(move || pool.run(&control, || Ok(())));
            let third = scope.spawn(move || pool.run(&Control::none(), || Ok(3)));
            token.cancel();
            assert!(matches!(cancelled.join().unwrap(), Err(Error::Cancelled)));
            end.send(()).unwrap();
            assert!(long.join().unwrap().is_ok());
            assert_eq!(third.join().unwrap().unwrap(), 3);
        });
    }

    #[test]
    fn work_may_panic_and_may_run_work() {
        let pool = Pool::new(2).unwrap();
        let run =
            || pool.run(&Control::none(), || -> Result<()> { std::panic::resume_unwind(Box::new("work")) });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        let nested = pool.run(&Control::none(), || pool.run(&Control::none(), || Ok(1)));
        assert_eq!(nested.unwrap(), 1);
    }

    #[test]
    fn threads_of_another_process_are_not_waited_for() {
        let mut pool = Pool::new(1).unwrap();
        pool.process += 1;
        let result = pool.run(&Control::none(), || Ok(()));
        assert!(matches!(result, Err(Error::Device(reason)) if reason.contains("forked")));
    }
}
