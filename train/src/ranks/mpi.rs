//! Ranks that an MPI launcher (`mpiexec`, `srun`) started.

use std::cell::RefCell;

use mdm::{Error, Result};
use mpi::Threading;
use mpi::collective::{CommunicatorCollectives, SystemOperation};
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};

use super::Ranks;

/// Values that are added up at a time. A copy of that many is needed.
const CHUNK: usize = 1 << 20;

/// The processes of `MPI_COMM_WORLD`. It stays on the thread that made it; while it lives, so does MPI.
///
/// As is usual with MPI, a rank that dies or cannot be reached ends all of them.
pub struct MpiRanks {
    world: SimpleCommunicator,
    copy: RefCell<Vec<f32>>,
    _universe: Universe,
}

impl MpiRanks {
    /// Starts MPI. A process that was not started by a launcher is alone.
    ///
    /// # Errors
    /// [`Error::Device`] where MPI was started in this process before, or cannot be used beside threads.
    pub fn new() -> Result<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::Device("MPI was started in this process before".into()))?;
        if threading < Threading::Funneled {
            return Err(Error::Device("this MPI cannot be used in a process with threads".into()));
        }
        Ok(Self { world: universe.world(), copy: RefCell::default(), _universe: universe })
    }

    /// Ends all ranks at once, for errors of one that the others cannot know of.
    pub fn abort(&self, exit_code: i32) -> ! {
        self.world.abort(exit_code)
    }
}

impl Ranks for MpiRanks {
    fn rank(&self) -> usize {
        usize::try_from(self.world.rank()).unwrap_or(0)
    }

    fn count(&self) -> usize {
        usize::try_from(self.world.size()).unwrap_or(1)
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        if self.count() == 1 {
            return Ok(());
        }
        let mut copy = self.copy.borrow_mut();
        for chunk in values.chunks_mut(CHUNK) {
            copy.clear();
            copy.extend_from_slice(chunk);
            self.world.all_reduce_into(&copy[..], chunk, SystemOperation::sum());
        }
        Ok(())
    }

    fn sum_exactly(&self, values: &mut [f64]) -> Result<()> {
        let copy = values.to_vec();
        self.world.all_reduce_into(&copy[..], values, SystemOperation::sum());
        Ok(())
    }
}
