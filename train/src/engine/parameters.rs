//! Parameters and what belongs to each of them, one after another in flat memory.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::ops::Range;

use mdm::engine::cpu::buffer::{Buffer, SharedMut};
use mdm::model::{MapWeights, Tensor, WeightSource};
use mdm::plan::{Param, ParamId};
use mdm::{Error, Result};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::differentiate::transposed;
use crate::learner::Weights;

/// Where each parameter lies, in units of f32.
#[derive(Clone, Debug)]
pub struct Places {
    params: Vec<Param>,
    ranges: Vec<Range<usize>>,
}

impl Places {
    /// One after another.
    pub fn new(params: &[Param]) -> Self {
        let mut end = 0;
        let ranges = params
            .iter()
            .map(|param| {
                let start = end;
                end += param.shape.iter().product::<usize>();
                start..end
            })
            .collect();
        Self { params: params.to_vec(), ranges }
    }

    /// Values of all parameters.
    pub fn len(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where parameter `id` lies.
    pub fn range(&self, id: ParamId) -> Range<usize> {
        self.ranges[id].clone()
    }

    /// What the parameters are.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The values in `flat`, each under its name.
    pub fn split(&self, flat: &[f32]) -> MapWeights {
        let mut map = MapWeights::default();
        for (param, range) in self.params.iter().zip(&self.ranges) {
            map.insert(&param.name, &param.shape, flat[range.clone()].to_vec());
        }
        map
    }

    /// Writes the values of `weights` to `flat`, zeros where there are none.
    ///
    /// # Errors
    /// [`Error::Tensor`] where one is missing or has another shape.
    pub fn join(&self, weights: Option<&Weights>, flat: &mut [f32]) -> Result<()> {
        let Some(weights) = weights else {
            flat.fill(0.0);
            return Ok(());
        };
        for (param, range) in self.params.iter().zip(&self.ranges) {
            flat[range.clone()].copy_from_slice(&param.read(&**weights)?);
        }
        Ok(())
    }
}

/// Parameters for the engine's packing, transposed ones included.
pub struct Values<'a> {
    /// Where they lie.
    pub places: &'a Places,
    /// All values.
    pub flat: &'a [f32],
}

impl WeightSource for Values<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let (original, turned) = transposed(name).map_or((name, false), |original| (original, true));
        let id = self
            .places
            .params
            .iter()
            .position(|param| param.name == original)
            .ok_or_else(|| Error::tensor(name, "is not a parameter of this network"))?;
        let data = &self.flat[self.places.range(id)];
        let shape = &self.places.params[id].shape;
        if !turned {
            return Ok(Tensor { shape: shape.clone(), data: Cow::Borrowed(data) });
        }
        let (outputs, inputs) = (shape[0], shape[1]);
        let taps: usize = shape[2..].iter().product();
        let mut turned = vec![0.0; data.len()];
        turned.par_chunks_mut(outputs * taps).enumerate().for_each(|(i, filters)| {
            for (out, filter) in filters.chunks_exact_mut(taps).enumerate() {
                let from = &data[(out * inputs + i) * taps..][..taps];
                filter.iter_mut().zip(from.iter().rev()).for_each(|(to, value)| *to = *value);
            }
        });
        let mut shape = shape.clone();
        shape.swap(0, 1);
        Ok(Tensor { shape, data: Cow::Owned(turned) })
    }
}

/// Gradients of all parameters, which tasks of one operation add to, each to its own part.
pub struct Gradients<'a> {
    places: &'a Places,
    flat: SharedMut,
}

impl<'a> Gradients<'a> {
    /// Those in `flat`, which has a value for each of all parameters.
    pub fn new(places: &'a Places, flat: &'a mut Buffer) -> Self {
        Self { places, flat: SharedMut::new(flat.slice_mut()) }
    }

    /// That of parameter `id`.
    pub(crate) fn of(&self, id: ParamId) -> SharedMut {
        // SAFETY: the range lies in the memory.
        unsafe { self.flat.add(self.places.ranges[id].start) }
    }

    /// Adds `sums` to that of parameter `id`.
    pub(crate) fn add(&self, id: ParamId, sums: &[f64]) {
        let to = self.of(id).get();
        for (i, sum) in sums.iter().enumerate().take(self.places.ranges[id].len()) {
            // SAFETY: the range lies in the memory, and operations run one after another.
            unsafe { *to.add(i) += *sum as f32 };
        }
    }
}
