//! Processes that train one backbone together, on one machine or several.
//!
//! Every process ("rank") has the whole network and computes its share of each batch; gradients are added up before each
//! update, so that all of them hold the same parameters at all times. A run is the same function of its recipe however many
//! ranks there are, up to the order in which gradients are added.

#[cfg(feature = "mpi")]
mod mpi;

#[cfg(feature = "mpi")]
pub use self::mpi::MpiRanks;

use mdm::{Error, Result};

/// What ranks need of each other. All of them make the same calls in the same order.
pub trait Ranks {
    /// Number of this process, from 0 on. Number 0 writes files.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn count(&self) -> usize;

    /// Replaces `values` by their sums over all ranks. The same bits arrive everywhere.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] where another rank cannot be reached any more; transports may end the process instead.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// As [`sum`](Self::sum), for a few numbers.
    ///
    /// # Errors
    /// As there.
    fn sum_exactly(&self, values: &mut [f64]) -> Result<()>;
}

/// A process that trains without others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn sum_exactly(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }
}

/// The part of a run's samples that a rank computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Samples of a step of all ranks.
    pub(crate) batch: u64,
    /// Samples of a step of this one.
    pub(crate) own: u64,
    /// The first of these within the step.
    pub(crate) first: u64,
}

impl Share {
    /// That of `ranks` in steps of `batch` samples, which it computes `microbatch` at a time.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the batch cannot be divided.
    pub(crate) fn of(ranks: &dyn Ranks, batch: usize, microbatch: usize) -> Result<Self> {
        let count = ranks.count();
        if !batch.is_multiple_of(count * microbatch) {
            return Err(Error::invalid(
                "batch",
                format!(
                    "{batch} samples cannot be divided among {count} processes in micro-batches of {microbatch}"
                ),
            ));
        }
        let own = (batch / count) as u64;
        Ok(Self { batch: batch as u64, own, first: own * ranks.rank() as u64 })
    }

    /// Where this rank's samples of step `step` begin, counted among its own.
    pub(crate) fn begin(self, step: u64) -> u64 {
        step * self.own
    }

    /// The number among all samples of the run of this rank's sample number `own`.
    pub(crate) fn number(self, own: u64) -> u64 {
        own / self.own * self.batch + self.first + own % self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Third;

    impl Ranks for Third {
        fn rank(&self) -> usize {
            2
        }

        fn count(&self) -> usize {
            4
        }

        fn sum(&self, _values: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn sum_exactly(&self, _values: &mut [f64]) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn ranks_share_the_samples_of_each_step() {
        let share = Share::of(&Third, 16, 2).unwrap();
        let numbers: Vec<u64> = (share.begin(3)..share.begin(4)).map(|own| share.number(own)).collect();
        assert_eq!(numbers, [56, 57, 58, 59]);
        let alone = Share::of(&Alone, 16, 2).unwrap();
        assert!((0..100).all(|own| alone.number(own) == own));
        assert!(Share::of(&Third, 12, 2).unwrap_err().to_string().contains("4 processes"));
    }
}
