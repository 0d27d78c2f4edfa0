//! Parameters in the layouts that the kernels read.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::buffer::Buffer;
use super::simd::{InstructionSet, Kernel, Simd};
use crate::Result;
use crate::engine::winograd;
use crate::model::WeightSource;
use crate::plan::{HEAD_PREFIX, Param};

/// How a parameter lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As in the checkpoint.
    Raw,
    /// A matrix `[out, in, taps...]` as panels of `panel` outputs: `[panels][taps][in][panel]`, the last panel padded with
    /// zeros. Where it is `grouped`, the first dimension of the parameter counts matrices that are packed one by one.
    Panels { panel: usize, grouped: bool },
    /// Such panels of one matrix, rounded to bf16, with an even number of inputs. Those of an even input and of the next one lie
    /// side by side: `[panels][taps][in / 2][panel][2]`.
    PanelsBf16 { panel: usize },
    /// A 3x3 kernel transformed for Winograd's algorithm with tiles of `tile` x `tile` outputs: `[points][panels][in][panel]`.
    Winograd { panel: usize, tile: usize },
    /// The same in bf16, pair by pair as above.
    WinogradBf16 { panel: usize, tile: usize },
}

/// Packed parameters of one model. An entry is made once and shared by all networks that use it.
#[derive(Default)]
pub struct PackedWeights {
    known: HashMap<(String, Layout, Vec<usize>), Arc<Buffer>>,
    /// Memory that can be used again.
    spare: Vec<Buffer>,
    /// Memory for panels that are then rounded to bf16.
    unrounded: Option<Buffer>,
}

impl PackedWeights {
    /// The parameter in the given layout, from `weights` unless it is here already.
    pub fn get(
        &mut self,
        param: &Param,
        layout: Layout,
        weights: &dyn WeightSource,
        set: InstructionSet,
    ) -> Result<Arc<Buffer>> {
        // A name may have another shape in another network.
        let key = (param.name.clone(), layout, param.shape.clone());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let values = param.read(weights)?;
        let packed = Arc::new(match layout {
            Layout::PanelsBf16 { panel } => {
                let rows: usize = param.shape[1..].iter().product();
                let mut panels = self.unrounded(param.shape[0].next_multiple_of(panel) * rows)?;
                fill_panels(panels.slice_mut(), &values, &param.shape, panel);
                self.pairs(panels, panel)?
            }
            Layout::WinogradBf16 { panel, tile } => {
                let columns = param.shape[0].next_multiple_of(panel);
                let mut panels = self.unrounded(winograd::points(tile) * columns * param.shape[1])?;
                fill_winograd(panels.slice_mut(), &values, &param.shape, panel, tile, set);
                self.pairs(panels, panel)?
            }
            Layout::Raw => {
                let mut buffer = self.memory(values.len())?;
                buffer.slice_mut().copy_from_slice(&values);
                buffer
            }
            Layout::Panels { panel, grouped } => {
                let (groups, shape) =
                    if grouped { (param.shape[0], &param.shape[1..]) } else { (1, &param.shape[..]) };
                let panels = groups * shape[0].div_ceil(panel);
                let mut buffer = self.memory(panels * panel * shape[1..].iter().product::<usize>())?;
                fill_panels(buffer.slice_mut(), &values, shape, panel);
                buffer
            }
            Layout::Winograd { panel, tile } => {
                let columns = param.shape[0].next_multiple_of(panel);
                let mut buffer = self.memory(winograd::points(tile) * columns * param.shape[1])?;
                fill_winograd(buffer.slice_mut(), &values, &param.shape, panel, tile, set);
                buffer
            }
        });
        // The packed copy is all that is needed from here on.
        drop(values);
        // Models with other heads share the cache of their backbone.
        if !param.name.starts_with(HEAD_PREFIX) {
            self.known.insert(key, packed.clone());
        }
        Ok(packed)
    }

    /// Rounds panels to bf16 and interleaves pairs of their rows.
    fn pairs(&mut self, panels: Buffer, panel: usize) -> Result<Buffer> {
        let mut packed = Buffer::zeroed(panels.slice().len() / 2)?;
        let pairs = packed.slice_mut().par_chunks_mut(panel).zip(panels.slice().par_chunks(2 * panel));
        pairs.for_each(|(to, from)| {
            let (even, odd) = from.split_at(panel);
            for ((to, &even), &odd) in to.iter_mut().zip(even).zip(odd) {
                let bits = |value| u32::from(half::bf16::from_f32(value).to_bits());
                *to = f32::from_bits(bits(odd) << 16 | bits(even));
            }
        });
        // The next weight is made in the same memory.
        self.unrounded = Some(panels);
        Ok(packed)
    }

