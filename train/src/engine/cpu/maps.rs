//! Gradients that touch every pixel once: sums over pixels, sums of what flows back, and zeros between pixels.

#![allow(unsafe_code)]

use mdm::engine::cpu::buffer::SharedMut;
use mdm::engine::cpu::reader::{Map, load, store};
use mdm::engine::cpu::simd::{Kernel, Simd};
use mdm::engine::cpu::step::Context;
use mdm::engine::cpu::sums::Compensated;
use mdm::plan::{Resample, Source, TensorId};

use crate::differentiate::{Contribution, NormUse};

/// Pixels whose values are summed in f32, with compensation; the sums of such blocks are added in f64, in the same order
/// always.
const BLOCK: usize = 256;

/// Vectors of channels that are summed side by side.
const VECTORS: usize = 4;

/// Values of a tensor that are added up at a time; they stay in the first-level cache.
const PIECE: usize = 4096;

/// Shared scratch memory for sums of `per_channel` values a channel.
pub(super) fn sums_scratch(tensors: &[(usize, usize)], batch: usize, per_channel: usize) -> usize {
    tensors.iter().map(|&(pixels, channels)| batch * pixels.div_ceil(BLOCK) * per_channel * channels).sum()
}

/// The sum over pixels of each channel of each sample, handed to `write` as (sample, channel, sum).
pub(super) fn channel_sums(
    context: &Context<'_>,
    gradient: TensorId,
    mut write: impl FnMut(usize, usize, f64),
) {
    let map = context.map(gradient);
    let (pixels, channels) = (map.height * map.width, map.channels);
    let blocks = pixels.div_ceil(BLOCK);
    context.parallel(context.batch() * blocks, |task| {
        let (sample, first) = (task / blocks, task % blocks * BLOCK);
        let kernel = BlockSums {
            data: map.at((sample * pixels + first) * channels),
            pixels: BLOCK.min(pixels - first),
            channels,
            // SAFETY: a slot of its own for each task.
            out: unsafe { context.shared.add(task * channels) },
        };
        // SAFETY: the pixels lie in the map.
        unsafe { context.dispatch(kernel) }
    });
    for sample in 0..context.batch() {
        for c in 0..channels {
            let sum = (0..blocks)
                .map(|block| {
                    // SAFETY: written above.
                    f64::from(unsafe { *context.shared.get().add((sample * blocks + block) * channels + c) })
                })
                .sum();
            write(sample, c, sum);
        }
    }
}

struct BlockSums {
    data: *const f32,
    pixels: usize,
    channels: usize,
    out: SharedMut,
}

impl Kernel for BlockSums {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the pixels are there, and vectors are cut at the last channel.
        unsafe {
            for c in (0..self.channels).step_by(S::LANES) {
                let lanes = S::LANES.min(self.channels - c);
                let mut sum = Compensated::<S>::zero();
                let mut from = self.data.add(c);
                for _ in 0..self.pixels {
                    sum.add(load::<S>(from, lanes));
                    from = from.wrapping_add(self.channels);
                }
                store::<S>(self.out.get().add(c), sum.value, lanes);
            }
        }
    }
}

/// The gradient of a norm's coefficients.
pub(super) fn norm_sums(context: &Context<'_>, source: &Source, gradient: TensorId, output: TensorId) {
    let Some(norm) = source.norm else { return };
    let total = context.plan.tensors[output].channels / 2;
    let coefficients = context.map(norm.coefficients);
    let gradient = context.map(gradient);
    let out = context.output(output);
    let mut first = 0;
    for &part in &source.parts {
        let x = context.map(part);
        let (pixels, channels) = (x.height * x.width, x.channels);
        let blocks = pixels.div_ceil(BLOCK);
        context.parallel(context.batch() * blocks, |task| {
            let (sample, start) = (task / blocks, task % blocks * BLOCK);
            // SAFETY: a slot of its own for each task; coefficients are there for each sample.
            let kernel = unsafe {
                BlockNormSums {
                    x,
                    gradient: Incoming { map: gradient, first, resample: source.resample },
                    sample,
                    pixels: start..pixels.min(start + BLOCK),
                    scale: coefficients.at(sample * 2 * total + first),
                    shift: coefficients.at(sample * 2 * total + total + first),
                    silu: norm.silu,
                    out: context.shared.add(task * 2 * channels),
                }
            };
            // SAFETY: as above.
            unsafe { context.dispatch(kernel) }
        });
        for sample in 0..context.batch() {
            for c in 0..channels {
                for (which, place) in [(0, c), (1, channels + c)] {
                    let sum: f64 = (0..blocks)
                        .map(|block| {
                            // SAFETY: written above.
                            f64::from(unsafe {
                                *context.shared.get().add((sample * blocks + block) * 2 * channels + place)
                            })
                        })
                        .sum();
                    // SAFETY: two values a channel and sample.
                    unsafe { *out.get().add(sample * 2 * total + which * total + first + c) = sum as f32 };
                }
            }
        }
        first += channels;
    }
}

