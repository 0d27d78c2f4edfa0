//! Memory for calls of shaders, and what binds the one to the other.

use std::ops::Range;

use super::call::{Binding, Call, Place, word};
use super::context::{Context, Memory};
use super::segments::{Arena, Segments};
use super::shader::BindingKind;
use super::submit::{Bound, Dispatch};
use crate::Result;
use crate::plan::{Op, Plan, TensorId};

/// How much memory calls share.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of all maps.
    pub arena: usize,
    /// All vectors, in units of f32.
    pub vectors: usize,
    /// Bytes of scratch memory.
    pub scratch: usize,
    /// Noise keys.
    pub keys: usize,
}

/// Calls with their memory, ready to run.
pub struct Prepared {
    /// Dispatches of each step.
    pub steps: Vec<Vec<Dispatch>>,
    /// Maps.
    pub arena: Arena,
    /// Vectors, f32.
    pub vectors: Memory,
    /// The samples' noise keys.
    pub keys: Memory,
    /// What bind groups refer to: scratch memory, the shaders' parameters, and two buffers with nothing in them.
    _memory: (Segments, [Memory; 3]),
}

impl Prepared {
    /// Compiles what is called and allocates memory for it. `ranges` says where maps lie in the arena, in bytes, each
    /// in one segment.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), and those of the device.
    pub fn new(
        context: &Context,
        calls: Vec<Vec<Call>>,
        ranges: Vec<Range<usize>>,
        sizes: Sizes,
    ) -> Result<Self> {
        let wanted: Vec<_> = calls.iter().flatten().map(|call| call.permutation).collect();
        context.pipelines.compile(&context.device, &wanted)?;

        use wgpu::BufferUsages as Usage;
        let storage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let arena = Arena::new(context, ranges, sizes.arena)?;
        let vectors = context.buffer("vectors", 4 * sizes.vectors as u64, storage)?;
        let keys = context.buffer("noise keys", 16 * sizes.keys as u64, Usage::STORAGE | Usage::COPY_DST)?;
        let scratch = Segments::new(context, "scratch memory", sizes.scratch)?;
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
            context,
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
        let [first, second] = nothing;
        Ok(Self { steps, arena, vectors, keys, _memory: (scratch, [params, first, second]) })
    }
}

/// What calls can be bound to.
struct Bindable<'a> {
    context: &'a Context,
    arena: &'a Arena,
    vectors: &'a Memory,
    keys: &'a Memory,
    scratch: &'a Segments,
    /// One that is read, one that is written: a buffer cannot be both in one call.
    nothing: &'a [Memory; 2],
    params: &'a Memory,
}

impl<'a> Bindable<'a> {
    fn dispatch(&self, call: Call, params: Range<usize>) -> Result<Dispatch> {
        let Call { permutation, bindings, workgroups, work, .. } = call;
        let of = |(memory, range): (&'a Memory, Range<usize>)| Bound::part(memory, range.start, range.len());
        Dispatch::new(self.context, permutation, workgroups, work, |number, kind| {
            let bound = bindings.iter().find(|(own, _)| *own == number).map(|(_, binding)| binding);
            match (kind, bound) {
                (BindingKind::Uniform, _) => Bound::part(self.params, params.start, params.len()),
                (BindingKind::Read, None) => Bound::whole(&self.nothing[0]),
                (BindingKind::ReadWrite, None) => Bound::whole(&self.nothing[1]),
                (_, Some(Binding::Map(id))) => of(self.arena.map(*id)),
                (_, Some(Binding::Vectors)) => Bound::whole(self.vectors),
                (_, Some(Binding::Keys)) => Bound::whole(self.keys),
                (_, Some(Binding::Memory(memory, range))) => Bound::part(memory, range.start, range.len()),
                (_, Some(Binding::Scratch { start, len })) => of(self.scratch.part(*start..start + len)),
            }
        })
    }
}

/// Where each of `count` tensors lives, by how operations use it.
pub fn places<'a>(count: usize, ops: impl IntoIterator<Item = &'a Op> + Clone) -> Vec<Place> {
    let mut places = vec![Place::Map; count];
    let mut vector = |id: TensorId| places[id] = Place::Vector(0);
    for op in ops.clone() {
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
    for op in ops {
        if let Op::Head { partial_sums, output, .. } = op {
            partial_sums.iter().chain([output]).for_each(|&id| places[id] = Place::ExactMap);
        }
    }
    places
}

/// Lines the vectors up, all samples of one after another, and returns how long they are together. None shares memory with
/// another; each starts where shaders can read four values at a time.
pub fn place_vectors(plan: &Plan, mut places: Vec<Place>, batch: usize) -> Result<(Vec<Place>, usize)> {
    let mut end = 0;
    for (place, tensor) in places.iter_mut().zip(&plan.tensors) {
        if let Place::Vector(at) = place {
            *at = end;
            end += (tensor.sample_len() * batch).next_multiple_of(4);
            word(end)?;
        }
    }
    Ok((places, end))
}
