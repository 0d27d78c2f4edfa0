//! Prepares and runs a plan on a device.

use std::sync::{Arc, mpsc};
use std::time::Instant;

use super::call::{ALIGNMENT, Binding, Builder, Call, Place, too_large, word};
use super::context::{Context, GRID_WIDTH, Memory, PATIENCE};
use super::pipeline::Pipeline;
use super::shader::{BindingKind, ValueType};
use super::timing::Timing;
use super::weights::{DeviceWeights, decode, write};
use crate::control::Control;
use crate::engine::{Inputs, Network};
use crate::model::WeightSource;
use crate::plan::{Op, Plan, TensorId, memory};
use crate::{Error, Result};

/// A call with everything it needs.
struct Dispatch {
    pipeline: Arc<Pipeline>,
    bindings: wgpu::BindGroup,
    workgroups: u32,
    work: f64,
}

/// A result on its way to the host.
struct Output {
    tensor: TensorId,
    /// Bytes of the staging buffer.
    start: u64,
    count: usize,
    format: ValueType,
}

pub(crate) struct GpuNetwork {
    context: Arc<Context>,
    plan: Plan,
    /// Dispatches of each operation.
    steps: Vec<Vec<Dispatch>>,
    places: Vec<Place>,
    /// Bytes of the arena, for maps.
    ranges: Vec<std::ops::Range<usize>>,
    classes: usize,
    arena: Memory,
    vectors: Memory,
    staging: Memory,
    outputs: Vec<Output>,
    timing: Option<Timing>,
    seconds: Vec<f64>,
    /// What bind groups refer to.
    _memory: [Memory; 4],
}

impl GpuNetwork {
    pub(crate) fn new(
        context: Arc<Context>,
        plan: Plan,
        weights: &dyn WeightSource,
        known: &mut DeviceWeights,
    ) -> Result<Self> {
        plan.check()?;
        let places = places(&plan);
        let batch = plan.options.batch;
        let (places, vectors_len) = place_vectors(&plan, places, batch)?;
        let classes = vectors_len;
        let vectors_len = vectors_len + batch;

        let size = |(tensor, place): (&crate::plan::TensorInfo, &Place)| match place {
            Place::Map => tensor.range.len() * context.value.size(),
            Place::ExactMap => tensor.range.len() * ValueType::F32.size(),
            Place::Vector(_) => 0,
        };
        let lengths: Vec<usize> =
            plan.tensors.iter().zip(&places).map(|pair| size(pair).next_multiple_of(4)).collect();
        let given: Vec<TensorId> = plan.images.iter().chain(&plan.timesteps).copied().collect();
        let (ranges, arena_len) = memory::arrange(&lengths, ALIGNMENT, &plan.ops, &given, &plan.outputs)?;

        let mut calls = Vec::with_capacity(plan.ops.len());
        let mut scratch_len = 0;
        let mut builder = Builder {
            plan: &plan,
            context: &context,
            places: &places,
            classes,
            weights,
            known,
            calls: Vec::new(),
            scratch: 0,
        };
        for op in &plan.ops {
            let (own, scratch) = builder.operation(op)?;
            calls.push(own);
            scratch_len = scratch_len.max(scratch);
        }
        let wanted: Vec<_> = calls.iter().flatten().map(|call| call.permutation).collect();
        context.pipelines.compile(&context.device, &wanted)?;

        use wgpu::BufferUsages as Usage;
        let storage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let arena = context.buffer("activations", arena_len as u64, storage)?;
        let vectors = context.buffer("vectors", 4 * vectors_len as u64, storage)?;
        let scratch = context.buffer("scratch memory", scratch_len as u64, storage)?;
        let nothing =
            [context.buffer("nothing", 16, Usage::STORAGE)?, context.buffer("nothing", 16, Usage::STORAGE)?];
        let alignment = context.limits.min_uniform_buffer_offset_alignment.max(16) as usize;
        let mut words: Vec<u32> = Vec::new();
        let mut param_ranges = Vec::new();
        for call in calls.iter().flatten() {
            let start = 4 * words.len();
            words.extend(&call.params);
            words.resize(words.len().next_multiple_of(4), 0);
            param_ranges.push(start..4 * words.len());
            words.resize(words.len().next_multiple_of(alignment / 4), 0);
        }
        let params =
            context.buffer("parameters", 4 * words.len() as u64, Usage::UNIFORM | Usage::COPY_DST)?;
        context.queue.write_buffer(&params.buffer, 0, bytemuck::cast_slice(&words));

        let bindable = Bindable {
            context: &context,
            ranges: &ranges,
            arena: &arena,
            vectors: &vectors,
            scratch: &scratch,
            nothing: &nothing,
            params: &params,
        };
        let mut param_ranges = param_ranges.into_iter();
        let mut steps = Vec::with_capacity(calls.len());
        for calls in calls {
            let mut dispatches = Vec::with_capacity(calls.len());
            for call in calls {
                dispatches.push(bindable.dispatch(call, param_ranges.next().unwrap_or(0..0))?);
            }
            steps.push(dispatches);
        }

        let mut outputs = Vec::new();
        let mut start = 0u64;
        for &tensor in &plan.outputs {
            let format = match places[tensor] {
                Place::Map => context.value,
                Place::ExactMap | Place::Vector(_) => ValueType::F32,
            };
            let count = plan.tensors[tensor].sample_len() * batch;
            outputs.push(Output { tensor, start, count, format });
            start += ((count * format.size()) as u64).next_multiple_of(ALIGNMENT as u64);
        }
        let staging = context.buffer("results", start, Usage::COPY_DST | Usage::MAP_READ)?;
        let [first, second] = nothing;
        Ok(Self {
            seconds: vec![0.0; plan.ops.len()],
            context,
            plan,
            steps,
            places,
            ranges,
            classes,
            arena,
            vectors,
            staging,
            outputs,
            timing: None,
            _memory: [scratch, params, first, second],
        })
    }

