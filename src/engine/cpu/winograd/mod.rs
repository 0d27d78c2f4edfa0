//! 3x3 convolution by Winograd's minimal filtering (Lavin and Gray 2015): F(4x4, 3x3) takes 36 multiplications for 16
//! outputs instead of 144, F(2x2, 3x3) takes 16 for 4 instead of 36, with smaller weights.
//!
//! Input rows are normalised into a ring and transformed, a matrix product a point follows, the results are transformed
//! back and added to the output. On large images a task takes one block of tiles after another through all steps, down a
//! strip of the image, so that transformed tiles never leave its cache and the ring goes on from block to block. Where
//! there are so few tiles that reading the weights is what costs, all tiles go through one step at a time and the tasks
//! divide the weights.

#![allow(unsafe_code)]

pub mod transform;

use std::ops::Range;
use std::sync::Arc;

use transform::{Target, input_tile, output_tile};

use super::buffer::{Buffer, SharedMut};
use super::caches::Caches;
use super::product::{Product, Segment, product};
use super::reader::{Map, Reader};
use super::simd::{Kernel, Simd};
use super::step::{Context, ScratchSize, Step};
use crate::engine::winograd::points;
use crate::plan::{Conv, Plan};

/// Channels that are read and transformed at a time.
pub const CHUNK: usize = 32;

/// Tiles of a block at least where the weights are what costs, and at most. More tiles read the weights less often; fewer
/// stay in cache.
const FEWEST_TILES: usize = 16;
const MOST_TILES: usize = 64;

/// Columns of tiles of a block at most.
const WIDEST: usize = 32;

/// Tiles of a block if each takes `bytes`: as many as the second-level cache holds. If those are few, weights are read so
/// often that it is better to keep the tiles in a share of the last level.
fn block_tiles(bytes: usize, threads: usize) -> usize {
    let caches = Caches::of_this_machine();
    let near = caches.second / bytes;
    if near >= FEWEST_TILES {
        return near.min(WIDEST);
    }
    (caches.last / 2 / threads / bytes).clamp(FEWEST_TILES, MOST_TILES)
}

/// Tasks that every thread should get, so that all of them end at about the same time.
const TASKS_PER_THREAD: usize = 4;

/// Weights from which tasks divide them where there are no more than so many tiles.
const MANY_WEIGHTS: usize = 1 << 14;
const FEW_TILES: usize = 64;

/// A convolution for which Winograd was chosen, with tiles of `TILE` x `TILE` outputs. Its channels are multiples of
/// [`CHUNK`].
pub struct WinogradConv<const TILE: usize> {
    conv: Conv,
    weight: Arc<Buffer>,
    bias: Option<Arc<Buffer>>,
    inputs: usize,
    outputs: usize,
    /// Transformed tiles and weights are bf16.
    bf16: bool,
    /// Rows and columns of tiles.
    grid: (usize, usize),
    batch: usize,
    work: Work,
}

/// How tasks divide a convolution.
enum Work {
    /// Blocks of so many rows and columns of tiles go through all steps, so many below each other in one task.
    Blocks { block: (usize, usize), strip: usize },
    /// All tiles go through one step at a time.
    Steps,
}

/// Whether Winograd's algorithm can be used.
pub fn fits(conv: &Conv, plan: &Plan) -> bool {
    let channels = |&id: &usize| plan.tensors[id].channels;
    conv.kernel == 3
        && conv.stride == 1
        && conv.source.parts.iter().all(|part| channels(part).is_multiple_of(CHUNK))
        && channels(&conv.output).is_multiple_of(CHUNK)
}

/// Rows of transformed tiles are padded by a cache line, so that they do not all fall into one cache set.
const fn stride(channels: usize) -> usize {
    channels + 16
}

impl<const TILE: usize> WinogradConv<TILE> {
    const SIDE: usize = TILE + 2;
    const POINTS: usize = points(TILE);

