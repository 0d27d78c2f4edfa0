//! Places tensors in the arena by liveness.

use std::ops::Range;

use super::{Op, TensorId, TensorInfo};
use crate::{Error, Result};

/// Tensors start at multiples of this many f32, one cache line.
pub const ALIGNMENT: usize = 16;

/// Gives every tensor a range of the arena such that tensors alive at the same time do not overlap. Returns the
/// arena's length, in units of f32.
///
/// `given` are alive from the start, `kept` to the end.
pub(super) fn place(
    tensors: &mut [TensorInfo],
    ops: &[Op],
    batch: usize,
    given: &[TensorId],
    kept: &[TensorId],
) -> Result<usize> {
    let mut lengths = Vec::with_capacity(tensors.len());
    for tensor in tensors.iter() {
        let length = [tensor.height, tensor.width, tensor.channels, batch]
            .iter()
            .try_fold(1usize, |product, &factor| product.checked_mul(factor))
            .filter(|&length| length <= isize::MAX as usize / 64)
            .ok_or_else(too_large)?;
        lengths.push(length);
    }
    let (ranges, arena) = arrange(&lengths, ALIGNMENT, UNDIVIDED, &accesses(ops), given, kept)?;
    for (tensor, range) in tensors.iter_mut().zip(ranges) {
        tensor.range = range;
    }
    Ok(arena)
}

/// What a step reads and what it writes.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Tensors that have a value before the step.
    pub reads: Vec<TensorId>,
    /// Tensors that get their value in the step.
    pub writes: Vec<TensorId>,
}

/// What each operation reads and writes.
pub fn accesses(ops: &[Op]) -> Vec<Access> {
    ops.iter().map(|op| Access { reads: op.inputs(), writes: vec![op.output()] }).collect()
}

/// A segment that nothing is larger than.
pub const UNDIVIDED: usize = usize::MAX;

/// The lowest offset from `start` on where `len` lie within one segment, which is no shorter.
pub fn within_a_segment(start: usize, len: usize, segment: usize) -> usize {
    let left = segment - start % segment;
    if len <= left { start } else { start.saturating_add(left) }
}

/// Ranges of the given lengths for all tensors, at multiples of `alignment`, and what they take together. Larger tensors
/// are placed first, each at the lowest offset that is free throughout its life.
///
/// Each lies within one of the segments that the arena is divided into; their size is a multiple of `alignment`, or
/// [`UNDIVIDED`].
///
/// # Errors
/// [`Error::OutOfMemory`] for a tensor that is larger than a segment.
pub fn arrange(
    lengths: &[usize],
    alignment: usize,
    segment: usize,
    steps: &[Access],
    given: &[TensorId],
    kept: &[TensorId],
) -> Result<(Vec<Range<usize>>, usize)> {
    let lives = lifetimes(lengths.len(), steps, given, kept);
    let mut order: Vec<TensorId> = (0..lengths.len()).collect();
    order.sort_by_key(|&id| (std::cmp::Reverse(lengths[id]), id));

    let mut ranges = vec![0..0; lengths.len()];
    let mut placed: Vec<TensorId> = Vec::with_capacity(order.len());
    let mut arena = 0;
    for id in order.into_iter().filter(|&id| lengths[id] > 0) {
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&other| lives[other].start < lives[id].end && lives[id].start < lives[other].end)
            .map(|&other| ranges[other].clone())
            .collect();
        taken.sort_by_key(|range: &Range<usize>| range.start);
        let padded = lengths[id].next_multiple_of(alignment);
        if padded > segment {
            return Err(Error::OutOfMemory(format!(
                "a map takes {} MiB, the device has buffers of {}; use smaller batches or windows",
                lengths[id] >> 20,
                segment >> 20
            )));
        }
        let mut start = 0;
        for range in taken {
            if range.start.saturating_sub(start) >= padded {
                break;
            }
            let next = start.max(range.end.next_multiple_of(alignment));
            start = within_a_segment(next, padded, segment);
        }
        let end = start.checked_add(padded).ok_or_else(too_large)?;
        ranges[id] = start..start + lengths[id];
        arena = arena.max(end);
        placed.push(id);
    }
    Ok((ranges, arena))
}

fn too_large() -> Error {
    Error::OutOfMemory("the network's activations exceed the address space; use smaller windows".into())
}

/// For each tensor the times during which it holds a value: time i + 1 is the execution of step i.
fn lifetimes(count: usize, steps: &[Access], given: &[TensorId], kept: &[TensorId]) -> Vec<Range<usize>> {
    let mut lives = vec![0..0; count];
    for &id in given {
        lives[id] = 0..1;
    }
    for (index, step) in steps.iter().enumerate() {
        for &id in &step.writes {
            lives[id] = index + 1..index + 2;
        }
        for &id in &step.reads {
            lives[id].end = index + 2;
        }
    }
    for &id in kept {
        lives[id].end = steps.len() + 2;
    }
    lives
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn tensors_lie_within_segments() {
        // Each is read by the step after the one that writes it; the first one stays.
        let lengths = [100, 700, 90, 640, 33, 1, 0, 512];
        let steps: Vec<Access> =
            (1..lengths.len()).map(|id| Access { reads: vec![id - 1, 0], writes: vec![id] }).collect();
        let lives = lifetimes(lengths.len(), &steps, &[0], &[7]);
        for segment in [704, 768, 1024, UNDIVIDED] {
            let (ranges, arena) = arrange(&lengths, 64, segment, &steps, &[0], &[7]).unwrap();
            for (id, range) in ranges.iter().enumerate().filter(|(id, _)| lengths[*id] > 0) {
                assert_eq!(range.len(), lengths[id]);
                assert!(range.start % 64 == 0 && range.end <= arena);
                assert_eq!(range.start / segment, (range.end - 1) / segment, "{range:?} of {segment}");
                for (other, taken) in ranges.iter().enumerate().filter(|(other, _)| *other != id) {
                    let together = lives[id].start < lives[other].end && lives[other].start < lives[id].end;
                    let apart = range.end <= taken.start || taken.end <= range.start;
                    assert!(!together || apart || lengths[other] == 0, "{id} and {other}");
                }
            }
            assert!(segment > 768 || arena > segment);
        }
        assert!(matches!(arrange(&lengths, 64, 640, &steps, &[0], &[7]), Err(Error::OutOfMemory(_))));
    }
}