    /// Uploads what the caller gave.
    fn give(&self, inputs: &Inputs<'_>) {
        let context = &self.context;
        let to_vectors = |at: usize, values: &[f32]| {
            write(context, &self.vectors.buffer, 4 * at as u64, values, ValueType::F32);
        };
        let given = inputs.images.iter().zip(&self.plan.images);
        for (values, &id) in given.chain(inputs.timesteps.iter().zip(&self.plan.timesteps)) {
            let start = self.ranges[id].start as u64;
            match self.places[id] {
                Place::Map => write(context, &self.arena.buffer, start, values, context.value),
                Place::ExactMap => write(context, &self.arena.buffer, start, values, ValueType::F32),
                Place::Vector(at) => to_vectors(at, values),
            }
            for op in &self.plan.ops {
                let Op::Sinusoid { timesteps, output } = op else { continue };
                if let (true, Place::Vector(at)) = (*timesteps == id, self.places[*output]) {
                    let half = self.plan.tensors[*output].channels / 2;
                    let angles: Vec<f32> =
                        values.iter().flat_map(|&t| super::vector::sinusoid(t, half)).collect();
                    to_vectors(at, &angles);
                }
            }
        }
        let classes: Vec<f32> = inputs.classes.iter().map(|&class| class as f32).collect();
        if !classes.is_empty() {
            to_vectors(self.classes, &classes);
        }
    }

    /// Encodes and submits everything in pieces that the device finishes soon.
    fn compute(&mut self, control: &Control<'_>) -> Result<()> {
        let context = &self.context;
        let mut encoder = Encoder { context, pieces: Vec::new(), work: 0.0, previous: None };
        for (index, dispatches) in self.steps.iter().enumerate() {
            let own = self.timing.as_ref().map(|timing| timing.of_operation(index));
            for (i, dispatch) in dispatches.iter().enumerate() {
                let mut first = 0;
                while first < dispatch.workgroups {
                    if encoder.is_full() {
                        encoder.submit(|_| ())?;
                        control.check()?;
                    }
                    let left = dispatch.workgroups - first;
                    let fitting = encoder.room() / (dispatch.work / f64::from(dispatch.workgroups));
                    let count = (fitting as u32).clamp(1, left);
                    let begins = i == 0 && first == 0;
                    let ends = i + 1 == dispatches.len() && count == left;
                    let timestamps = own.as_ref().and_then(|own| own.writes(begins, ends));
                    encoder.push(Piece { dispatch, first, count, timestamps });
                    first += count;
                }
            }
        }
        encoder.submit(|commands| {
            for output in &self.outputs {
                let (from, start) = match self.places[output.tensor] {
                    Place::Vector(at) => (&self.vectors, 4 * at as u64),
                    Place::Map | Place::ExactMap => (&self.arena, self.ranges[output.tensor].start as u64),
                };
                let size = ((output.count * output.format.size()) as u64).next_multiple_of(4);
                let (from, to) = (&from.buffer, &self.staging.buffer);
                commands.copy_buffer_to_buffer(from, start, to, output.start, Some(size));
            }
            if let Some(timing) = &self.timing {
                timing.resolve(commands);
            }
        })?;
        encoder.finish()
    }
}