    pub fn new(
        conv: &Conv,
        plan: &Plan,
        weight: Arc<Buffer>,
        bias: Option<Arc<Buffer>>,
        bf16: bool,
        threads: usize,
    ) -> Self {
        let output = &plan.tensors[conv.output];
        let inputs = conv.source.parts.iter().map(|&part| plan.tensors[part].channels).sum();
        let grid = (output.height.div_ceil(TILE), output.width.div_ceil(TILE));
        let batch = plan.options.batch;
        let total = grid.0 * grid.1 * batch;
        let work = if total <= FEW_TILES && inputs * output.channels >= MANY_WEIGHTS {
            Work::Steps
        } else {
            // Every thread gets a block.
            let tiles = total
                .div_ceil(threads)
                .min(block_tiles(Self::POINTS * 4 * (stride(inputs) + stride(output.channels)), threads));
            // As wide as each other.
            let width = grid.1.div_ceil(grid.1.div_ceil(tiles.min(WIDEST)));
            let block = ((tiles / width).clamp(1, grid.0), width);
            let (rows, columns) = (grid.0.div_ceil(block.0), grid.1.div_ceil(block.1));
            let strips = (TASKS_PER_THREAD * threads).div_ceil(batch * columns).min(rows);
            Work::Blocks { block, strip: rows.div_ceil(strips) }
        };
        Self { conv: conv.clone(), weight, bias, inputs, outputs: output.channels, bf16, grid, batch, work }
    }

    /// Values that a tile's inputs at a point take; two in bf16 count as one.
    fn depth(&self) -> usize {
        if self.bf16 { self.inputs / 2 } else { self.inputs }
    }

    /// Values of a chunk's ring that is `columns` tiles wide.
    fn ring_len(columns: usize) -> usize {
        Self::SIDE * (TILE * columns + 2) * CHUNK
    }

    /// The product of all tiles at `point`, for the panels of `columns`.
    fn product(
        &self,
        point: usize,
        tiles: usize,
        columns: Range<usize>,
        context: &Context<'_>,
    ) -> PointProduct<'_> {
        let (panel, terms) = (context.set.panel(), context.terms);
        let weight = (point * self.outputs.div_ceil(panel) * panel + columns.start) * self.depth();
        PointProduct {
            right: &self.weight.slice()[weight..],
            terms,
            bf16: self.bf16,
            inputs: self.depth(),
            point,
            tiles,
            columns,
            strides: (stride(self.depth()), stride(self.outputs)),
        }
    }

    /// All tiles through one step at a time.
    fn run_steps(&self, context: &Context<'_>, parts: &Parts<'_>) {
        let (per_sample, panel) = (self.grid.0 * self.grid.1, context.set.panel());
        let tiles = per_sample * self.batch;
        let transformed = context.shared;
        // SAFETY: shared scratch memory is as long as `scratch` says.
        let products = unsafe { transformed.add(Self::POINTS * tiles * stride(self.depth())) };
        let block = |sample: usize, scratch: *mut f32| Block {
            step: self,
            parts,
            output: context.output(self.conv.output),
            sample,
            strip_top: 0,
            above: 0,
            left: 0,
            tiles: self.grid,
            count: tiles,
            ring: scratch,
            // SAFETY: as above; samples follow each other.
            transformed: unsafe { transformed.add(sample * per_sample * stride(self.depth())) }.get(),
            // SAFETY: as above.
            products: unsafe { products.add(sample * per_sample * stride(self.outputs)) }.get(),
        };
        let chunks = self.inputs / CHUNK;
        context.parallel(self.batch * chunks, |task| {
            let channels = task % chunks * CHUNK..(task % chunks + 1) * CHUNK;
            context.with_private(|scratch| {
                let kernel = TransformInput { block: block(task / chunks, scratch), channels };
                // SAFETY: each task writes its own channels of the transformed tiles.
                unsafe { context.dispatch(kernel) }
            });
        });
        let share = self.outputs.div_ceil(4 * context.private.len()).next_multiple_of(panel);
        let shares = self.outputs.div_ceil(share);
        context.parallel(Self::POINTS * shares, |task| {
            let columns = task % shares * share..self.outputs.min((task % shares + 1) * share);
            let product = self.product(task / shares, tiles, columns, context);
            // SAFETY: each task writes its own point and channels of the products.
            unsafe { context.dispatch(product.of(transformed.get(), products.get())) }
        });
        let chunks = self.outputs / CHUNK;
        context.parallel(self.batch * chunks, |task| {
            let channels = task % chunks * CHUNK..(task % chunks + 1) * CHUNK;
            let kernel = TransformOutput { block: block(task / chunks, std::ptr::null_mut()), channels };
            // SAFETY: each task writes its own channels of the output.
            unsafe { context.dispatch(kernel) }
        });
    }

    /// Each block of tiles through all steps, block after block down each strip.
    fn run_blocks(&self, context: &Context<'_>, parts: &Parts<'_>, block: (usize, usize), strip: usize) {
        let output = context.output(self.conv.output);
        let (rows, columns) = self.grid;
        let strip_rows = strip * block.0;
        let strips = (rows.div_ceil(strip_rows), columns.div_ceil(block.1));
        context.parallel(self.batch * strips.0 * strips.1, |task| {
            let (sample, index) = (task / (strips.0 * strips.1), task % (strips.0 * strips.1));
            let (first_row, first_column) = (index / strips.1 * strip_rows, index % strips.1 * block.1);
            let end = rows.min(first_row + strip_rows);
            context.with_private(|ring| {
                let transformed = ring.wrapping_add(self.inputs / CHUNK * Self::ring_len(block.1));
                let products =
                    transformed.wrapping_add(Self::POINTS * block.0 * block.1 * stride(self.depth()));
                for row in (first_row..end).step_by(block.0) {
                    let tiles = (block.0.min(end - row), block.1.min(columns - first_column));
                    let block = Block {
                        step: self,
                        parts,
                        output,
                        sample,
                        strip_top: first_row * TILE,
                        above: row - first_row,
                        left: first_column * TILE,
                        tiles,
                        count: tiles.0 * tiles.1,
                        ring,
                        transformed,
                        products,
                    };
                    // SAFETY: scratch has the size that was asked for; blocks write disjoint parts of the output.
                    unsafe { context.dispatch(AllSteps { block, context }) }
                }
            });
        });
    }
}

