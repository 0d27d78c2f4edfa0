//! 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2015): 36 multiplications for 16
//! outputs instead of 144.
//!
//! Interpolation points are 0, 1, -1, 1/2, -2 and infinity, which lose fewer bits than the usual 0, 1, -1, 2, -2.
//! A task takes a block of tiles through all three steps, so that transformed tiles never leave its cache:
//! input rows are normalised into a ring of six rows and transformed, 36 matrix products follow, their results are
//! transformed back and added to the output.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::buffer::{Buffer, SharedMut};
use super::product::{Product, Segment, product};
use super::reader::{Map, Reader};
use super::simd::{Kernel, Simd, panel};
use super::step::{Context, ScratchSize, Step};
use crate::plan::{Conv, Plan};

/// Products a tile: 6 x 6.
pub(crate) const POINTS: usize = 36;

/// Rows and columns of outputs a tile.
const TILE: usize = 4;

/// Channels that are read and transformed at a time.
const CHUNK: usize = 32;

/// Tiles of a task at most. More tiles read the weights less often; fewer stay in cache.
const BLOCK_TILES: usize = 64;

/// `G g G^T`, in f64.
pub(crate) fn transform_filter(filter: &[f32]) -> [f32; POINTS] {
    let g = |a: f64, b: f64, c: f64| {
        [
            a,
            (a + b + c) / 3.0,
            (b - a - c) / 3.0,
            -(16.0 * a + 8.0 * b + 4.0 * c) / 15.0,
            (a - 2.0 * b + 4.0 * c) / 15.0,
            c,
        ]
    };
    let mut columns = [[0.0; 6]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = g(filter[x].into(), filter[3 + x].into(), filter[6 + x].into());
    }
    let mut points = [0.0; POINTS];
    for y in 0..6 {
        for (x, value) in g(columns[0][y], columns[1][y], columns[2][y]).into_iter().enumerate() {
            points[y * 6 + x] = value as f32;
        }
    }
    points
}

/// A convolution for which Winograd was chosen. Its channels are multiples of [`CHUNK`].
pub(crate) struct WinogradConv {
    conv: Conv,
    weight: Arc<Buffer>,
    bias: Option<Arc<Buffer>>,
    inputs: usize,
    outputs: usize,
    block: (usize, usize),
}

impl WinogradConv {
    /// Whether the algorithm can be used.
    pub(crate) fn fits(conv: &Conv, plan: &Plan) -> bool {
        let channels = |&id: &usize| plan.tensors[id].channels;
        conv.kernel == 3
            && conv.stride == 1
            && conv.source.parts.iter().all(|part| channels(part).is_multiple_of(CHUNK))
            && channels(&conv.output).is_multiple_of(CHUNK)
    }

    pub(crate) fn new(
        conv: &Conv,
        plan: &Plan,
        weight: Arc<Buffer>,
        bias: Option<Arc<Buffer>>,
        threads: usize,
    ) -> Self {
        let output = &plan.tensors[conv.output];
        let inputs = conv.source.parts.iter().map(|&part| plan.tensors[part].channels).sum();
        let grid = (output.height.div_ceil(TILE), output.width.div_ceil(TILE));
        // Every thread gets a block, if there are tiles enough.
        let tiles = (grid.0 * grid.1 * plan.options.batch).div_ceil(threads).min(BLOCK_TILES);
        let width = grid.1.min(16).min(tiles.max(1));
        let block = ((tiles / width).clamp(1, grid.0), width);
        Self { conv: conv.clone(), weight, bias, inputs, outputs: output.channels, block }
    }

    fn tiles(&self) -> usize {
        self.block.0 * self.block.1
    }

    /// Rows of transformed tiles are padded by a cache line, so that they do not all fall into one cache set.
    fn stride(channels: usize) -> usize {
        channels + 16
    }

    fn ring_len(&self) -> usize {
        6 * (TILE * self.block.1 + 2) * CHUNK
    }
}

impl Step for WinogradConv {
    fn scratch(&self) -> ScratchSize {
        let rows = POINTS * self.tiles();
        let private = self.ring_len() + rows * (Self::stride(self.inputs) + Self::stride(self.outputs));
        ScratchSize { private, shared: 0 }
    }

