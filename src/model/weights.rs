//! Where an engine gets its parameters from.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A parameter in f32, whatever the file stores.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub data: Cow<'a, [f32]>,
}

/// Number formats in which a parameter can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl Precision {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Parameters by their name in a guided-diffusion state dict.
///
/// An engine asks for each tensor once and keeps its own packed copy, so an implementation may convert or generate
/// values on demand and keep nothing.
pub trait WeightSource: Sync {
    /// The tensor called `name`; [`Error::Tensor`] where there is none, or where a value is not finite.
    fn tensor(&self, name: &str) -> Result<Tensor<'_>>;

    /// Narrowest precision that holds every value of `name` exactly, as far as the source knows.
    fn precision(&self, name: &str) -> Precision {
        let _ = name;
        Precision::F32
    }
}

/// Parameters held in memory.
#[derive(Clone, Debug, Default)]
pub struct MapWeights(pub HashMap<String, Tensor<'static>>);

impl MapWeights {
    /// Adds a tensor, replacing one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], data: Vec<f32>) {
        self.0.insert(name.into(), Tensor { shape: shape.to_vec(), data: Cow::Owned(data) });
    }
}

impl WeightSource for MapWeights {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let tensor = self.0.get(name).ok_or_else(|| Error::tensor(name, "is missing"))?;
        Ok(Tensor { shape: tensor.shape.clone(), data: Cow::Borrowed(&tensor.data) })
    }
}

/// Looks in the first source for names starting with `prefix`, in the second for all others.
pub struct Layered<'a> {
    /// Start of the names that belong to `first`.
    pub prefix: &'a str,
    /// Asked for names with the prefix.
    pub first: &'a dyn WeightSource,
    /// Asked for the rest.
    pub second: &'a dyn WeightSource,
}

impl Layered<'_> {
    fn source(&self, name: &str) -> &dyn WeightSource {
        if name.starts_with(self.prefix) { self.first } else { self.second }
    }
}

impl WeightSource for Layered<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.source(name).tensor(name)
    }

    fn precision(&self, name: &str) -> Precision {
        self.source(name).precision(name)
    }
}
