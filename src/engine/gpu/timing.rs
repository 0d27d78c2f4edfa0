//! How long each operation takes, by the device's own clock.

use super::context::{Context, Memory};
use super::submit::map;
use crate::Result;

/// A pair of timestamps for each operation.
pub struct Timing {
    queries: wgpu::QuerySet,
    resolved: Memory,
    read: Memory,
    count: u32,
}

/// The timestamps of one operation.
pub struct OperationTiming<'a> {
    queries: &'a wgpu::QuerySet,
    first: u32,
}

impl Timing {
    pub fn new(context: &Context, operations: usize) -> Result<Self> {
        let most = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let count = 2 * operations.min(most) as u32;
        let queries = context.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("operations"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let size = 8 * u64::from(count);
        use wgpu::BufferUsages as Usage;
        Ok(Self {
            queries,
            resolved: context.buffer("timestamps", size, Usage::QUERY_RESOLVE | Usage::COPY_SRC)?,
            read: context.buffer("timestamps", size, Usage::COPY_DST | Usage::MAP_READ)?,
            count,
        })
    }

    /// The timestamps of an operation; the first ones of a plan have some, as many as a query set holds.
    pub fn of_operation(&self, index: usize) -> Option<OperationTiming<'_>> {
        let first = u32::try_from(index).ok()?.checked_mul(2).filter(|first| first + 1 < self.count)?;
        Some(OperationTiming { queries: &self.queries, first })
    }

    pub fn resolve(&self, commands: &mut wgpu::CommandEncoder) {
        commands.resolve_query_set(&self.queries, 0..self.count, &self.resolved.buffer, 0);
        commands.copy_buffer_to_buffer(
            &self.resolved.buffer,
            0,
            &self.read.buffer,
            0,
            Some(8 * u64::from(self.count)),
        );
    }

    /// Seconds of each operation of the last run, zeros where they have no timestamps.
    pub fn read(&self, context: &Context, operations: usize) -> Result<Vec<f64>> {
        let period = f64::from(context.queue.get_timestamp_period()) * 1e-9;
        let bytes = map(context, &self.read.buffer)?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes[..8 * self.count as usize]);
        drop(bytes);
        self.read.buffer.unmap();
        let mut seconds: Vec<f64> =
            ticks.chunks_exact(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period).collect();
        seconds.resize(operations, 0.0);
        Ok(seconds)
    }
}

impl<'a> OperationTiming<'a> {
    /// What a pass writes that begins the operation, ends it, or both.
    pub fn writes(&self, begins: bool, ends: bool) -> Option<wgpu::ComputePassTimestampWrites<'a>> {
        (begins || ends).then_some(wgpu::ComputePassTimestampWrites {
            query_set: self.queries,
            beginning_of_pass_write_index: begins.then_some(self.first),
            end_of_pass_write_index: ends.then_some(self.first + 1),
        })
    }
}