impl Network for GpuNetwork {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn run(
        &mut self,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        read: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        inputs.check(&self.plan)?;
        control.check()?;
        let context = self.context.clone();
        let results = context.checked(|| {
            self.give(inputs);
            self.compute(control)?;
            if let Some(timing) = &self.timing {
                self.seconds = timing.read(&context, self.steps.len())?;
            }
            let bytes = map(&context, &self.staging.buffer)?;
            let results = self
                .outputs
                .iter()
                .map(|output| decode(&bytes[output.start as usize..], output.count, output.format));
            let results: Vec<Vec<f32>> = results.collect();
            drop(bytes);
            self.staging.buffer.unmap();
            Ok(results)
        })?;
        // Whatever the caller does with the results is none of the device's business.
        for (index, values) in results.iter().enumerate() {
            read(index, values)?;
        }
        Ok(())
    }

    fn op_seconds(&self) -> &[f64] {
        &self.seconds
    }

    fn time_operations(&mut self) -> bool {
        if self.timing.is_none() && self.context.timestamps {
            let operations = self.steps.len();
            self.timing = self.context.checked(|| Timing::new(&self.context, operations)).ok();
        }
        self.timing.is_some()
    }

    fn device_bytes(&self) -> u64 {
        self.context.used.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// The content of a buffer whose submissions are done.
pub(super) fn map(context: &Context, buffer: &wgpu::Buffer) -> Result<wgpu::BufferView> {
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

/// A part of a dispatch.
struct Piece<'a> {
    dispatch: &'a Dispatch,
    first: u32,
    count: u32,
    timestamps: Option<wgpu::ComputePassTimestampWrites<'a>>,
}

/// Commands on their way to the device.
struct Encoder<'a> {
    context: &'a Context,
    pieces: Vec<Piece<'a>>,
    /// Multiplications of the pieces.
    work: f64,
    /// The last submission, when the device could begin it, and its work.
    previous: Option<(wgpu::SubmissionIndex, Instant, f64)>,
}

impl<'a> Encoder<'a> {
    fn room(&self) -> f64 {
        self.context.submission_work() - self.work
    }

    fn is_full(&self) -> bool {
        self.work > 0.0 && self.room() <= 0.0
    }

    fn push(&mut self, piece: Piece<'a>) {
        self.work += piece.dispatch.work * f64::from(piece.count) / f64::from(piece.dispatch.workgroups);
        self.pieces.push(piece);
    }

    /// Hands over the pieces and what `last` adds, and waits for what was handed over before, so that the device always has
    /// something to do.
    fn submit(&mut self, last: impl FnOnce(&mut wgpu::CommandEncoder)) -> Result<()> {
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        let mut pieces = std::mem::take(&mut self.pieces).into_iter().peekable();
        while let Some(mut piece) = pieces.next() {
            // A pass has timestamps at its ends only; what needs none shares one.
            let alone = piece.timestamps.is_some();
            let descriptor =
                wgpu::ComputePassDescriptor { label: None, timestamp_writes: piece.timestamps.take() };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            loop {
                let Piece { dispatch, first, count, .. } = piece;
                pass.set_pipeline(&dispatch.pipeline.pipeline);
                pass.set_bind_group(0, &dispatch.bindings, &[]);
                pass.set_immediates(0, bytemuck::cast_slice(&[first, first + count]));
                pass.dispatch_workgroups(count.min(GRID_WIDTH), count.div_ceil(GRID_WIDTH), 1);
                match pieces.next_if(|next| !alone && next.timestamps.is_none()) {
                    Some(next) => piece = next,
                    None => break,
                }
            }
        }
        last(&mut encoder);
        let submission = self.context.queue.submit([encoder.finish()]);
        let mut began = Instant::now();
        if self.previous.is_some() {
            self.finish()?;
            began = Instant::now();
        }
        self.previous = Some((submission, began, std::mem::take(&mut self.work)));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self.previous.take() {
            Some((submission, began, work)) => self.context.wait(Some(submission), began, work),
            None => Ok(()),
        }
    }
}

/// What calls can be bound to.
struct Bindable<'a> {
    context: &'a Context,
    ranges: &'a [std::ops::Range<usize>],
    arena: &'a Memory,
    vectors: &'a Memory,
    scratch: &'a Memory,
    /// One that is read, one that is written: a buffer cannot be both in one call.
    nothing: &'a [Memory; 2],
    params: &'a Memory,
}

