//! Prepares and runs a plan on a device.

use std::collections::HashSet;
use std::sync::Arc;

use super::call::{ALIGNMENT, Builder, Place, Uploaded};
use super::canvas::GpuCanvas;
use super::context::{Context, Memory};
use super::prepare::{Prepared, Sizes, place_vectors, places};
use super::shader::ValueType;
use super::submit::{Encoder, Submitted, map};
use super::timing::Timing;
use super::weights::{DeviceWeights, decode, write};
use crate::Result;
use crate::control::Control;
use crate::corruption::NoiseKey;
use crate::engine::{Canvas, CanvasPlace, Inputs, Network, RunCost, canvas};
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

/// What the time embedding is computed from.
#[derive(Default)]
struct Embedded {
    timesteps: Vec<f32>,
    classes: Vec<u32>,
}

impl Embedded {
    fn is_of(&self, inputs: &Inputs<'_>) -> bool {
        self.timesteps.iter().eq(inputs.timesteps.iter().copied().flatten()) && self.classes == inputs.classes
    }

    fn of(inputs: &Inputs<'_>) -> Self {
        Self { timesteps: inputs.timesteps.concat(), classes: inputs.classes.to_vec() }
    }
}

pub(crate) struct GpuNetwork {
    context: Arc<Context>,
    plan: Plan,
    prepared: Prepared,
    places: Vec<Place>,
    classes: usize,
    staging: Memory,
    outputs: Vec<Output>,
    /// Whether each operation depends on timesteps and classes alone.
    embeds: Vec<bool>,
    /// Those whose embedding lies among the vectors.
    embedded: Option<Embedded>,
    /// What the device may still be working on.
    pending: Option<Submitted>,
    timing: Option<Timing>,
    seconds: Vec<f64>,
    /// Of the last run.
    cost: RunCost,
}

impl GpuNetwork {
    pub(crate) fn new(
        context: Arc<Context>,
        plan: Plan,
        weights: &dyn WeightSource,
        known: &mut DeviceWeights,
    ) -> Result<Self> {
        plan.check()?;
        let places = places(plan.tensors.len(), &plan.ops);
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
        let accesses = memory::accesses(&plan.ops);
        let (ranges, arena_len) =
            memory::arrange(&lengths, ALIGNMENT, context.segment, &accesses, &given, &plan.outputs)?;

        let mut uploaded = Uploaded { weights, known };
        let mut builder = Builder::new(&plan, &context, &places, classes, &mut uploaded);
        let (calls, scratch_len) = builder.operations()?;
        let sizes = Sizes { arena: arena_len, vectors: vectors_len, scratch: scratch_len, keys: batch };
        let prepared = Prepared::new(&context, calls, ranges, sizes)?;

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
        use wgpu::BufferUsages as Usage;
        let staging = context.buffer("results", start, Usage::COPY_DST | Usage::MAP_READ)?;
        Ok(Self {
            seconds: vec![0.0; plan.ops.len()],
            embeds: embeds(&plan),
            embedded: None,
            cost: RunCost::default(),
            context,
            plan,
            prepared,
            places,
            classes,
            staging,
            outputs,
            pending: None,
            timing: None,
        })
    }

    /// Uploads what the caller gave; the embedding's part of it unless that is `known`.
    fn give(&self, inputs: &Inputs<'_>, known: bool) {
        let context = &self.context;
        let to_vectors = |at: usize, values: &[f32]| {
            write(context, &self.prepared.vectors.buffer, 4 * at as u64, values, ValueType::F32);
        };
        let timesteps = if known { &[] } else { inputs.timesteps };
        let given = inputs.images.iter().zip(&self.plan.images);
        for (values, &id) in given.chain(timesteps.iter().zip(&self.plan.timesteps)) {
            let to_map = |format| {
                let (memory, range) = self.prepared.arena.map(id);
                write(context, &memory.buffer, range.start as u64, values, format);
            };
            match self.places[id] {
                Place::Map => to_map(context.value),
                Place::ExactMap => to_map(ValueType::F32),
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
            context.queue.write_buffer(&self.prepared.keys.buffer, 0, bytemuck::cast_slice(&keys));
        }
        let classes: Vec<f32> = inputs.classes.iter().map(|&class| class as f32).collect();
        if !classes.is_empty() && !known {
            to_vectors(self.classes, &classes);
        }
    }

    /// Whether the embedding of the inputs is there from an earlier run. Vectors keep what was written to them. Where
    /// operations are timed, all of them are run.
    fn knows(&self, inputs: &Inputs<'_>) -> bool {
        self.timing.is_none() && self.embedded.as_ref().is_some_and(|embedded| embedded.is_of(inputs))
    }

    /// Adds all operations, those of the embedding unless it is `known`.
    fn encode<'a>(&'a self, encoder: &mut Encoder<'a>, known: bool) -> Result<()> {
        for (index, dispatches) in self.prepared.steps.iter().enumerate() {
            if known && self.embeds[index] {
                continue;
            }
            let timing = self.timing.as_ref().and_then(|timing| timing.of_operation(index));
            encoder.operation(dispatches.iter(), timing.as_ref())?;
        }
        Ok(())
    }