    fn run(&self, context: &Context<'_>) {
        let reader = context.reader(&self.conv.source);
        let residual = self.conv.residual.as_ref().map(|source| context.reader(source));
        let sample_bias = self.conv.sample_bias.map(|id| context.map(id));
        let output = context.output(self.conv.output);
        let (height, width) = reader.size();
        let blocks = (height.div_ceil(TILE * self.block.0), width.div_ceil(TILE * self.block.1));
        context.parallel(context.batch() * blocks.0 * blocks.1, |task| {
            let (sample, block) = (task / (blocks.0 * blocks.1), task % (blocks.0 * blocks.1));
            let top = block / blocks.1 * self.block.0 * TILE;
            let left = block % blocks.1 * self.block.1 * TILE;
            context.with_private(|scratch| {
                let tiles = (
                    self.block.0.min((height - top).div_ceil(TILE)),
                    self.block.1.min((width - left).div_ceil(TILE)),
                );
                let kernel = Block {
                    step: self,
                    reader: &reader,
                    residual: residual.as_ref(),
                    sample_bias,
                    output,
                    sample,
                    top,
                    left,
                    tiles,
                    scratch,
                };
                // SAFETY: scratch has the size that was asked for; blocks write disjoint parts of the output.
                unsafe { context.dispatch(kernel) }
            });
        });
    }
}

struct Block<'a> {
    step: &'a WinogradConv,
    reader: &'a Reader,
    residual: Option<&'a Reader>,
    sample_bias: Option<Map>,
    output: SharedMut,
    sample: usize,
    top: usize,
    left: usize,
    tiles: (usize, usize),
    scratch: *mut f32,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let step = self.step;
        let count = self.tiles.0 * self.tiles.1;
        let (in_stride, out_stride) = (WinogradConv::stride(step.inputs), WinogradConv::stride(step.outputs));
        // SAFETY: the three parts of scratch are as long as `WinogradConv::scratch` says.
        unsafe {
            let ring = self.scratch;
            let transformed = ring.add(step.ring_len());
            let products = transformed.add(POINTS * step.tiles() * in_stride);
            for chunk in (0..step.inputs).step_by(CHUNK) {
                self.transform_input::<S>(chunk, ring, transformed.add(chunk), count * in_stride, in_stride);
            }
            let per_point = step.outputs.div_ceil(panel::<S>()) * step.inputs * panel::<S>();
            for point in 0..POINTS {
                let start = transformed.add(point * count * in_stride).cast_const();
                product::<S>(&Product {
                    segments: &[Segment { start, row_stride: in_stride, len: step.inputs }],
                    rows: count,
                    right: step.weight.slice().as_ptr().add(point * per_point),
                    columns: step.outputs,
                    bias: std::ptr::null(),
                    accumulate: false,
                    out: products.add(point * count * out_stride),
                    out_stride,
                });
            }
            self.transform_output::<S>(products, count * out_stride, out_stride);
        }
    }
}

impl Block<'_> {
    /// Transforms channels `chunk..chunk + CHUNK` of all tiles; points are `point_stride` values apart.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn transform_input<S: Simd>(
        &self,
        chunk: usize,
        ring: *mut f32,
        transformed: *mut f32,
        point_stride: usize,
        tile_stride: usize,
    ) {
        let columns = TILE * self.tiles.1 + 2;
        let row_len = columns * CHUNK;
        // SAFETY: the ring has six rows of this length; every tile has its row in `transformed`.
        unsafe {
            let mut filled = 0;
            for tile_y in 0..self.tiles.0 {
                // Row r of the block, counted from the padding above it, lives in slot r % 6.
                while filled < TILE * tile_y + 6 {
                    let y = (self.top + filled) as isize - 1;
                    let slot = ring.add(filled % 6 * row_len);
                    let x = self.left as isize - 1;
                    self.reader.row::<S>(self.sample, y, x, columns, chunk..chunk + CHUNK, slot, CHUNK);
                    filled += 1;
                }
                for tile_x in 0..self.tiles.1 {
                    let to = transformed.add((tile_y * self.tiles.1 + tile_x) * tile_stride);
                    let mut c = 0;
                    while c < CHUNK {
                        let from = ring.add(TILE * tile_x * CHUNK + c).cast_const();
                        input_tile::<S>(from, row_len, TILE * tile_y % 6, to.add(c), point_stride);
                        c += S::LANES;
                    }
                }
            }
        }
    }

    /// Transforms all tiles back and adds bias and residual.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn transform_output<S: Simd>(
        &self,
        products: *const f32,
        point_stride: usize,
        tile_stride: usize,
    ) {
        let (height, width) = self.reader.size();
        let channels = self.step.outputs;
        let rows = (TILE * self.tiles.0).min(height - self.top);
        let columns = (TILE * self.tiles.1).min(width - self.left);
        // SAFETY: only pixels of this block inside the image are written.
        unsafe {
            let image = self.output.get().add(self.sample * height * width * channels);
            for y in 0..rows {
                let Some(residual) = self.residual else { break };
                let row = image.add(((self.top + y) * width + self.left) * channels);
                let (y, x) = ((self.top + y) as isize, self.left as isize);
                residual.row::<S>(self.sample, y, x, columns, 0..channels, row, channels);
            }
            for tile_y in 0..self.tiles.0 {
                for tile_x in 0..self.tiles.1 {
                    let from = products.add((tile_y * self.tiles.1 + tile_x) * tile_stride);
                    let (y, x) = (self.top + TILE * tile_y, self.left + TILE * tile_x);
                    let to = image.add((y * width + x) * channels);
                    let size = (TILE.min(height - y), TILE.min(width - x));
                    let mut c = 0;
                    while c < channels {
                        let mut bias = S::splat(0.0);
                        if let Some(values) = &self.step.bias {
                            bias = S::load(values.slice().as_ptr().add(c));
                        }
                        if let Some(values) = self.sample_bias {
                            bias = S::add(bias, S::load(values.data.add(self.sample * channels + c)));
                        }
                        let target = Target {
                            to: to.add(c),
                            row_stride: width * channels,
                            pixel_stride: channels,
                            size,
                            add: self.residual.is_some(),
                        };
                        output_tile::<S>(from.add(c), point_stride, bias, &target);
                        c += S::LANES;
                    }
                }
            }
        }
    }
}

