//! Work on its way to the device, in pieces that it finishes soon.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::context::{Context, GRID_WIDTH, Memory, PATIENCE};
use super::pipeline::Pipeline;
use super::shader::{BindingKind, Permutation};
use super::timing::OperationTiming;
use crate::control::Control;
use crate::engine::RunCost;
use crate::{Error, Result};

/// A call of a shader with everything it needs.
pub struct Dispatch {
    pipeline: Arc<Pipeline>,
    bindings: wgpu::BindGroup,
    workgroups: u32,
    /// Multiplications, roughly.
    work: f64,
}

/// A part of a buffer that a shader is given.
pub struct Bound<'a> {
    buffer: &'a wgpu::Buffer,
    start: usize,
    len: usize,
}

impl<'a> Bound<'a> {
    /// `len` bytes from `start`.
    pub fn part(memory: &'a Memory, start: usize, len: usize) -> Self {
        Self { buffer: &memory.buffer, start, len }
    }

    pub fn whole(memory: &'a Memory) -> Self {
        Self::part(memory, 0, memory.size() as usize)
    }
}

impl Dispatch {
    /// `bind` says what each of the shader's bindings gets.
    pub fn new<'a>(
        context: &Context,
        permutation: Permutation,
        workgroups: u32,
        work: f64,
        bind: impl Fn(u32, BindingKind) -> Bound<'a>,
    ) -> Result<Self> {
        let pipeline = context.pipelines.get(permutation)?;
        let mut entries = Vec::with_capacity(pipeline.bindings.len());
        for &(binding, kind) in &pipeline.bindings {
            let Bound { buffer, start, len } = bind(binding, kind);
            // Shaders that read four values at a time read the last ones too; parts begin at multiples of more.
            let len = len.next_multiple_of(16) as u64;
            let most = context.limits.max_storage_buffer_binding_size;
            if len > most {
                return Err(Error::OutOfMemory(format!(
                    "a map takes {} MiB, the device binds {} MiB at a time; use smaller batches or windows",
                    len >> 20,
                    most >> 20
                )));
            }
            let size = std::num::NonZeroU64::new(len);
            let part = wgpu::BufferBinding { buffer, offset: start as u64, size };
            entries.push(wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) });
        }
        let bindings = context.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        if workgroups / GRID_WIDTH >= context.limits.max_compute_workgroups_per_dimension {
            return Err(super::call::too_large("an operation"));
        }
        Ok(Self { pipeline, bindings, workgroups, work: work.max(1.0) })
    }
}

/// A part of a dispatch.
struct Piece<'a> {
    dispatch: &'a Dispatch,
    first: u32,
    count: u32,
    timestamps: Option<wgpu::ComputePassTimestampWrites<'a>>,
}

/// A submission that the device works on.
pub struct Submitted {
    index: wgpu::SubmissionIndex,
    /// When the device could begin it.
    began: Instant,
    work: f64,
}

/// Encodes and submits dispatches in pieces, at most two of them under way.
pub struct Encoder<'a> {
    context: &'a Context,
    control: &'a Control<'a>,
    pieces: Vec<Piece<'a>>,
    /// Multiplications of the pieces.
    work: f64,
    previous: Option<Submitted>,
    cost: RunCost,
    began: Instant,
    waited: Duration,
}