impl Bindable<'_> {
    fn dispatch(&self, call: Call, params: std::ops::Range<usize>) -> Result<Dispatch> {
        let pipeline = self.context.pipelines.get(call.permutation)?;
        let mut entries = Vec::with_capacity(pipeline.bindings.len());
        for &(number, kind) in &pipeline.bindings {
            let bound = call.bindings.iter().find(|(own, _)| *own == number).map(|(_, binding)| binding);
            let (buffer, start, len) = match (kind, bound) {
                (BindingKind::Uniform, _) => (&self.params.buffer, params.start, params.len()),
                (BindingKind::Read, None) => (&self.nothing[0].buffer, 0, 16),
                (BindingKind::ReadWrite, None) => (&self.nothing[1].buffer, 0, 16),
                (_, Some(Binding::Map(id))) => {
                    (&self.arena.buffer, self.ranges[*id].start, self.ranges[*id].len())
                }
                (_, Some(Binding::Vectors)) => (&self.vectors.buffer, 0, self.vectors.size() as usize),
                (_, Some(Binding::Weights(memory))) => (&memory.buffer, 0, memory.size() as usize),
                (_, Some(Binding::Scratch { start, len })) => (&self.scratch.buffer, *start, *len),
            };
            let len = len.next_multiple_of(4) as u64;
            let most = self.context.limits.max_storage_buffer_binding_size;
            if len > most {
                return Err(Error::OutOfMemory(format!(
                    "a map takes {} MiB, the device binds {} MiB at a time; use smaller batches or windows",
                    len >> 20,
                    most >> 20
                )));
            }
            entries.push(wgpu::BindGroupEntry {
                binding: number,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset: start as u64,
                    size: std::num::NonZeroU64::new(len),
                }),
            });
        }
        let bindings = self.context.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        if call.workgroups / GRID_WIDTH >= self.context.limits.max_compute_workgroups_per_dimension {
            return Err(too_large("an operation"));
        }
        Ok(Dispatch { pipeline, bindings, workgroups: call.workgroups, work: call.work.max(1.0) })
    }
}

/// Where each tensor lives, by how operations use it.
fn places(plan: &Plan) -> Vec<Place> {
    let mut places = vec![Place::Map; plan.tensors.len()];
    let mut vector = |id: TensorId| places[id] = Place::Vector(0);
    for op in &plan.ops {
        match op {
            Op::Sinusoid { timesteps, output } => [*timesteps, *output].into_iter().for_each(&mut vector),
            Op::Linear { input, output, .. } => [*input, *output].into_iter().for_each(&mut vector),
            Op::Moments { output, .. } | Op::FeatureNorm { output, .. } => vector(*output),
            Op::NormCoefficients { moments, scale_shift, output, .. } => {
                moments.iter().chain(scale_shift).chain([output]).copied().for_each(&mut vector);
            }
            Op::Conv(conv) => {
                let norm = conv.source.norm.map(|norm| norm.coefficients);
                norm.into_iter().chain(conv.sample_bias).for_each(&mut vector);
            }
            Op::Attention { .. } => {}
            Op::Head { feature_norm, .. } => feature_norm.iter().copied().for_each(&mut vector),
        }
    }
    for op in &plan.ops {
        if let Op::Head { partial_sums, output, .. } = op {
            partial_sums.iter().chain([output]).for_each(|&id| places[id] = Place::ExactMap);
        }
    }
    places
}

/// Lines the vectors up, all samples of one after another, and returns how long they are together.
fn place_vectors(plan: &Plan, mut places: Vec<Place>, batch: usize) -> Result<(Vec<Place>, usize)> {
    let mut end = 0;
    for (place, tensor) in places.iter_mut().zip(&plan.tensors) {
        if let Place::Vector(at) = place {
            *at = end;
            end += tensor.sample_len() * batch;
            word(end)?;
        }
    }
    Ok((places, end))
}