/// `B^T d` for one column of a tile.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn input_transform<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: promised by the caller.
    unsafe {
        let k = S::splat(1.5);
        let a = S::sub(d[3], d[1]);
        let b = S::sub(d[4], d[2]);
        [
            S::mul_add(k, a, S::add(S::sub(d[0], d[2]), b)),
            S::mul_add(k, S::add(d[2], d[3]), S::add(a, b)),
            S::mul_add(k, S::sub(d[3], d[2]), S::sub(b, a)),
            S::mul_add(S::splat(2.0), a, b),
            S::mul_add(S::splat(-0.5), a, b),
            S::mul_add(k, b, S::sub(S::sub(d[5], d[3]), a)),
        ]
    }
}

/// `B^T d B` for the tile whose rows start at slot `first` of the ring at `from`.
///
/// # Safety
/// The ring has six rows, and `to` takes 36 vectors `point_stride` apart.
#[inline(always)]
unsafe fn input_tile<S: Simd>(
    from: *const f32,
    row_len: usize,
    first: usize,
    to: *mut f32,
    point_stride: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        let mut rows = [[zero; 6]; 6];
        let mut x = 0;
        while x < 6 {
            let mut d = [zero; 6];
            let mut y = 0;
            while y < 6 {
                let slot = if first + y < 6 { first + y } else { first + y - 6 };
                d[y] = S::load(from.add(slot * row_len + x * CHUNK));
                y += 1;
            }
            let v = input_transform::<S>(d);
            let mut y = 0;
            while y < 6 {
                rows[y][x] = v[y];
                y += 1;
            }
            x += 1;
        }
        let mut y = 0;
        while y < 6 {
            let v = input_transform::<S>(rows[y]);
            let mut x = 0;
            while x < 6 {
                S::store(to.add((y * 6 + x) * point_stride), v[x]);
                x += 1;
            }
            y += 1;
        }
    }
}

/// `A^T m` for one column of products.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn output_transform<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
    // SAFETY: promised by the caller.
    unsafe {
        let sum = S::add(m[1], m[2]);
        let difference = S::sub(m[1], m[2]);
        [
            S::add(S::add(m[0], sum), S::add(m[3], m[4])),
            S::mul_add(S::splat(0.5), m[3], S::mul_add(S::splat(-2.0), m[4], difference)),
            S::mul_add(S::splat(0.25), m[3], S::mul_add(S::splat(4.0), m[4], sum)),
            S::add(S::mul_add(S::splat(0.125), m[3], S::mul_add(S::splat(-8.0), m[4], difference)), m[5]),
        ]
    }
}

/// Where a tile of outputs goes.
struct Target {
    to: *mut f32,
    row_stride: usize,
    pixel_stride: usize,
    /// Rows and columns inside the image.
    size: (usize, usize),
    /// Adds to what is there.
    add: bool,
}

/// `A^T m A + bias` for one tile.
///
/// # Safety
/// `from` has 36 vectors `point_stride` apart; the target takes the pixels inside the image.
#[inline(always)]
unsafe fn output_tile<S: Simd>(from: *const f32, point_stride: usize, bias: S::V, target: &Target) {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        let mut rows = [[zero; 6]; 4];
        let mut x = 0;
        while x < 6 {
            let mut m = [zero; 6];
            let mut y = 0;
            while y < 6 {
                m[y] = S::load(from.add((y * 6 + x) * point_stride));
                y += 1;
            }
            let v = output_transform::<S>(m);
            let mut y = 0;
            while y < 4 {
                rows[y][x] = v[y];
                y += 1;
            }
            x += 1;
        }
        let mut y = 0;
        while y < target.size.0 {
            let v = output_transform::<S>(rows[y]);
            let mut x = 0;
            while x < 4 {
                if x < target.size.1 {
                    let to = target.to.add(y * target.row_stride + x * target.pixel_stride);
                    let value = S::add(v[x], bias);
                    S::store(to, if target.add { S::add(S::load(to), value) } else { value });
                }
                x += 1;
            }
            y += 1;
        }
    }
}
