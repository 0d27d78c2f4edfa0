//! Parameters in the layouts that the kernels read.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::buffer::Buffer;
use crate::engine::winograd;
use crate::model::WeightSource;
use crate::plan::{HEAD_PREFIX, Param};
use crate::{Error, Result};

/// How a parameter lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As in the checkpoint.
    Raw,
    /// A matrix `[out, in, taps...]` as panels of `panel` outputs: `[panels][taps][in][panel]`, the last panel padded with
    /// zeros. Where it is `grouped`, the first dimension of the parameter counts matrices that are packed one by one.
    Panels { panel: usize, grouped: bool },
    /// A 3x3 kernel transformed for Winograd's algorithm with tiles of `tile` x `tile` outputs: `[points][panels][in][panel]`.
    Winograd { panel: usize, tile: usize },
}

/// Packed parameters of one model. An entry is made once and shared by all networks that use it.
#[derive(Default)]
pub struct PackedWeights(HashMap<(String, Layout), Arc<Buffer>>);

impl PackedWeights {
    /// The parameter in the given layout, from `weights` unless it is here already.
    pub fn get(&mut self, param: &Param, layout: Layout, weights: &dyn WeightSource) -> Result<Arc<Buffer>> {
        let key = (param.name.clone(), layout);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let tensor = weights.tensor(&param.name)?;
        let significant = |shape: &[usize]| {
            let ones = shape.iter().rev().take_while(|&&size| size == 1).count();
            shape[..shape.len() - ones].to_vec()
        };
        let len = param.shape.iter().product::<usize>();
        if significant(&tensor.shape) != significant(&param.shape) || tensor.data.len() != len {
            let reason = format!("has shape {:?}, the network needs {:?}", tensor.shape, param.shape);
            return Err(Error::tensor(&param.name, reason));
        }
        let packed = Arc::new(match layout {
            Layout::Raw => {
                let mut buffer = Buffer::zeroed(len)?;
                buffer.slice_mut().copy_from_slice(&tensor.data);
                buffer
            }
            Layout::Panels { panel, grouped: false } => panels(&tensor.data, &param.shape, panel, 1)?,
            Layout::Panels { panel, grouped: true } => {
                panels(&tensor.data, &param.shape[1..], panel, param.shape[0])?
            }
            Layout::Winograd { panel, tile } => winograd_panels(&tensor.data, &param.shape, panel, tile)?,
        });
        // The packed copy is all that is needed from here on.
        drop(tensor);
        weights.release(&param.name);
        // Models with other heads share the cache of their backbone.
        if !param.name.starts_with(HEAD_PREFIX) {
            self.0.insert(key, packed.clone());
        }
        Ok(packed)
    }
}

/// Packs `groups` matrices of the given shape.
fn panels(data: &[f32], shape: &[usize], panel: usize, groups: usize) -> Result<Buffer> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let taps: usize = shape[2..].iter().product();
    let per_panel = taps * inputs * panel;
    let per_group = outputs.div_ceil(panel) * per_panel;
    let mut buffer = Buffer::zeroed(groups * per_group)?;
    buffer.slice_mut().par_chunks_mut(per_panel).enumerate().for_each(|(index, chunk)| {
        let (group, first) = (index / outputs.div_ceil(panel), index % outputs.div_ceil(panel) * panel);
        for out in first..outputs.min(first + panel) {
            let filter = &data[(group * outputs + out) * inputs * taps..][..inputs * taps];
            for (i, values) in filter.chunks_exact(taps).enumerate() {
                for (tap, &value) in values.iter().enumerate() {
                    chunk[(tap * inputs + i) * panel + out - first] = value;
                }
            }
        }
    });
    Ok(buffer)
}

fn winograd_panels(data: &[f32], shape: &[usize], panel: usize, tile: usize) -> Result<Buffer> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let count = outputs.div_ceil(panel);
    let per_panel = inputs * panel;
    let mut buffer = Buffer::zeroed(winograd::points(tile) * count * per_panel)?;
    // Panels of all points, so that each thread transforms the filters of its own outputs.
    let mut by_panel: Vec<Vec<&mut [f32]>> =
        (0..count).map(|_| Vec::with_capacity(winograd::points(tile))).collect();
    for (index, chunk) in buffer.slice_mut().chunks_mut(per_panel).enumerate() {
        by_panel[index % count].push(chunk);
    }
    by_panel.par_chunks_mut(1).enumerate().for_each(|(index, points)| {
        let first = index * panel;
        for out in first..outputs.min(first + panel) {
            for i in 0..inputs {
                let filter = &data[(out * inputs + i) * 9..][..9];
                winograd::transform_filter(tile, filter, |point, value| {
                    points[0][point][i * panel + out - first] = value;
                });
            }
        }
    });
    Ok(buffer)
}
