//! By Winograd's minimal filtering: the transpose of F(4x4, 3x3) with respect to its filter.
//!
//! A tile's outputs are `A^T [(G w G^T) . (B^T d B)] A`, so the filter's gradient is
//! `G^T [sum over tiles of (A g A^T) . (B^T d B)] G` with g that of the outputs: 36 products of matrices whose inner
//! dimension counts tiles.

use std::ops::Range;

use mdm::engine::cpu::buffer::SharedMut;
use mdm::engine::cpu::reader::Reader;
use mdm::engine::cpu::simd::{Kernel, Simd};
use mdm::engine::cpu::step::{Context, ScratchSize};
use mdm::engine::cpu::winograd::transform::{at_pair, input_tile};
use mdm::engine::winograd::{DIVISORS, FAR, NEAR};
use mdm::plan::{Plan, Resample, Source};

use super::ConvWeight;
use crate::engine::cpu::outer::{Outer, Rows, outer};
use crate::engine::parameters::Gradients;

pub(super) use mdm::engine::cpu::winograd::CHUNK;

const TILE: usize = 4;
const SIDE: usize = 6;
const POINTS: usize = SIDE * SIDE;

/// Values of the 36 sums up to which tiles are divided into groups that are summed by themselves.
const FEW_SUMS: usize = 640_000;
const FEWEST_GROUPS: usize = 4;
const MOST_GROUPS: usize = 16;

/// Tiles of a group at least: fewer are not worth writing all sums once more.
const GROUP_TILES: usize = 128;

/// Values of transformed tiles that a task of a group works on; they should stay in the second-level cache.
const BLOCK_VALUES: usize = 3 << 16;

/// Tiles of a block.
const FEWEST_BLOCK_TILES: usize = 16;
const MOST_BLOCK_TILES: usize = 128;

/// Tiles that go through one step at a time where tasks divide the results.
const STEP_TILES: usize = 256;

/// Inputs of a task that adds up.
const SHARE: usize = 8;

pub(super) struct Winograd<'a> {
    op: &'a ConvWeight<'a>,
    inputs: usize,
    outputs: usize,
    /// Rows and columns of tiles.
    grid: (usize, usize),
    /// Tiles of all samples.
    tiles: usize,
    /// Groups of tiles; 1 where tasks divide the results.
    groups: usize,
    /// Tiles that are transformed before they are multiplied.
    block: usize,
}

/// Rows of transformed tiles are padded by a cache line, so that they do not all fall into one cache set.
const fn stride(channels: usize) -> usize {
    channels + 16
}

impl<'a> Winograd<'a> {
    pub(super) fn new(op: &'a ConvWeight<'a>, plan: &Plan) -> Self {
        let output = &plan.tensors[op.gradient];
        let (inputs, outputs) = (op.inputs(plan), output.channels);
        let grid = (output.height.div_ceil(TILE), output.width.div_ceil(TILE));
        let tiles = grid.0 * grid.1 * plan.options.batch;
        let fitting = BLOCK_VALUES / (POINTS * (stride(inputs) + stride(outputs)));
        // Whole rows of tiles go on with the pixels of those above them.
        let block = match fitting.clamp(FEWEST_BLOCK_TILES, MOST_BLOCK_TILES) {
            tiles if tiles > grid.1 => tiles - tiles % grid.1,
            tiles => tiles,
        };
        let groups = MOST_GROUPS.min(tiles / GROUP_TILES);
        if POINTS * inputs * outputs <= FEW_SUMS && groups >= FEWEST_GROUPS {
            Self { op, inputs, outputs, grid, tiles, groups, block }
        } else {
            Self { op, inputs, outputs, grid, tiles, groups: 1, block: tiles.min(STEP_TILES) }
        }
    }

    fn sums_len(&self) -> usize {
        POINTS * self.inputs * self.outputs
    }

    fn transformed_len(&self) -> usize {
        POINTS * self.block * (stride(self.inputs) + stride(self.outputs))
    }

    /// Pixels of a row of tiles before they are transformed, those of [`CHUNK`] channels.
    fn ring_len(&self) -> usize {
        SIDE * (TILE * self.grid.1 + 2) * CHUNK
    }

    /// Rings for all inputs, and one for the gradient.
    fn rings_len(&self) -> usize {
        (self.inputs / CHUNK + 1) * self.ring_len()
    }

