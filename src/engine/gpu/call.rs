//! What operations are made of on a device: calls of shaders.

use std::sync::Arc;

use super::context::{Context, Memory};
use super::shader::{Permutation, Shader, ValueType};
use super::weights::{DeviceWeights, Layout, read};
use crate::model::WeightSource;
use crate::plan::{Op, ParamId, Plan, TensorId};
use crate::{Error, Result};

/// Offsets of everything that is bound.
pub(crate) const ALIGNMENT: usize = 256;

/// What is bound.
#[derive(Clone)]
pub(crate) enum Binding {
    /// A map in the arena.
    Map(TensorId),
    /// All vectors.
    Vectors,
    /// A parameter.
    Weights(Arc<Memory>),
    /// A part of the scratch memory, in bytes.
    Scratch { start: usize, len: usize },
}

/// One dispatch of a shader.
pub(crate) struct Call {
    pub(crate) permutation: Permutation,
    /// The words of the shader's `Params`, in their order.
    pub(crate) params: Vec<u32>,
    /// What is not named is bound to nothing in particular.
    pub(crate) bindings: Vec<(u32, Binding)>,
    pub(crate) workgroups: u32,
    /// Multiplications, roughly.
    pub(crate) work: f64,
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the arena, in the device's value type.
    Map,
    /// In the arena, as f32.
    ExactMap,
    /// Among the vectors, so many f32 from their start.
    Vector(usize),
}

/// Turns operations into calls.
pub(crate) struct Builder<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) context: &'a Context,
    pub(crate) places: &'a [Place],
    /// Where the samples' classes lie among the vectors.
    pub(crate) classes: usize,
    pub(crate) weights: &'a dyn WeightSource,
    pub(crate) known: &'a mut DeviceWeights,
    pub(crate) calls: Vec<Call>,
    /// Bytes of scratch memory that the operation has taken so far.
    pub(crate) scratch: usize,
}

impl Builder<'_> {
    /// The calls of one operation, and the bytes of scratch memory they need.
    pub(crate) fn operation(&mut self, op: &Op) -> Result<(Vec<Call>, usize)> {
        self.scratch = 0;
        match op {
            // Computed on the host, see `vector`.
            Op::Sinusoid { .. } => {}
            Op::Linear { .. } => super::vector::linear(self, op)?,
            Op::Moments { input, output } => super::norm::moments(self, *input, *output)?,
            Op::NormCoefficients { .. } => super::norm::coefficients(self, op)?,
            Op::Conv(conv) => super::conv::conv(self, conv)?,
            Op::Attention { .. } => super::attention::attention(self, op)?,
            Op::FeatureNorm { .. } => super::head::feature_norm(self, op)?,
            Op::Head { .. } => super::head::head(self, op)?,
        }
        Ok((std::mem::take(&mut self.calls), self.scratch))
    }

    pub(crate) fn batch(&self) -> usize {
        self.plan.options.batch
    }

    pub(crate) fn value(&self) -> ValueType {
        self.context.value
    }

    /// A shader that reads and writes the device's value type.
    pub(crate) fn plain(&self, shader: Shader) -> Permutation {
        Permutation::plain(shader, self.context.value)
    }

    /// The parameter in the given layout.
    pub(crate) fn weight(&mut self, id: ParamId, layout: Layout) -> Result<Binding> {
        let param = &self.plan.params[id];
        Ok(Binding::Weights(self.known.get(self.context, param, layout, self.weights)?))
    }

    /// A parameter's values on the host.
    pub(crate) fn values(&self, id: ParamId) -> Result<Vec<f32>> {
        Ok(read(&self.plan.params[id], self.weights)?.into_owned())
    }

    /// Where a vector lies among the vectors.
    pub(crate) fn vector(&self, id: TensorId) -> Result<u32> {
        match self.places[id] {
            Place::Vector(at) => word(at),
            _ => Err(Error::invalid("plan", format!("tensor {id} is used both as a map and as a vector"))),
        }
    }

    /// A map of the arena with the format of its values.
    pub(crate) fn map(&self, id: TensorId) -> Result<(Binding, ValueType)> {
        match self.places[id] {
            Place::Map => Ok((Binding::Map(id), self.context.value)),
            Place::ExactMap => Ok((Binding::Map(id), ValueType::F32)),
            Place::Vector(_) => {
                Err(Error::invalid("plan", format!("tensor {id} is used both as a map and as a vector")))
            }
        }
    }

    /// Scratch memory that lasts as long as the operation.
    pub(crate) fn scratch(&mut self, values: usize, format: ValueType) -> Result<Binding> {
        let start = self.scratch;
        let len = values.checked_mul(format.size()).ok_or_else(|| too_large("scratch memory"))?;
        self.scratch =
            start.checked_add(len.next_multiple_of(ALIGNMENT)).ok_or_else(|| too_large("scratch memory"))?;
        Ok(Binding::Scratch { start, len })
    }
}

/// A size as shaders have it.
pub(crate) fn word(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| too_large("a map"))
}

/// Sizes as shaders have them.
pub(crate) fn words<const N: usize>(values: [usize; N]) -> Result<Vec<u32>> {
    values.into_iter().map(word).collect()
}

pub(crate) fn too_large(what: &str) -> Error {
    Error::OutOfMemory(format!("{what} exceeds what a shader can address; use smaller batches or windows"))
}