/// The gradient of what was read from a tensor, at its own resolution.
#[derive(Clone, Copy)]
struct Incoming {
    map: Map,
    /// Where the tensor's channels begin.
    first: usize,
    resample: Resample,
}

impl Incoming {
    /// `lanes` channels from `c` on at row `y` and column `x` of the tensor.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, sample: usize, y: usize, x: usize, c: usize, lanes: usize) -> S::V {
        let Map { height, width, channels, .. } = self.map;
        let image = self.map.at(sample * height * width * channels + self.first + c);
        // SAFETY: promised by the caller.
        unsafe {
            match self.resample {
                Resample::None => load::<S>(image.add((y * width + x) * channels), lanes),
                Resample::NearestUp => {
                    let from = image.add((2 * y * width + 2 * x) * channels);
                    let below = from.add(width * channels);
                    S::add(
                        S::add(load::<S>(from, lanes), load::<S>(from.add(channels), lanes)),
                        S::add(load::<S>(below, lanes), load::<S>(below.add(channels), lanes)),
                    )
                }
                Resample::AverageDown => {
                    let from = image.add((y / 2 * width + x / 2) * channels);
                    S::mul(load::<S>(from, lanes), S::splat(0.25))
                }
            }
        }
    }
}

/// The derivative of `u * sigmoid(u)`.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn silu_slope<S: Simd>(u: S::V) -> S::V {
    // SAFETY: promised by the caller.
    unsafe {
        let one = S::splat(1.0);
        let sigmoid = S::reciprocal(S::add(S::exp(S::sub(S::splat(0.0), u)), one));
        S::mul(sigmoid, S::mul_add(u, S::sub(one, sigmoid), one))
    }
}

struct BlockNormSums {
    x: Map,
    gradient: Incoming,
    sample: usize,
    pixels: std::ops::Range<usize>,
    scale: *const f32,
    shift: *const f32,
    silu: bool,
    out: SharedMut,
}

impl Kernel for BlockNormSums {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.x.channels;
        // SAFETY: vectors are cut at the last channel.
        unsafe {
            let mut c = 0;
            while c + VECTORS * S::LANES <= channels {
                self.channels::<S, VECTORS>(c, S::LANES);
                c += VECTORS * S::LANES;
            }
            while c < channels {
                self.channels::<S, 1>(c, S::LANES.min(channels - c));
                c += S::LANES;
            }
        }
    }
}

impl BlockNormSums {
    /// # Safety
    /// `N` vectors from channel `c` on are there, the last one with `lanes` values.
    #[inline(always)]
    unsafe fn channels<S: Simd, const N: usize>(&self, c: usize, lanes: usize) {
        let Map { height, width, channels, .. } = self.x;
        // SAFETY: promised by the caller.
        unsafe {
            let zero = S::splat(0.0);
            let (mut products, mut sums) = ([Compensated::<S>::zero(); N], [Compensated::<S>::zero(); N]);
            let (mut scale, mut shift) = ([zero; N], [zero; N]);
            let mut v = 0;
            while v < N {
                scale[v] = load::<S>(self.scale.add(c + v * S::LANES), lanes);
                shift[v] = load::<S>(self.shift.add(c + v * S::LANES), lanes);
                v += 1;
            }
            let (mut y, mut x) = (self.pixels.start / width, self.pixels.start % width);
            for pixel in self.pixels.clone() {
                let from = self.x.at((self.sample * height * width + pixel) * channels + c);
                let mut v = 0;
                while v < N {
                    let value = load::<S>(from.add(v * S::LANES), lanes);
                    let mut g = self.gradient.at::<S>(self.sample, y, x, c + v * S::LANES, lanes);
                    if self.silu {
                        g = S::mul(g, silu_slope::<S>(S::mul_add(value, scale[v], shift[v])));
                    }
                    products[v].add_product(g, value);
                    sums[v].add(g);
                    v += 1;
                }
                x += 1;
                if x == width {
                    (y, x) = (y + 1, 0);
                }
            }
            let mut v = 0;
            while v < N {
                let to = self.out.get().add(c + v * S::LANES);
                store::<S>(to, products[v].value, lanes);
                store::<S>(to.add(channels), sums[v].value, lanes);
                v += 1;
            }
        }
    }
}

/// Everything that flows back into a tensor.
pub(super) fn sum(context: &Context<'_>, tensor: TensorId, contributions: &[Contribution], output: TensorId) {
    let x = context.map(tensor);
    let pixels = x.height * x.width;
    let parts: Vec<Part> = contributions
        .iter()
        .map(|contribution| match contribution {
            Contribution::Read { gradient, first_channel, resample, norm } => Part::Read {
                incoming: Incoming {
                    map: context.map(*gradient),
                    first: *first_channel,
                    resample: *resample,
                },
                norm: norm.map(|NormUse { coefficients, silu }| (context.map(coefficients), silu)),
            },
            Contribution::Affine { coefficients } => Part::Affine(context.map(*coefficients)),
        })
        .collect();
    let piece = (PIECE / x.channels).clamp(1, pixels);
    let pieces = pixels.div_ceil(piece);
    let out = context.output(output);
    // Pieces are small; a task takes several.
    let tasks = pieces.min(64);
    context.parallel(context.batch() * tasks, |task| {
        let (sample, task) = (task / tasks, task % tasks);
        for index in task * pieces / tasks..(task + 1) * pieces / tasks {
            let start = index * piece;
            let kernel = Piece { x, parts: &parts, sample, pixels: start..pixels.min(start + piece), out };
            // SAFETY: each task writes its own pixels.
            unsafe { context.dispatch(kernel) }
        }
    });
}