impl<const TILE: usize> Step for WinogradConv<TILE> {
    fn scratch(&self) -> ScratchSize {
        let tile = Self::POINTS * (stride(self.depth()) + stride(self.outputs));
        match self.work {
            Work::Blocks { block, .. } => ScratchSize {
                private: self.inputs / CHUNK * Self::ring_len(block.1) + block.0 * block.1 * tile,
                shared: 0,
            },
            Work::Steps => ScratchSize {
                private: Self::ring_len(self.grid.1),
                shared: self.grid.0 * self.grid.1 * self.batch * tile,
            },
        }
    }

    fn run(&self, context: &Context<'_>) {
        let parts = Parts {
            reader: &context.reader(&self.conv.source),
            residual: self.conv.residual.as_ref().map(|source| context.reader(source)),
            sample_bias: self.conv.sample_bias.map(|id| context.map(id)),
        };
        match self.work {
            Work::Blocks { block, strip } => self.run_blocks(context, &parts, block, strip),
            Work::Steps => self.run_steps(context, &parts),
        }
    }
}

/// What a convolution reads beside its weights.
struct Parts<'a> {
    reader: &'a Reader,
    residual: Option<Reader>,
    sample_bias: Option<Map>,
}

/// A block of tiles of one sample and where their transformed values lie.
struct Block<'a, const TILE: usize> {
    step: &'a WinogradConv<TILE>,
    parts: &'a Parts<'a>,
    output: SharedMut,
    sample: usize,
    /// First row of outputs of the strip that the block belongs to.
    strip_top: usize,
    /// Rows of tiles of the strip above the block; the ring holds the pixels that these share with it.
    above: usize,
    /// First column of outputs.
    left: usize,
    /// Rows and columns of tiles.
    tiles: (usize, usize),
    /// Tiles at each point, those of other samples included.
    count: usize,
    /// A ring a chunk of channels.
    ring: *mut f32,
    transformed: *mut f32,
    products: *mut f32,
}

