//! What operations are made of on a device: calls of shaders.

use std::ops::Range;
use std::sync::Arc;

use super::context::{Context, Memory};
use super::group_norm::GroupNorms;
use super::shader::{Permutation, Shader, Tile, ValueType};
use super::weights::{DeviceWeights, Layout};
use crate::model::WeightSource;
use crate::plan::{Op, Param, ParamId, Plan, TensorId, memory};
use crate::{Error, Result};

/// Offsets of everything that is bound.
pub const ALIGNMENT: usize = 256;

/// Workgroups that fill a device. Where a product has fewer tiles, its terms are divided.
pub const ENOUGH_WORKGROUPS: usize = 256;

/// What is bound.
#[derive(Clone)]
pub enum Binding {
    /// A map in the arena.
    Map(TensorId),
    /// All vectors.
    Vectors,
    /// The samples' noise keys, four words each: seed (low, high), top, left.
    Keys,
    /// A part of memory that lasts longer than the calls, in bytes.
    Memory(Arc<Memory>, Range<usize>),
    /// A part of the scratch memory, in bytes.
    Scratch { start: usize, len: usize },
}

/// What is bound, by the shader's numbers.
pub type Bindings = Vec<(u32, Binding)>;

impl Binding {
    /// All of a piece of memory.
    pub fn whole(memory: Arc<Memory>) -> Self {
        let size = memory.size() as usize;
        Self::Memory(memory, 0..size)
    }
}

/// Where operations find their parameters.
pub trait Parameters {
    /// The parameter in the given layout. Calls that have to come before the operation's own are added to `calls`.
    fn weight(
        &mut self,
        context: &Context,
        param: &Param,
        layout: Layout,
        calls: &mut Vec<Call>,
    ) -> Result<Binding>;

    /// Its values on the host.
    fn values(&self, param: &Param) -> Result<Vec<f32>>;
}

/// Parameters that are uploaded once, each as it is needed.
pub(super) struct Uploaded<'a> {
    pub(super) weights: &'a dyn WeightSource,
    pub(super) known: &'a mut DeviceWeights,
}

impl Parameters for Uploaded<'_> {
    fn weight(
        &mut self,
        context: &Context,
        param: &Param,
        layout: Layout,
        _calls: &mut Vec<Call>,
    ) -> Result<Binding> {
        Ok(Binding::whole(self.known.get(context, param, layout, self.weights)?))
    }

    fn values(&self, param: &Param) -> Result<Vec<f32>> {
        Ok(param.read(self.weights)?.into_owned())
    }
}

/// One dispatch of a shader.
pub struct Call {
    pub permutation: Permutation,
    /// The words of the shader's `Params`, in their order.
    pub params: Vec<u32>,
    /// What is not named is bound to nothing in particular.
    pub bindings: Bindings,
    pub workgroups: u32,
    /// Multiplications, roughly.
    pub work: f64,
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the arena, in the device's value type.
    Map,
    /// In the arena, as f32.
    ExactMap,
    /// Among the vectors, so many f32 from their start.
    Vector(usize),
}

/// Turns operations into calls.
pub struct Builder<'a> {
    pub plan: &'a Plan,
    pub context: &'a Context,
    pub places: &'a [Place],
    /// Where the samples' classes lie among the vectors.
    pub classes: usize,
    /// The parameters of `plan`.
    pub parameters: &'a mut dyn Parameters,
    /// Those of the operation.
    pub calls: Vec<Call>,
    /// Bytes of scratch memory that the operation has taken so far.
    pub scratch: usize,
    /// Those that take no operations of their own.
    pub(super) norms: GroupNorms,
}

impl<'a> Builder<'a> {
    /// A builder that gives every operation calls of its own.
    pub fn new(
        plan: &'a Plan,
        context: &'a Context,
        places: &'a [Place],
        classes: usize,
        parameters: &'a mut dyn Parameters,
    ) -> Self {
        let norms = GroupNorms::default();
        Self { plan, context, places, classes, parameters, calls: Vec::new(), scratch: 0, norms }
    }
}