enum Part {
    Read { incoming: Incoming, norm: Option<(Map, bool)> },
    Affine(Map),
}

struct Piece<'a> {
    x: Map,
    parts: &'a [Part],
    sample: usize,
    pixels: std::ops::Range<usize>,
    out: SharedMut,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: pixels lie in the tensor; coefficients are there for each sample.
        unsafe {
            for (index, part) in self.parts.iter().enumerate() {
                let add = index > 0;
                match part {
                    Part::Read { incoming, norm: None } => {
                        self.add::<S, PLAIN>(add, *incoming, std::ptr::null(), std::ptr::null());
                    }
                    Part::Read { incoming, norm: Some((coefficients, silu)) } => {
                        let scale = coefficients.at(self.sample * coefficients.channels + incoming.first);
                        let shift = scale.wrapping_add(coefficients.channels / 2);
                        if *silu {
                            self.add::<S, SILU>(add, *incoming, scale, shift);
                        } else {
                            self.add::<S, SCALED>(add, *incoming, scale, shift);
                        }
                    }
                    Part::Affine(coefficients) => {
                        let p = coefficients.at(self.sample * coefficients.channels);
                        let q = p.wrapping_add(coefficients.channels / 2);
                        let nothing = Incoming { map: self.x, first: 0, resample: Resample::None };
                        self.add::<S, AFFINE>(add, nothing, p, q);
                    }
                }
            }
        }
    }
}

/// How a contribution is computed.
const PLAIN: u8 = 0;
const SCALED: u8 = 1;
const SILU: u8 = 2;
const AFFINE: u8 = 3;

impl Piece<'_> {
    /// Writes or adds one contribution. `first` and `second` are a norm's multipliers and summands, or p and q.
    ///
    /// # Safety
    /// The pixels lie in the tensor; there is a constant for each of its channels unless the mode is plain.
    #[inline(always)]
    unsafe fn add<S: Simd, const MODE: u8>(
        &self,
        add: bool,
        incoming: Incoming,
        first: *const f32,
        second: *const f32,
    ) {
        let Map { height, width, channels, .. } = self.x;
        // SAFETY: promised by the caller.
        unsafe {
            for c in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - c);
                let (mut a, mut b) = (S::splat(0.0), S::splat(0.0));
                if MODE != PLAIN {
                    a = load::<S>(first.add(c), lanes);
                    b = load::<S>(second.add(c), lanes);
                }
                let (mut y, mut x) = (self.pixels.start / width, self.pixels.start % width);
                for pixel in self.pixels.clone() {
                    let at = (self.sample * height * width + pixel) * channels + c;
                    let mut result = if MODE == AFFINE {
                        S::mul_add(load::<S>(self.x.at(at), lanes), b, a)
                    } else {
                        incoming.at::<S>(self.sample, y, x, c, lanes)
                    };
                    if MODE == SCALED || MODE == SILU {
                        result = S::mul(result, a);
                    }
                    if MODE == SILU {
                        let value = load::<S>(self.x.at(at), lanes);
                        result = S::mul(result, silu_slope::<S>(S::mul_add(value, a, b)));
                    }
                    let to = self.out.get().add(at);
                    if add {
                        result = S::add(result, load::<S>(to, lanes));
                    }
                    store::<S>(to, result, lanes);
                    x += 1;
                    if x == width {
                        (y, x) = (y + 1, 0);
                    }
                }
            }
        }
    }
}

/// Zeros between pixels.
pub(super) fn spread(context: &Context<'_>, input: TensorId, output: TensorId) {
    let from = context.map(input);
    let to = &context.plan.tensors[output];
    let (height, width, channels) = (to.height, to.width, to.channels);
    let out = context.output(output);
    context.parallel(context.batch() * height, |row| {
        let (sample, y) = (row / height, row % height);
        // SAFETY: each task writes its own row.
        unsafe {
            let line =
                std::slice::from_raw_parts_mut(out.get().add(row * width * channels), width * channels);
            line.fill(0.0);
            if y.is_multiple_of(2) {
                let start = (sample * from.height + y / 2) * from.width * channels;
                for x in 0..from.width {
                    let pixel = std::slice::from_raw_parts(from.at(start + x * channels), channels);
                    line[2 * x * channels..][..channels].copy_from_slice(pixel);
                }
            }
        }
    });
}