    pub(super) fn scratch(&self) -> ScratchSize {
        if self.groups > 1 {
            ScratchSize {
                shared: self.groups * self.sums_len(),
                private: self.rings_len() + self.transformed_len(),
            }
        } else {
            ScratchSize { shared: self.sums_len() + self.transformed_len(), private: self.ring_len() }
        }
    }

    pub(super) fn run(&self, context: &Context<'_>, gradients: &Gradients<'_>) {
        let plain = Source { parts: vec![self.op.gradient], norm: None, resample: Resample::None };
        let readers = (context.reader(self.op.source), context.reader(&plain));
        if self.groups > 1 {
            context.parallel(self.groups, |group| {
                let tiles = group * self.tiles / self.groups..(group + 1) * self.tiles / self.groups;
                // SAFETY: sums of its own for each group.
                let sums = unsafe { context.shared.add(group * self.sums_len()) };
                context.with_private(|rings| {
                    let transformed = rings.wrapping_add(self.rings_len());
                    let mut held = None;
                    for start in tiles.clone().step_by(self.block) {
                        let block = start..tiles.end.min(start + self.block);
                        let input = Transform {
                            op: self,
                            reader: &readers.0,
                            first: true,
                            channels: 0..self.inputs,
                            tiles: block.clone(),
                            held,
                            rings,
                            out: transformed,
                        };
                        let gradient = Transform {
                            reader: &readers.1,
                            first: false,
                            channels: 0..self.outputs,
                            tiles: block.clone(),
                            rings: rings.wrapping_add(self.rings_len() - self.ring_len()),
                            ..input
                        };
                        let sum = Points {
                            op: self,
                            tiles: block.len(),
                            points: 0..POINTS,
                            columns: 0..self.outputs,
                            transformed,
                            accumulate: start > tiles.start,
                            sums,
                        };
                        // SAFETY: private scratch memory and sums are as long as they have to be.
                        unsafe {
                            context.dispatch(gradient);
                            held = context.dispatch(input);
                            context.dispatch(sum);
                        }
                    }
                });
            });
        } else {
            self.run_steps(context, &readers);
        }
        self.add_up(context, gradients);
    }

    /// All tiles through one step at a time.
    fn run_steps(&self, context: &Context<'_>, readers: &(Reader, Reader)) {
        let sums = context.shared;
        // SAFETY: they follow the sums.
        let transformed = unsafe { sums.add(self.sums_len()) };
        let chunks = (self.inputs / CHUNK, self.outputs / CHUNK);
        for start in (0..self.tiles).step_by(self.block) {
            let tiles = start..self.tiles.min(start + self.block);
            context.parallel(chunks.0 + chunks.1, |task| {
                let first = task < chunks.0;
                let chunk = if first { task } else { task - chunks.0 };
                context.with_private(|rings| {
                    let kernel = Transform {
                        op: self,
                        reader: if first { &readers.0 } else { &readers.1 },
                        first,
                        channels: chunk * CHUNK..(chunk + 1) * CHUNK,
                        tiles: tiles.clone(),
                        held: None,
                        rings,
                        out: transformed.get(),
                    };
                    // SAFETY: each task writes its own channels.
                    unsafe { context.dispatch(kernel) };
                });
            });
            let shares = self.outputs.div_ceil(4 * CHUNK);
            context.parallel(POINTS * shares, |task| {
                let (point, share) = (task / shares, task % shares);
                let kernel = Points {
                    op: self,
                    tiles: tiles.len(),
                    points: point..point + 1,
                    columns: share * 4 * CHUNK..self.outputs.min((share + 1) * 4 * CHUNK),
                    transformed: transformed.get(),
                    accumulate: start > 0,
                    sums,
                };
                // SAFETY: each task writes its own point and columns.
                unsafe { context.dispatch(kernel) }
            });
        }
    }

    /// Adds up the groups, transforms the sums back, and adds them to the gradient.
    fn add_up(&self, context: &Context<'_>, gradients: &Gradients<'_>) {
        let target = gradients.of(self.op.weight);
        context.parallel(self.inputs.div_ceil(SHARE), |task| {
            let inputs = task * SHARE..self.inputs.min((task + 1) * SHARE);
            let kernel = AddUp { op: self, inputs, sums: context.shared, target };
            // SAFETY: each task adds to its own inputs.
            unsafe { context.dispatch(kernel) }
        });
    }
}