impl Builder<'_> {
    /// The calls of each of the plan's operations, to be run in their order, and the bytes of scratch memory they need. Moments and
    /// coefficients that only a convolution's input needs may be left to the calls that write that.
    pub(super) fn operations(&mut self) -> Result<(Vec<Vec<Call>>, usize)> {
        self.norms = GroupNorms::of(self);
        let mut all = Vec::with_capacity(self.plan.ops.len());
        let mut scratch = 0;
        // Moments in scratch memory, where the operation before left them there.
        let mut fresh = None;
        for (index, op) in self.plan.ops.iter().enumerate() {
            let next = self.plan.ops.get(index + 1).filter(|next| !self.norms.replace(next));
            let calls = match (op, fresh.take(), next) {
                _ if self.norms.replace(op) => Vec::new(),
                (Op::Moments { input, output }, _, Some(Op::NormCoefficients { moments, .. }))
                    if moments.iter().filter(|&moments| moments == output).count() == 1 =>
                {
                    self.scratch = 0;
                    fresh = Some((*output, super::norm::Blocks::of(self, *input)?));
                    std::mem::take(&mut self.calls)
                }
                (Op::NormCoefficients { .. }, Some(blocks), _) => {
                    super::norm::coefficients(self, op, Some(blocks))?;
                    std::mem::take(&mut self.calls)
                }
                _ => self.operation(op)?.0,
            };
            scratch = scratch.max(self.scratch);
            all.push(calls);
        }
        Ok((all, scratch))
    }

    /// The calls of one operation, and the bytes of scratch memory they need.
    pub fn operation(&mut self, op: &Op) -> Result<(Vec<Call>, usize)> {
        self.scratch = 0;
        match op {
            Op::Mask { .. } => super::corruption::mask(self, op)?,
            Op::AddNoise { .. } => super::corruption::add_noise(self, op)?,
            // Computed on the host, see `vector`.
            Op::Sinusoid { .. } => {}
            Op::Linear { .. } => super::vector::linear(self, op)?,
            Op::Moments { input, output } => super::norm::moments(self, *input, *output)?,
            Op::NormCoefficients { .. } => super::norm::coefficients(self, op, None)?,
            Op::Conv(conv) => super::conv::conv(self, conv)?,
            Op::Attention { .. } => super::attention::attention(self, op)?,
            Op::FeatureNorm { .. } => super::head::feature_norm(self, op)?,
            Op::Head { .. } => super::head::head(self, op)?,
        }
        Ok((std::mem::take(&mut self.calls), self.scratch))
    }

    pub fn batch(&self) -> usize {
        self.plan.options.batch
    }

    pub fn value(&self) -> ValueType {
        self.context.value
    }

    /// A shader that reads and writes the device's value type.
    pub fn plain(&self, shader: Shader) -> Permutation {
        Permutation::plain(shader, self.context.value)
    }

    /// The tile for a product that has `count` of them: the large one where it leaves enough to do and the device has the
    /// memory for it.
    pub fn tile(&self, count: impl Fn(Tile) -> usize) -> Tile {
        let Tile { rows, columns, terms } = Tile::LARGE;
        // Both factors, and the places of the rows.
        let memory = 4 * 8 * (rows + columns) * terms + 16 * 8 * rows;
        let fits = memory <= self.context.limits.max_compute_workgroup_storage_size;
        if fits && count(Tile::LARGE) >= ENOUGH_WORKGROUPS { Tile::LARGE } else { Tile::SMALL }
    }

    /// The parameter in the given layout.
    pub fn weight(&mut self, id: ParamId, layout: Layout) -> Result<Binding> {
        self.parameters.weight(self.context, &self.plan.params[id], layout, &mut self.calls)
    }

    /// A parameter's values on the host.
    pub fn values(&self, id: ParamId) -> Result<Vec<f32>> {
        self.parameters.values(&self.plan.params[id])
    }

    /// Where a vector lies among the vectors.
    pub fn vector(&self, id: TensorId) -> Result<u32> {
        match self.places[id] {
            Place::Vector(at) => word(at),
            _ => Err(Error::invalid("plan", format!("tensor {id} is used both as a map and as a vector"))),
        }
    }

    /// A map of the arena with the format of its values.
    pub fn map(&self, id: TensorId) -> Result<(Binding, ValueType)> {
        match self.places[id] {
            Place::Map => Ok((Binding::Map(id), self.context.value)),
            Place::ExactMap => Ok((Binding::Map(id), ValueType::F32)),
            Place::Vector(_) => {
                Err(Error::invalid("plan", format!("tensor {id} is used both as a map and as a vector")))
            }
        }
    }

    /// Scratch memory that lasts as long as the operation, within one segment.
    pub fn scratch(&mut self, values: usize, format: ValueType) -> Result<Binding> {
        let too_large = || too_large("scratch memory");
        let len = values.checked_mul(format.size()).ok_or_else(too_large)?;
        let padded = len.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_large)?;
        if padded > self.context.segment {
            return Err(too_large());
        }
        let start = memory::within_a_segment(self.scratch, padded, self.context.segment);
        self.scratch = start.checked_add(padded).ok_or_else(too_large)?;
        Ok(Binding::Scratch { start, len })
    }
}

/// A size as shaders have it.
pub fn word(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| too_large("a map"))
}

/// Sizes as shaders have them.
pub fn words<const N: usize>(values: [usize; N]) -> Result<Vec<u32>> {
    values.into_iter().map(word).collect()
}

pub fn too_large(what: &str) -> Error {
    Error::OutOfMemory(format!("{what} exceeds what a shader can address; use smaller batches or windows"))
}