/// A block through all steps.
struct AllSteps<'a, const TILE: usize> {
    block: Block<'a, TILE>,
    context: &'a Context<'a>,
}

impl<const TILE: usize> Kernel for AllSteps<'_, TILE> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let block = &self.block;
        let step = block.step;
        // SAFETY: the three parts of scratch memory are as long as they have to be.
        unsafe {
            let ring_len = WinogradConv::<TILE>::ring_len(block.tiles.1);
            for chunk in 0..step.inputs / CHUNK {
                block.transform_input::<S>(chunk * CHUNK, block.ring.add(chunk * ring_len));
            }
            for point in 0..WinogradConv::<TILE>::POINTS {
                let point = step.product(point, block.count, 0..step.outputs, self.context);
                point.of(block.transformed, block.products).run::<S>();
            }
            block.transform_output::<S>(0..step.outputs);
        }
    }
}

struct TransformInput<'a, const TILE: usize> {
    block: Block<'a, TILE>,
    channels: Range<usize>,
}

impl<const TILE: usize> Kernel for TransformInput<'_, TILE> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: promised by the caller.
        unsafe { self.block.transform_input::<S>(self.channels.start, self.block.ring) }
    }
}

struct TransformOutput<'a, const TILE: usize> {
    block: Block<'a, TILE>,
    channels: Range<usize>,
}

impl<const TILE: usize> Kernel for TransformOutput<'_, TILE> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: promised by the caller.
        unsafe { self.block.transform_output::<S>(self.channels) }
    }
}

/// A matrix product at one point.
struct PointProduct<'a> {
    right: &'a [f32],
    terms: usize,
    bf16: bool,
    inputs: usize,
    point: usize,
    tiles: usize,
    columns: Range<usize>,
    strides: (usize, usize),
}

impl PointProduct<'_> {
    /// The same on memory that holds all points.
    fn of(&self, transformed: *const f32, products: *mut f32) -> OwnedProduct {
        let (in_stride, out_stride) = self.strides;
        OwnedProduct {
            left: Segment {
                start: transformed.wrapping_add(self.point * self.tiles * in_stride),
                row_stride: in_stride,
                len: self.inputs,
            },
            rows: self.tiles,
            right: self.right.as_ptr(),
            terms: self.terms,
            bf16: self.bf16,
            columns: self.columns.len(),
            out: products.wrapping_add(self.point * self.tiles * out_stride + self.columns.start),
            out_stride,
        }
    }
}

/// A [`Product`] with one segment.
struct OwnedProduct {
    left: Segment,
    rows: usize,
    right: *const f32,
    terms: usize,
    bf16: bool,
    columns: usize,
    out: *mut f32,
    out_stride: usize,
}

impl Kernel for OwnedProduct {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: promised by the caller.
        unsafe {
            product::<S>(&Product {
                segments: &[self.left],
                rows: self.rows,
                right: self.right,
                terms: self.terms,
                bf16: self.bf16,
                columns: self.columns,
                bias: std::ptr::null(),
                accumulate: false,
                out: self.out,
                out_stride: self.out_stride,
            });
        }
    }
}