/// Transforms channels of the input's or the gradient's tiles.
struct Transform<'a> {
    op: &'a Winograd<'a>,
    reader: &'a Reader,
    /// Whether it is the input.
    first: bool,
    channels: Range<usize>,
    tiles: Range<usize>,
    /// The row of tiles, by its first, of which the rings hold all columns; none at first. Only the input's are gone on with.
    held: Option<usize>,
    /// One a chunk for the input, one for the gradient.
    rings: *mut f32,
    out: *mut f32,
}

impl Kernel for Transform<'_> {
    /// What is held afterwards.
    type Output = Option<usize>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Option<usize> {
        let op = self.op;
        let per_sample = op.grid.0 * op.grid.1;
        let count = self.tiles.len();
        // Where the input's and the gradient's transformed tiles begin, and how long their rows are.
        let (start, stride) = if self.first {
            (0, stride(op.inputs))
        } else {
            (POINTS * op.block * stride(op.inputs), stride(op.outputs))
        };
        let mut held = None;
        // SAFETY: rings and transformed tiles have the size that they need.
        unsafe {
            let out = self.out.add(start);
            let (side, padding) = if self.first { (SIDE, 1) } else { (TILE, 0) };
            let row_len = (TILE * op.grid.1 + 2) * CHUNK;
            for (index, chunk) in self.channels.clone().step_by(CHUNK).enumerate() {
                let ring = if self.first { self.rings.add(index * op.ring_len()) } else { self.rings };
                held = self.held;
                let mut tile = self.tiles.start;
                while tile < self.tiles.end {
                    // The rest of this row of tiles.
                    let (sample, index) = (tile / per_sample, tile % per_sample);
                    let (tile_y, tile_x) = (index / op.grid.1, index % op.grid.1);
                    let run = (op.grid.1 - tile_x).min(self.tiles.end - tile);
                    // Row r, counted from the padding above the sample, lives in slot r % side. The first rows may be there from
                    // the row of tiles above this one.
                    let goes_on = self.first && tile_y > 0 && held.map(|held| held + op.grid.1) == Some(tile);
                    let missing = TILE * tile_y + if goes_on { side - TILE } else { 0 };
                    for y in missing..TILE * tile_y + side {
                        self.reader.row::<S>(
                            sample,
                            y as isize - padding as isize,
                            (TILE * tile_x) as isize - padding as isize,
                            TILE * run + 2 * padding,
                            chunk..chunk + CHUNK,
                            ring.add(y % side * row_len),
                            CHUNK,
                        );
                    }
                    held = (run == op.grid.1).then_some(tile);
                    for i in 0..run {
                        let to = out.add((tile - self.tiles.start + i) * stride + chunk);
                        let from = ring.add(TILE * i * CHUNK).cast_const();
                        let mut c = 0;
                        while c < CHUNK {
                            let (from, to) = (from.add(c), to.add(c));
                            if self.first {
                                input_tile::<S, TILE, false>(
                                    from,
                                    row_len,
                                    TILE * tile_y % SIDE,
                                    to,
                                    count * stride,
                                );
                            } else {
                                gradient_tile::<S>(from, row_len, to, count * stride);
                            }
                            c += S::LANES;
                        }
                    }
                    tile += run;
                }
            }
        }
        held
    }
}

/// `A g` for one column of a tile.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn gradient_transform<S: Simd>(g: [S::V; TILE]) -> [S::V; SIDE] {
    // SAFETY: promised by the caller.
    unsafe {
        let (near, far) = (NEAR as f32, FAR as f32);
        let (near2, far2) = (S::splat(near * near), S::splat(far * far));
        let [n0, n1] = at_pair::<S>(near, S::mul_add(near2, g[2], g[0]), S::mul_add(near2, g[3], g[1]));
        let [f0, f1] = at_pair::<S>(far, S::mul_add(far2, g[2], g[0]), S::mul_add(far2, g[3], g[1]));
        [g[0], n0, n1, f0, f1, g[3]]
    }
}

/// `A g A^T` for one tile.
///
/// # Safety
/// `from` has four rows of four pixels, and `to` takes a vector a point, `point_stride` apart.
#[inline(always)]
unsafe fn gradient_tile<S: Simd>(from: *const f32, row_len: usize, to: *mut f32, point_stride: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        let mut columns = [[zero; SIDE]; TILE];
        let mut x = 0;
        while x < TILE {
            let at = from.add(x * CHUNK);
            let g = [
                S::load(at),
                S::load(at.add(row_len)),
                S::load(at.add(2 * row_len)),
                S::load(at.add(3 * row_len)),
            ];
            columns[x] = gradient_transform::<S>(g);
            x += 1;
        }
        let mut y = 0;
        while y < SIDE {
            let v = gradient_transform::<S>([columns[0][y], columns[1][y], columns[2][y], columns[3][y]]);
            let mut x = 0;
            while x < SIDE {
                S::store(to.add((y * SIDE + x) * point_stride), v[x]);
                x += 1;
            }
            y += 1;
        }
    }
}

