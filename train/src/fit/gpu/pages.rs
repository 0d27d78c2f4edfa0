//! Samples in a device's memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use mdm::Result;
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::shader::ValueType;
use mdm::engine::gpu::weights::write;
use wgpu::BufferUsages as Usage;

use crate::fit::samples::Parts;

/// Bytes that are on their way to the device at a time.
const CHUNK: usize = 32 << 20;

/// All samples' features, in pages that the device can bind. Labels stay on the host, which hands them over with each step.
pub(super) struct Pages {
    /// With the numbers of the samples on each.
    pub(super) pages: Vec<(Range<usize>, Arc<Memory>)>,
    pub(super) labels: Arc<[u8]>,
}

impl Pages {
    /// With at most `most` bytes a page, unless one sample has more.
    pub(super) fn new(context: &Context, samples: &Parts<'_>, most: usize) -> Result<Self> {
        let row = size_of::<f32>() * samples.channels();
        let (rows, chunk) = ((most / row).max(1), (CHUNK / row).max(1));
        let mut pages = Vec::new();
        for start in (0..samples.len()).step_by(rows) {
            let range = start..samples.len().min(start + rows);
            let usage = Usage::STORAGE | Usage::COPY_DST;
            let page = context.buffer("samples", (row * range.len()) as u64, usage)?;
            for first in range.clone().step_by(chunk) {
                let end = range.end.min(first + chunk);
                let values: Vec<f32> =
                    (first..end).flat_map(|index| samples.features(index)).copied().collect();
                write(context, &page.buffer, (row * (first - start)) as u64, &values, ValueType::F32);
                let submission = context.queue.submit([]);
                context.wait(Some(submission), Instant::now(), 0.0)?;
            }
            pages.push((range, Arc::new(page)));
        }
        let labels = (0..samples.len()).map(|index| samples.label(index)).collect();
        Ok(Self { pages, labels })
    }
}
