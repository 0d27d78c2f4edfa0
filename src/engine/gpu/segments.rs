//! Memory that is larger than one buffer may be.

use std::ops::Range;

use super::context::{Context, Memory};
use crate::Result;

/// One address space in as many buffers as it takes: segments, all of the same size but the last one. What is used in it lies
/// within one of them.
pub struct Segments {
    buffers: Vec<Memory>,
    /// Bytes of a segment.
    size: usize,
}

impl Segments {
    /// `len` bytes for shaders, which can be written and copied.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub(super) fn new(context: &Context, label: &str, len: usize) -> Result<Self> {
        use wgpu::BufferUsages as Usage;
        let usage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let size = context.segment;
        let buffer = |index: usize| {
            let len = (len - index * size).min(size);
            context.buffer(label, len as u64, usage)
        };
        let buffers = (0..len.div_ceil(size).max(1)).map(buffer).collect::<Result<_>>()?;
        Ok(Self { buffers, size })
    }

    /// The buffer that a range of the address space lies in, and where it lies there.
    pub(super) fn part(&self, range: Range<usize>) -> (&Memory, Range<usize>) {
        let start = range.start % self.size;
        (&self.buffers[range.start / self.size], start..start + range.len())
    }
}

/// All maps.
pub struct Arena {
    segments: Segments,
    /// Bytes of each map, in one address space.
    ranges: Vec<Range<usize>>,
}

impl Arena {
    pub(super) fn new(context: &Context, ranges: Vec<Range<usize>>, len: usize) -> Result<Self> {
        Ok(Self { segments: Segments::new(context, "activations", len)?, ranges })
    }

    /// The buffer that the map of a tensor lies in, and its bytes there.
    pub fn map(&self, tensor: usize) -> (&Memory, Range<usize>) {
        self.segments.part(self.ranges[tensor].clone())
    }
}