    /// Computes everything and copies the results to the staging buffer.
    fn compute(
        &self,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        pending: Option<Submitted>,
        known: bool,
    ) -> Result<RunCost> {
        let mut encoder = Encoder::new(&self.context, control, pending);
        self.give(inputs, known);
        self.encode(&mut encoder, known)?;
        encoder.submit(|commands| {
            for output in &self.outputs {
                let (from, start) = match self.places[output.tensor] {
                    Place::Vector(at) => (&self.prepared.vectors, 4 * at as u64),
                    Place::Map | Place::ExactMap => {
                        let (memory, range) = self.prepared.arena.map(output.tensor);
                        (memory, range.start as u64)
                    }
                };
                let size = ((output.count * output.format.size()) as u64).next_multiple_of(4);
                let (from, to) = (&from.buffer, &self.staging.buffer);
                commands.copy_buffer_to_buffer(from, start, to, output.start, Some(size));
            }
            if let Some(timing) = &self.timing {
                timing.resolve(commands);
            }
        })?;
        let cost = encoder.cost();
        encoder.wait()?;
        Ok(cost)
    }

    /// The plan's only output, where that is a map in f32.
    fn exact_output(&self) -> Option<TensorId> {
        match self.outputs.as_slice() {
            [Output { tensor, format: ValueType::F32, .. }]
                if !matches!(self.places[*tensor], Place::Vector(_)) =>
            {
                Some(*tensor)
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
        let known = self.knows(inputs);
        // A run that fails may have overwritten some of it.
        let embedded = self.embedded.take();
        let results = context.checked(|| {
            let pending = self.pending.take();
            self.cost = self.compute(inputs, control, pending, known)?;
            if let Some(timing) = &self.timing {
                self.seconds = timing.read(&context, self.prepared.steps.len())?;
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
        self.embedded = embedded.filter(|_| known).or_else(|| Some(Embedded::of(inputs)));
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
        let known = self.knows(inputs);
        let embedded = self.embedded.take();
        let (pending, cost) = context.checked(|| {
            let pending = self.pending.take();
            let mut encoder = Encoder::new(&context, control, pending);
            self.give(inputs, known);
            let blend = canvas.blend(self.prepared.arena.map(output), places)?;
            self.encode(&mut encoder, known)?;
            encoder.operation(blend.iter(), None)?;
            encoder.submit(|_| ())?;
            let cost = encoder.cost();
            Ok((encoder.leave(), cost))
        })?;
        (self.pending, self.cost) = (pending, cost);
        self.embedded = embedded.filter(|_| known).or_else(|| Some(Embedded::of(inputs)));
        Ok(())
    }

    fn op_seconds(&self) -> &[f64] {
        &self.seconds
    }

    fn time_operations(&mut self) -> bool {
        if self.timing.is_none() && self.context.timestamps {
            let operations = self.prepared.steps.len();
            self.timing = self.context.checked(|| Timing::new(&self.context, operations)).ok();
        }
        self.timing.is_some()
    }

    fn device_bytes(&self) -> u64 {
        self.context.used.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn run_cost(&self) -> Option<RunCost> {
        Some(self.cost)
    }

    fn is_lost(&self) -> bool {
        self.context.is_lost()
    }
}

/// Whether each operation of a plan depends on timesteps and classes alone.
pub(super) fn embeds(plan: &Plan) -> Vec<bool> {
    let mut known: HashSet<TensorId> = plan.timesteps.iter().copied().collect();
    let of_timesteps = |op: &Op| {
        let alone = match op {
            Op::Sinusoid { timesteps: input, output } | Op::Linear { input, output, .. } => {
                let written = plan.ops.iter().filter(|op| op.output() == *output).count();
                written == 1 && known.contains(input)
            }
            _ => false,
        };
        if alone {
            known.insert(op.output());
        }
        alone
    };
    plan.ops.iter().map(of_timesteps).collect()
}

/// A noise key as shaders read it.
fn key_words(key: &NoiseKey) -> [u32; 4] {
    [key.seed as u32, (key.seed >> 32) as u32, key.top.cast_unsigned(), key.left.cast_unsigned()]
}
