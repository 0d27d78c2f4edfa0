//! Prepares and runs a plan on a device.

use std::sync::Arc;

use super::call::{ALIGNMENT, Binding, Builder, Call, Place, word};
use super::canvas::GpuCanvas;
use super::context::{Context, Memory};
use super::shader::{BindingKind, ValueType};
use super::submit::{Bound, Dispatch, Encoder, Submitted, map};
use super::timing::Timing;
use super::weights::{DeviceWeights, decode, write};
use crate::Result;
use crate::control::Control;
use crate::corruption::NoiseKey;
use crate::engine::{Canvas, CanvasPlace, Inputs, Network, canvas};
use crate::model::WeightSource;
use crate::plan::{Op, Plan, TensorId, memory};

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
    keys: Memory,
    staging: Memory,
    outputs: Vec<Output>,
    /// What the device may still be working on.
    pending: Option<Submitted>,
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
        let (ranges, arena_len) =
            memory::arrange(&lengths, ALIGNMENT, &memory::accesses(&plan.ops), &given, &plan.outputs)?;

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
        let keys = context.buffer("noise keys", 16 * batch as u64, Usage::STORAGE | Usage::COPY_DST)?;
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
            keys: &keys,
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
            keys,
            staging,
            outputs,
            pending: None,
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
        let keys: Vec<u32> = inputs.noise.iter().flat_map(key_words).collect();
        if !keys.is_empty() {
            context.queue.write_buffer(&self.keys.buffer, 0, bytemuck::cast_slice(&keys));
        }
        let classes: Vec<f32> = inputs.classes.iter().map(|&class| class as f32).collect();
        if !classes.is_empty() {
            to_vectors(self.classes, &classes);
        }
    }

    /// Adds all operations.
    fn encode<'a>(&'a self, encoder: &mut Encoder<'a>) -> Result<()> {
        for (index, dispatches) in self.steps.iter().enumerate() {
            let timing = self.timing.as_ref().map(|timing| timing.of_operation(index));
            encoder.operation(dispatches.iter(), timing.as_ref())?;
        }
        Ok(())
    }

    /// Computes everything and copies the results to the staging buffer.
    fn compute(&self, control: &Control<'_>, pending: Option<Submitted>) -> Result<()> {
        let mut encoder = Encoder::new(&self.context, control, pending);
        self.encode(&mut encoder)?;
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
        encoder.wait()
    }

    /// The arena's bytes of the plan's only output, where that is f32.
    fn exact_output(&self) -> Option<std::ops::Range<usize>> {
        match self.outputs.as_slice() {
            [Output { tensor, count, format: ValueType::F32, .. }]
                if !matches!(self.places[*tensor], Place::Vector(_)) =>
            {
                let start = self.ranges[*tensor].start;
                Some(start..start + 4 * count)
            }
            _ => None,
        }
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
            let pending = self.pending.take();
            self.compute(control, pending)?;
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

    fn run_onto(
        &mut self,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        canvas: &mut dyn Canvas,
        places: &[CanvasPlace],
    ) -> Result<()> {
        let context = self.context.clone();
        let own = canvas.as_any().downcast_mut::<GpuCanvas>().filter(|canvas| canvas.is_on(&context));
        let (Some(canvas), Some(output)) = (own, self.exact_output()) else {
            return self.run(inputs, control, &mut |_, values| canvas::blend_on_host(values, canvas, places));
        };
        inputs.check(&self.plan)?;
        control.check()?;
        let pending = context.checked(|| {
            self.give(inputs);
            let pending = self.pending.take();
            let blend = canvas.blend((&self.arena, output), places)?;
            let mut encoder = Encoder::new(&context, control, pending);
            self.encode(&mut encoder)?;
            encoder.operation(blend.iter(), None)?;
            encoder.submit(|_| ())?;
            Ok(encoder.leave())
        })?;
        self.pending = pending;
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

/// What calls can be bound to.
struct Bindable<'a> {
    context: &'a Context,
    ranges: &'a [std::ops::Range<usize>],
    arena: &'a Memory,
    vectors: &'a Memory,
    keys: &'a Memory,
    scratch: &'a Memory,
    /// One that is read, one that is written: a buffer cannot be both in one call.
    nothing: &'a [Memory; 2],
    params: &'a Memory,
}

impl Bindable<'_> {
    fn dispatch(&self, call: Call, params: std::ops::Range<usize>) -> Result<Dispatch> {
        let Call { permutation, bindings, workgroups, work, .. } = call;
        Dispatch::new(self.context, permutation, workgroups, work, |number, kind| {
            let bound = bindings.iter().find(|(own, _)| *own == number).map(|(_, binding)| binding);
            match (kind, bound) {
                (BindingKind::Uniform, _) => Bound::part(self.params, params.start, params.len()),
                (BindingKind::Read, None) => Bound::whole(&self.nothing[0]),
                (BindingKind::ReadWrite, None) => Bound::whole(&self.nothing[1]),
                (_, Some(Binding::Map(id))) => {
                    Bound::part(self.arena, self.ranges[*id].start, self.ranges[*id].len())
                }
                (_, Some(Binding::Vectors)) => Bound::whole(self.vectors),
                (_, Some(Binding::Keys)) => Bound::whole(self.keys),
                (_, Some(Binding::Weights(memory))) => Bound::whole(memory),
                (_, Some(Binding::Scratch { start, len })) => Bound::part(self.scratch, *start, *len),
            }
        })
    }
}

/// A noise key as shaders read it.
fn key_words(key: &NoiseKey) -> [u32; 4] {
    [key.seed as u32, (key.seed >> 32) as u32, key.top.cast_unsigned(), key.left.cast_unsigned()]
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
            Op::Mask { .. } | Op::AddNoise { .. } | Op::Attention { .. } => {}
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
