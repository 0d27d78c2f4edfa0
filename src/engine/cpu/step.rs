//! What operations of the engine have in common.

#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use super::buffer::{Buffer, SharedMut};
use super::reader::{Map, Reader};
use super::simd::{InstructionSet, Kernel};
use crate::corruption::NoiseKey;
use crate::plan::{Plan, Source, TensorId};

/// An operation with its packed parameters.
pub trait Step: Send + Sync {
    /// Scratch memory it needs.
    fn scratch(&self) -> ScratchSize {
        ScratchSize::default()
    }

    /// Computes the output.
    fn run(&self, context: &Context<'_>);
}

/// Scratch memory in units of f32.
#[derive(Clone, Copy, Default)]
pub struct ScratchSize {
    /// One buffer for the whole operation.
    pub shared: usize,
    /// One buffer for each thread.
    pub private: usize,
}

/// What an operation sees while it runs.
pub struct Context<'a> {
    pub set: InstructionSet,
    /// Terms after which products put their sums [aside](super::sums::Runs).
    pub terms: usize,
    pub plan: &'a Plan,
    pub arena: SharedMut,
    pub classes: &'a [u32],
    /// One a sample for a plan that reads noise.
    pub noise: &'a [NoiseKey],
    pub shared: SharedMut,
    pub private: &'a [Mutex<Buffer>],
}

impl Context<'_> {
    pub fn batch(&self) -> usize {
        self.plan.options.batch
    }

    /// A tensor that the operation reads.
    pub fn map(&self, id: TensorId) -> Map {
        let tensor = &self.plan.tensors[id];
        // SAFETY: the plan was checked: ranges lie in the arena.
        let data = unsafe { self.arena.add(tensor.range.start) }.get();
        Map { data, height: tensor.height, width: tensor.width, channels: tensor.channels }
    }

    /// The tensor that the operation writes. The plan was checked: it overlaps nothing that the operation reads.
    pub fn output(&self, id: TensorId) -> SharedMut {
        // SAFETY: as above.
        unsafe { self.arena.add(self.plan.tensors[id].range.start) }
    }

    pub fn reader(&self, source: &Source) -> Reader {
        Reader {
            parts: source.parts.iter().map(|&part| self.map(part)).collect(),
            norm: source.norm.map(|norm| (self.map(norm.coefficients), norm.silu)),
            resample: source.resample,
        }
    }

    /// Calls `task` for `0..count` on all threads of the pool that this runs in.
    pub fn parallel(&self, count: usize, task: impl Fn(usize) + Sync + Send) {
        if count <= 1 || self.private.len() == 1 {
            (0..count).for_each(task);
        } else {
            (0..count).into_par_iter().with_max_len(1).for_each(task);
        }
    }

    /// The calling thread's own scratch memory.
    pub fn with_private<R>(&self, work: impl FnOnce(*mut f32) -> R) -> R {
        let thread = rayon::current_thread_index().unwrap_or(0);
        // A poisoned lock means that a task panicked; its scratch memory is as good as any.
        let mut buffer = self.private[thread].lock().unwrap_or_else(PoisonError::into_inner);
        work(buffer.slice_mut().as_mut_ptr())
    }

    /// Runs `kernel` with the engine's instruction set.
    ///
    /// # Safety
    /// The kernel's fields keep their promises.
    pub unsafe fn dispatch<K: Kernel>(&self, kernel: K) -> K::Output {
        // SAFETY: the engine chose one of the available sets.
        unsafe { self.set.run(kernel) }
    }
}
