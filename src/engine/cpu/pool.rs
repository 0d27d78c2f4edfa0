//! The threads of an engine.

use std::ops::Deref;
use std::thread::{Builder, JoinHandle};

use crate::{Error, Result};

/// A pool of threads. They have ended when it is dropped, so that nothing of a host's objects outlives them.
pub struct Pool {
    // Dropped first, which asks the threads to end.
    pool: rayon::ThreadPool,
    _threads: Threads,
}

impl Pool {
    pub(super) fn new(count: usize) -> Result<Self> {
        let mut threads = Threads(Vec::with_capacity(count));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("mdm-{index}"))
            .spawn_handler(|thread| {
                let builder = Builder::new().name(thread.name().unwrap_or("mdm").to_owned());
                threads.0.push(builder.spawn(|| thread.run())?);
                Ok(())
            })
            .build()
            .map_err(|error| {
                Error::Device(format!("cannot start {count} threads: {error}; ask for fewer"))
            })?;
        Ok(Self { pool, _threads: threads })
    }
}

impl Deref for Pool {
    type Target = rayon::ThreadPool;

    fn deref(&self) -> &rayon::ThreadPool {
        &self.pool
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