/// The products of some points.
struct Points<'a> {
    op: &'a Winograd<'a>,
    tiles: usize,
    points: Range<usize>,
    columns: Range<usize>,
    transformed: *mut f32,
    accumulate: bool,
    sums: SharedMut,
}

impl Kernel for Points<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Winograd { inputs, outputs, block, .. } = *self.op;
        let (left_stride, right_stride) = (stride(inputs), stride(outputs));
        // SAFETY: promised by the caller.
        unsafe {
            let right = self.transformed.add(POINTS * block * left_stride + self.columns.start);
            for point in self.points.clone() {
                outer::<S>(&Outer {
                    rows: &[Rows {
                        left: self.transformed.add(point * self.tiles * left_stride),
                        left_stride,
                        right: right.add(point * self.tiles * right_stride),
                        right_stride,
                        count: self.tiles,
                    }],
                    height: inputs,
                    width: self.columns.len(),
                    accumulate: self.accumulate,
                    out: self.sums.get().add(point * inputs * outputs + self.columns.start),
                    out_stride: outputs,
                });
            }
        }
    }
}

/// `G^T v` for one column of sums.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn filter_transform<S: Simd>(v: [S::V; SIDE]) -> [S::V; 3] {
    // SAFETY: promised by the caller.
    unsafe {
        let [zero, near, far] = DIVISORS;
        let (near, far) = (S::splat((1.0 / near) as f32), S::splat((1.0 / far) as f32));
        let (near_sum, near_difference) =
            (S::mul(near, S::add(v[1], v[2])), S::mul(near, S::sub(v[1], v[2])));
        let (far_sum, far_difference) = (S::mul(far, S::add(v[3], v[4])), S::mul(far, S::sub(v[3], v[4])));
        let (near, far) = (NEAR as f32, FAR as f32);
        [
            S::mul_add(S::splat((1.0 / zero) as f32), v[0], S::add(near_sum, far_sum)),
            S::mul_add(S::splat(near), near_difference, S::mul(S::splat(far), far_difference)),
            S::mul_add(S::splat(near * near), near_sum, S::mul_add(S::splat(far * far), far_sum, v[5])),
        ]
    }
}

struct AddUp<'a> {
    op: &'a Winograd<'a>,
    inputs: Range<usize>,
    sums: SharedMut,
    target: SharedMut,
}

impl Kernel for AddUp<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Winograd { inputs, outputs, groups, .. } = *self.op;
        let point_stride = inputs * outputs;
        // SAFETY: outputs are a multiple of the lanes.
        unsafe {
            let zero = S::splat(0.0);
            for i in self.inputs.clone() {
                for out in (0..outputs).step_by(S::LANES) {
                    let mut rows = [[zero; SIDE]; 3];
                    let mut x = 0;
                    while x < SIDE {
                        let mut column = [zero; SIDE];
                        let mut y = 0;
                        while y < SIDE {
                            let mut from =
                                self.sums.get().add((y * SIDE + x) * point_stride + i * outputs + out);
                            column[y] = S::load(from);
                            for _ in 1..groups {
                                from = from.add(POINTS * point_stride);
                                column[y] = S::add(column[y], S::load(from));
                            }
                            y += 1;
                        }
                        let v = filter_transform::<S>(column);
                        let mut y = 0;
                        while y < 3 {
                            rows[y][x] = v[y];
                            y += 1;
                        }
                        x += 1;
                    }
                    let mut values = [[0.0f32; 16]; 9];
                    let mut y = 0;
                    while y < 3 {
                        let v = filter_transform::<S>(rows[y]);
                        let mut x = 0;
                        while x < 3 {
                            S::store(values[y * 3 + x].as_mut_ptr(), v[x]);
                            x += 1;
                        }
                        y += 1;
                    }
                    for lane in 0..S::LANES {
                        let to = self.target.get().add(((out + lane) * inputs + i) * 9);
                        for (tap, row) in values.iter().enumerate() {
                            *to.add(tap) += row[lane];
                        }
                    }
                }
            }
        }
    }
}
