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

/// Vectors of channels that are summed side by side: enough to hide how long one addition takes, few enough for the
/// registers.
const VECTORS: usize = 2;

/// Pixels of a task that adds up what flows back.
const TASK_PIXELS: usize = 1024;

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
        // SAFETY: vectors are cut at the last channel.
        unsafe {
            let mut c = 0;
            while c + VECTORS * S::LANES <= self.channels {
                self.vectors::<S, VECTORS>(c, S::LANES);
                c += VECTORS * S::LANES;
            }
            while c < self.channels {
                self.vectors::<S, 1>(c, S::LANES.min(self.channels - c));
                c += S::LANES;
            }
        }
    }
}

impl BlockSums {
    /// # Safety
    /// `N` vectors from channel `c` on are there, the last one with `lanes` values.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const N: usize>(&self, c: usize, lanes: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            let mut sums = [Compensated::<S>::zero(); N];
            let mut from = self.data.add(c);
            for _ in 0..self.pixels {
                let mut v = 0;
                while v < N {
                    sums[v].add(load::<S>(from.add(v * S::LANES), lanes));
                    v += 1;
                }
                from = from.wrapping_add(self.channels);
            }
            let mut v = 0;
            while v < N {
                store::<S>(self.out.get().add(c + v * S::LANES), sums[v].value, lanes);
                v += 1;
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
    let parts: Vec<Part> = contributions.iter().map(|part| Part::new(context, x, part)).collect();
    let tasks = pixels.div_ceil(TASK_PIXELS);
    let out = context.output(output);
    context.parallel(context.batch() * tasks, |task| {
        let (sample, start) = (task / tasks, task % tasks * TASK_PIXELS);
        let range = start..pixels.min(start + TASK_PIXELS);
        // SAFETY: each task writes its own pixels.
        unsafe { context.dispatch(Total { x, parts: &parts, sample, pixels: range, out }) }
    });
}

/// A contribution whose tensors are known.
struct Part {
    how: How,
    incoming: Incoming,
    /// A constant a channel of the tensor, for the first sample: a norm's multipliers and summands, or p and q.
    constants: [*const f32; 2],
    /// From one sample's constants to the next one's.
    stride: usize,
}

/// How a contribution is computed from x and the gradient g that flows in.
#[derive(Clone, Copy)]
enum How {
    /// g
    Plain,
    /// g times the norm's multiplier.
    Scaled,
    /// The same times the slope of SiLU.
    Silu,
    /// `p + q x`
    Affine,
}

// SAFETY: constants are only read, and only while nobody writes them.
unsafe impl Sync for Part {}

impl Part {
    fn new(context: &Context<'_>, x: Map, contribution: &Contribution) -> Self {
        let constants = |map: Map, first: usize| [map.at(first), map.at(first + map.channels / 2)];
        match *contribution {
            Contribution::Read { gradient, first_channel: first, resample, norm } => {
                let incoming = Incoming { map: context.map(gradient), first, resample };
                let Some(NormUse { coefficients, silu }) = norm else {
                    return Self { how: How::Plain, incoming, constants: [std::ptr::null(); 2], stride: 0 };
                };
                let how = if silu { How::Silu } else { How::Scaled };
                let map = context.map(coefficients);
                Self { how, incoming, constants: constants(map, first), stride: map.channels }
            }
            Contribution::Affine { coefficients } => {
                let incoming = Incoming { map: x, first: 0, resample: Resample::None };
                let map = context.map(coefficients);
                Self { how: How::Affine, incoming, constants: constants(map, 0), stride: map.channels }
            }
        }
    }
}

struct Total<'a> {
    x: Map,
    parts: &'a [Part],
    sample: usize,
    pixels: std::ops::Range<usize>,
    out: SharedMut,
}

impl Kernel for Total<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Map { height, width, channels, .. } = self.x;
        let (mut y, mut x) = (self.pixels.start / width, self.pixels.start % width);
        for pixel in self.pixels.clone() {
            let at = (self.sample * height * width + pixel) * channels;
            let mut c = 0;
            // SAFETY: pixels lie in the tensor, and vectors are cut at the last channel.
            unsafe {
                while c + 2 * S::LANES <= channels {
                    self.vectors::<S, 2>(at, (y, x), c, S::LANES);
                    c += 2 * S::LANES;
                }
                while c < channels {
                    self.vectors::<S, 1>(at, (y, x), c, S::LANES.min(channels - c));
                    c += S::LANES;
                }
            }
            x += 1;
            if x == width {
                (y, x) = (y + 1, 0);
            }
        }
    }
}

impl Total<'_> {
    /// Adds up `N` vectors from channel `c` on of the pixel at `at`.
    ///
    /// # Safety
    /// They are there, the last one with `lanes` values.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const N: usize>(
        &self,
        at: usize,
        (y, x): (usize, usize),
        c: usize,
        lanes: usize,
    ) {
        // SAFETY: promised by the caller; there are constants for every channel of a sample unless a part is plain.
        unsafe {
            let mut values = [S::splat(0.0); N];
            let mut sums = [S::splat(0.0); N];
            let mut v = 0;
            while v < N {
                values[v] = load::<S>(self.x.at(at + c + v * S::LANES), lanes);
                v += 1;
            }
            for (index, part) in self.parts.iter().enumerate() {
                let mut v = 0;
                while v < N {
                    let c = c + v * S::LANES;
                    let constant = |which: usize| {
                        load::<S>(part.constants[which].add(self.sample * part.stride + c), lanes)
                    };
                    let incoming = || part.incoming.at::<S>(self.sample, y, x, c, lanes);
                    let result = match part.how {
                        How::Plain => incoming(),
                        How::Scaled => S::mul(incoming(), constant(0)),
                        How::Silu => {
                            let scale = constant(0);
                            let slope = silu_slope::<S>(S::mul_add(values[v], scale, constant(1)));
                            S::mul(S::mul(incoming(), scale), slope)
                        }
                        How::Affine => S::mul_add(values[v], constant(1), constant(0)),
                    };
                    sums[v] = if index == 0 { result } else { S::add(sums[v], result) };
                    v += 1;
                }
            }
            let mut v = 0;
            while v < N {
                store::<S>(self.out.get().add(at + c + v * S::LANES), sums[v], lanes);
                v += 1;
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