    /// Forgets what was packed; its memory takes what is packed next. For parameters that change between uses.
    pub fn recycle(&mut self) {
        self.spare.extend(self.known.drain().filter_map(|(_, packed)| Arc::into_inner(packed)));
    }

    /// Memory for `len` values that are rounded afterwards, whatever it holds.
    fn unrounded(&mut self, len: usize) -> Result<Buffer> {
        match self.unrounded.take() {
            Some(buffer) if buffer.capacity() >= len => Ok(buffer.resized(len)),
            _ => Buffer::zeroed(len),
        }
    }

    /// Gives back memory that nothing stays in.
    pub fn drop_spare(&mut self) {
        (self.spare, self.unrounded) = Default::default();
    }

    /// Memory for `len` values, whatever it holds.
    fn memory(&mut self, len: usize) -> Result<Buffer> {
        // The smallest that has room; where none has, the new one takes the place of the largest.
        self.spare.sort_by_key(Buffer::capacity);
        let at = self.spare.partition_point(|buffer| buffer.capacity() < len);
        if at < self.spare.len() {
            return Ok(self.spare.remove(at).resized(len));
        }
        drop(self.spare.pop());
        Buffer::zeroed(len)
    }
}

/// Packs matrices of the given shape, one after another, as [`Layout::Panels`].
fn fill_panels(packed: &mut [f32], data: &[f32], shape: &[usize], panel: usize) {
    let (outputs, inputs) = (shape[0], shape[1]);
    let taps: usize = shape[2..].iter().product();
    packed.par_chunks_mut(taps * inputs * panel).enumerate().for_each(|(index, chunk)| {
        let (group, first) = (index / outputs.div_ceil(panel), index % outputs.div_ceil(panel) * panel);
        let own = first..outputs.min(first + panel);
        if own.len() < panel {
            chunk.fill(0.0);
        }
        for out in own {
            let filter = &data[(group * outputs + out) * inputs * taps..][..inputs * taps];
            for (i, values) in filter.chunks_exact(taps).enumerate() {
                for (tap, &value) in values.iter().enumerate() {
                    chunk[(tap * inputs + i) * panel + out - first] = value;
                }
            }
        }
    });
}

/// Packs a 3x3 kernel as [`Layout::Winograd`].
fn fill_winograd(
    packed: &mut [f32],
    data: &[f32],
    shape: &[usize],
    panel: usize,
    tile: usize,
    set: InstructionSet,
) {
    let (outputs, inputs) = (shape[0], shape[1]);
    let count = outputs.div_ceil(panel);
    // Panels of all points, so that each thread transforms the filters of its own outputs.
    let mut by_panel: Vec<Vec<&mut [f32]>> =
        (0..count).map(|_| Vec::with_capacity(winograd::points(tile))).collect();
    for (index, chunk) in packed.chunks_mut(inputs * panel).enumerate() {
        by_panel[index % count].push(chunk);
    }
    by_panel.par_iter_mut().enumerate().for_each(|(index, points)| {
        let outputs = index * panel..outputs.min((index + 1) * panel);
        // SAFETY: the set is this machine's.
        unsafe { set.run(TransformFilters { points, data, inputs, outputs, panel, tile }) };
    });
}

/// Transforms the filters of the outputs of one panel.
struct TransformFilters<'a> {
    /// The panel at each point.
    points: &'a mut [&'a mut [f32]],
    data: &'a [f32],
    inputs: usize,
    outputs: Range<usize>,
    panel: usize,
    tile: usize,
}

/// Filters side by side.
const SIDE_BY_SIDE: usize = 8;

impl Kernel for TransformFilters<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { points, data, inputs, outputs, panel, tile } = self;
        for lane in (0..panel).step_by(SIDE_BY_SIDE) {
            let first = outputs.start + lane;
            let count = outputs.end.saturating_sub(first).min(SIDE_BY_SIDE);
            for i in 0..inputs {
                let mut taps = [[0.0; SIDE_BY_SIDE]; 9];
                for out in 0..count {
                    let filter = &data[((first + out) * inputs + i) * 9..][..9];
                    for (tap, &value) in taps.iter_mut().zip(filter) {
                        tap[out] = f64::from(value);
                    }
                }
                winograd::transform_filters(tile, &taps, |point, values| {
                    points[point][i * panel + lane..][..SIDE_BY_SIDE].copy_from_slice(&values);
                });
            }
        }
    }
}