impl<const TILE: usize> Block<'_, TILE> {
    const SIDE: usize = TILE + 2;

    /// The first row of outputs.
    fn top(&self) -> usize {
        self.strip_top + TILE * self.above
    }

    /// Transforms channels `chunk..chunk + CHUNK` of all tiles.
    ///
    /// # Safety
    /// `ring` holds what the rows of tiles above left there. It and the transformed tiles have the size that they need, and
    /// no other task writes them.
    #[inline(always)]
    unsafe fn transform_input<S: Simd>(&self, chunk: usize, ring: *mut f32) {
        let tile_stride = stride(self.step.depth());
        let point_stride = self.count * tile_stride;
        let columns = TILE * self.tiles.1 + 2;
        let row_len = columns * CHUNK;
        // SAFETY: the ring has as many rows as a tile; every tile has its row in `transformed`.
        unsafe {
            let mut filled = if self.above == 0 { 0 } else { TILE * self.above + Self::SIDE - TILE };
            for tile_y in 0..self.tiles.0 {
                // Row r of the strip, counted from the padding above it, lives in slot r % SIDE.
                let first = TILE * (self.above + tile_y);
                while filled < first + Self::SIDE {
                    let y = (self.strip_top + filled) as isize - 1;
                    let slot = ring.add(filled % Self::SIDE * row_len);
                    let x = self.left as isize - 1;
                    self.parts.reader.row::<S>(self.sample, y, x, columns, chunk..chunk + CHUNK, slot, CHUNK);
                    filled += 1;
                }
                for tile_x in 0..self.tiles.1 {
                    let to = self.transformed.add((tile_y * self.tiles.1 + tile_x) * tile_stride);
                    let mut c = 0;
                    while c < CHUNK {
                        let from = ring.add(TILE * tile_x * CHUNK + c).cast_const();
                        let first = first % Self::SIDE;
                        if S::BF16 && self.step.bf16 {
                            let to = to.cast::<u16>().add(chunk + c).cast();
                            input_tile::<S, TILE, true>(from, row_len, first, to, point_stride);
                        } else {
                            let to = to.add(chunk + c);
                            input_tile::<S, TILE, false>(from, row_len, first, to, point_stride);
                        }
                        c += S::LANES;
                    }
                }
            }
        }
    }

    /// Transforms `channels` of all tiles back and adds bias and residual.
    ///
    /// # Safety
    /// As [`transform_input`](Self::transform_input).
    #[inline(always)]
    unsafe fn transform_output<S: Simd>(&self, channels: Range<usize>) {
        let (height, width) = self.parts.reader.size();
        let outputs = self.step.outputs;
        let tile_stride = stride(outputs);
        let top = self.top();
        let rows = (TILE * self.tiles.0).min(height - top);
        let columns = (TILE * self.tiles.1).min(width - self.left);
        // SAFETY: only pixels of this block inside the image are written.
        unsafe {
            let offset = self.sample * height * width * outputs;
            let image = self.output.get().add(offset);
            // A residual that lies like the output is added on the way; any other is laid there first.
            let mut added: *const f32 = std::ptr::null();
            if let Some(residual) = &self.parts.residual {
                added = image;
                if residual.is_plain() {
                    added = residual.parts[0].data.add(offset);
                } else {
                    for y in top..top + rows {
                        let row = image.add((y * width + self.left) * outputs + channels.start);
                        let (y, x) = (y as isize, self.left as isize);
                        residual.row::<S>(self.sample, y, x, columns, channels.clone(), row, outputs);
                    }
                }
            }
            for tile_y in 0..self.tiles.0 {
                for tile_x in 0..self.tiles.1 {
                    let from = self.products.add((tile_y * self.tiles.1 + tile_x) * tile_stride);
                    let (y, x) = (top + TILE * tile_y, self.left + TILE * tile_x);
                    let at = (y * width + x) * outputs;
                    let size = (TILE.min(height - y), TILE.min(width - x));
                    let mut c = channels.start;
                    while c < channels.end {
                        let mut bias = S::splat(0.0);
                        if let Some(values) = &self.step.bias {
                            bias = S::load(values.slice().as_ptr().add(c));
                        }
                        if let Some(values) = self.parts.sample_bias {
                            bias = S::add(bias, S::load(values.data.add(self.sample * outputs + c)));
                        }
                        let target = Target {
                            to: image.add(at + c),
                            added: if added.is_null() { added } else { added.add(at + c) },
                            row_stride: width * outputs,
                            pixel_stride: outputs,
                            size,
                        };
                        output_tile::<S, TILE>(from.add(c), self.count * tile_stride, bias, &target);
                        c += S::LANES;
                    }
                }
            }
        }
    }
}