impl<'a> Encoder<'a> {
    /// `previous` is waited for once the next one is submitted.
    pub fn new(context: &'a Context, control: &'a Control<'a>, previous: Option<Submitted>) -> Self {
        Self {
            context,
            control,
            pieces: Vec::with_capacity(512),
            work: 0.0,
            previous,
            cost: RunCost::default(),
            began: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// What was handed over so far, and the host's time since the encoder was made, without what it waited for the device.
    pub fn cost(&self) -> RunCost {
        let host_seconds = self.began.elapsed().saturating_sub(self.waited).as_secs_f64();
        RunCost { host_seconds, ..self.cost }
    }

    fn room(&self) -> f64 {
        self.context.submission_work() - self.work
    }

    /// Adds the dispatches of an operation.
    ///
    /// # Errors
    /// [`Error::Cancelled`] between two submissions, and those of the device.
    pub fn operation(
        &mut self,
        dispatches: impl ExactSizeIterator<Item = &'a Dispatch>,
        timing: Option<&OperationTiming<'a>>,
    ) -> Result<()> {
        let dispatch_count = dispatches.len();
        for (i, dispatch) in dispatches.enumerate() {
            let mut first = 0;
            while first < dispatch.workgroups {
                if self.work > 0.0 && self.room() <= 0.0 {
                    self.submit(|_| ())?;
                    self.control.check()?;
                }
                let left = dispatch.workgroups - first;
                let of_one = dispatch.work / f64::from(dispatch.workgroups);
                let count = ((self.room() / of_one) as u32).clamp(1, left);
                let begins = i == 0 && first == 0;
                let ends = i + 1 == dispatch_count && count == left;
                let timestamps = timing.and_then(|timing| timing.writes(begins, ends));
                self.work += of_one * f64::from(count);
                self.pieces.push(Piece { dispatch, first, count, timestamps });
                first += count;
            }
        }
        Ok(())
    }

    /// Hands over the pieces and what `last` adds, and waits for what was handed over before, so that the device always has
    /// something to do.
    pub fn submit(&mut self, last: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<()> {
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        self.cost.dispatches += self.pieces.len();
        self.cost.submissions += 1;
        let mut pieces = self.pieces.drain(..).peekable();
        while let Some(mut piece) = pieces.next() {
            // A pass has timestamps at its ends only; what needs none shares one.
            let alone = piece.timestamps.is_some();
            let descriptor =
                wgpu::ComputePassDescriptor { label: None, timestamp_writes: piece.timestamps.take() };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            let mut bound: Option<&Dispatch> = None;
            loop {
                let Piece { dispatch, first, count, .. } = piece;
                if !bound.is_some_and(|bound| Arc::ptr_eq(&bound.pipeline, &dispatch.pipeline)) {
                    pass.set_pipeline(&dispatch.pipeline.pipeline);
                }
                if !bound.is_some_and(|bound| std::ptr::eq(bound, dispatch)) {
                    pass.set_bind_group(0, &dispatch.bindings, &[]);
                }
                bound = Some(dispatch);
                pass.set_immediates(0, bytemuck::cast_slice(&[first, first + count]));
                pass.dispatch_workgroups(count.min(GRID_WIDTH), count.div_ceil(GRID_WIDTH), 1);
                match pieces.next_if(|next| !alone && next.timestamps.is_none()) {
                    Some(next) => piece = next,
                    None => break,
                }
            }
        }
        drop(pieces);
        last(&mut encoder);
        let index = self.context.queue.submit([encoder.finish()]);
        let mut began = Instant::now();
        if self.previous.is_some() {
            self.wait()?;
            began = Instant::now();
        }
        self.previous = Some(Submitted { index, began, work: std::mem::take(&mut self.work) });
        Ok(())
    }

    /// Waits for the last submission.
    pub fn wait(&mut self) -> Result<()> {
        match self.previous.take() {
            Some(Submitted { index, began, work }) => {
                let since = Instant::now();
                let result = self.context.wait(Some(index), began, work);
                self.waited += since.elapsed();
                result
            }
            None => Ok(()),
        }
    }

    /// The last submission, for whoever comes next to wait for.
    pub fn leave(self) -> Option<Submitted> {
        self.previous
    }
}

/// The content of a buffer whose submissions are done.
pub fn map(context: &Context, buffer: &wgpu::Buffer) -> Result<wgpu::BufferView> {
    let (sender, receiver) = mpsc::channel();
    buffer.map_async(wgpu::MapMode::Read, .., move |result| {
        // Nobody listens any more once waiting has failed.
        let _ = sender.send(result);
    });
    context.wait(None, Instant::now(), 0.0)?;
    let failed = |reason: String| Error::DeviceLost(format!("its memory could not be read: {reason}"));
    // Another thread that polls may be the one that is told.
    receiver
        .recv_timeout(PATIENCE)
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    buffer.get_mapped_range(..).map_err(|error| failed(error.to_string()))
}
