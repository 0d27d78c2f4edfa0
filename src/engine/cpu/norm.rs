//! Group norm: moments of each channel, and the affine maps that follow from them.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::buffer::{Buffer, SharedMut};
use super::reader::{Map, load, store};
use super::simd::{Kernel, Simd};
use super::step::{Context, ScratchSize, Step};
use super::sums::Compensated;
use crate::plan::{Plan, TensorId};

/// Groups of every norm.
const GROUPS: usize = 32;
const EPSILON: f64 = 1e-5;

/// Pixels whose moments are summed in f32, with compensation; the sums of such blocks are combined in f64, in the same order
/// always.
const BLOCK: usize = 256;

/// Vectors of channels that are summed side by side.
const VECTORS: usize = 4;

pub struct Moments {
    pub input: TensorId,
    pub output: TensorId,
    /// Values of the block sums.
    pub shared: usize,
}

impl Moments {
    pub fn new(input: TensorId, output: TensorId, plan: &Plan) -> Self {
        let tensor = &plan.tensors[input];
        let blocks = (tensor.height * tensor.width).div_ceil(BLOCK);
        Self { input, output, shared: plan.options.batch * blocks * 2 * tensor.channels }
    }
}

impl Step for Moments {
    fn scratch(&self) -> ScratchSize {
        ScratchSize { shared: self.shared, private: 0 }
    }

    fn run(&self, context: &Context<'_>) {
        let map = context.map(self.input);
        let pixels = map.height * map.width;
        let blocks = pixels.div_ceil(BLOCK);
        context.parallel(context.batch() * blocks, |task| {
            let (sample, first) = (task / blocks, task % blocks * BLOCK);
            let kernel = BlockMoments {
                data: map.at((sample * pixels + first) * map.channels),
                pixels: BLOCK.min(pixels - first),
                channels: map.channels,
                // SAFETY: a slot of its own for each task.
                out: unsafe { context.shared.add(task * 2 * map.channels) },
            };
            // SAFETY: the pixels lie in the map.
            unsafe { context.dispatch(kernel) }
        });
        let output = context.output(self.output);
        let channels = map.channels;
        for sample in 0..context.batch() {
            for c in 0..channels {
                let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
                for block in 0..blocks {
                    // SAFETY: written above.
                    let sums = unsafe { context.shared.add((sample * blocks + block) * 2 * channels) }.get();
                    let n = BLOCK.min(pixels - block * BLOCK) as f64;
                    // SAFETY: as above.
                    let (block_mean, block_squares) =
                        unsafe { (f64::from(*sums.add(c)), f64::from(*sums.add(channels + c))) };
                    // Chan, Golub and LeVeque 1979.
                    let delta = block_mean - mean;
                    mean += delta * n / (count + n);
                    squares += block_squares + delta * delta * count * n / (count + n);
                    count += n;
                }
                // SAFETY: the output has two values a channel and sample.
                unsafe {
                    let to = output.get().add(sample * 2 * channels);
                    *to.add(c) = mean as f32;
                    *to.add(channels + c) = (squares / count) as f32;
                }
            }
        }
    }
}

/// Mean and sum of squared deviations of each channel over a few pixels.
struct BlockMoments {
    data: *const f32,
    pixels: usize,
    channels: usize,
    out: SharedMut,
}

impl Kernel for BlockMoments {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the pixels are there, and vectors are cut at the last channel.
        unsafe {
            let mut c = 0;
            while c + VECTORS * S::LANES <= self.channels {
                self.channels::<S, VECTORS>(c, S::LANES);
                c += VECTORS * S::LANES;
            }
            while c < self.channels {
                self.channels::<S, 1>(c, S::LANES.min(self.channels - c));
                c += S::LANES;
            }
        }
    }
}

impl BlockMoments {
    /// # Safety
    /// `N` vectors from channel `c` on are there, the last one with `lanes` values.
    #[inline(always)]
    unsafe fn channels<S: Simd, const N: usize>(&self, c: usize, lanes: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            let zero = S::splat(0.0);
            let none = Compensated::<S>::zero();
            let (mut pivots, mut sums, mut squares) = ([zero; N], [none; N], [none; N]);
            let mut from = self.data.add(c);
            let mut v = 0;
            while v < N {
                // Deviations from one of the values lose fewer bits than the values themselves.
                pivots[v] = load::<S>(from.add(v * S::LANES), lanes);
                v += 1;
            }
            for _ in 0..self.pixels {
                let mut v = 0;
                while v < N {
                    let deviation = S::sub(load::<S>(from.add(v * S::LANES), lanes), pivots[v]);
                    sums[v].add(deviation);
                    squares[v].add_product(deviation, deviation);
                    v += 1;
                }
                from = from.add(self.channels);
            }
            let share = S::splat(1.0 / self.pixels as f32);
            let mut v = 0;
            while v < N {
                let sum = sums[v].value;
                let shift = S::mul(sum, share);
                let out = self.out.get().add(c + v * S::LANES);
                store::<S>(out, S::add(pivots[v], shift), lanes);
                let rest = S::sub(squares[v].value, S::mul(shift, sum));
                // In this order, what is not a number stays that.
                store::<S>(out.add(self.channels), S::max(zero, rest), lanes);
                v += 1;
            }
        }
    }
}

pub struct NormCoefficients {
    pub moments: Vec<TensorId>,
    pub weight: Arc<Buffer>,
    pub bias: Arc<Buffer>,
    pub scale_shift: Option<TensorId>,
    pub output: TensorId,
}

impl Step for NormCoefficients {
    fn run(&self, context: &Context<'_>) {
        let channels = self.weight.slice().len();
        let width = channels / GROUPS;
        let parts: Vec<Map> = self.moments.iter().map(|&id| context.map(id)).collect();
        let output = context.output(self.output);
        for sample in 0..context.batch() {
            let moments: Vec<(f64, f64)> = parts
                .iter()
                .flat_map(|part| {
                    let own = part.channels / 2;
                    // SAFETY: maps hold the means, then the variances of their channels for every sample.
                    let row =
                        unsafe { std::slice::from_raw_parts(part.at(sample * part.channels), part.channels) };
                    row[..own]
                        .iter()
                        .zip(&row[own..])
                        .map(|(&mean, &variance)| (f64::from(mean), f64::from(variance)))
                })
                .collect();
            // SAFETY: scale, shift and output have two values a channel and sample.
            let scale_shift = self.scale_shift.map(|id| unsafe {
                std::slice::from_raw_parts(context.map(id).data.add(sample * 2 * channels), 2 * channels)
            });
            // SAFETY: as above; nothing else refers to the output.
            let out = unsafe {
                std::slice::from_raw_parts_mut(output.get().add(sample * 2 * channels), 2 * channels)
            };
            for (group, members) in moments.chunks_exact(width).enumerate() {
                let mean = members.iter().map(|(mean, _)| mean).sum::<f64>() / width as f64;
                let variance =
                    members.iter().map(|(m, v)| v + (m - mean) * (m - mean)).sum::<f64>() / width as f64;
                // An infinite variance would make everything equal.
                let inverse = 1.0 / (variance + EPSILON).sqrt() + 0.0 * variance;
                for c in group * width..(group + 1) * width {
                    let mut scale = f64::from(self.weight.slice()[c]) * inverse;
                    let mut shift = f64::from(self.bias.slice()[c]) - mean * scale;
                    if let Some(modulation) = scale_shift {
                        let factor = 1.0 + f64::from(modulation[c]);
                        scale *= factor;
                        shift = shift * factor + f64::from(modulation[channels + c]);
                    }
                    out[c] = scale as f32;
                    out[channels + c] = shift as f32;
                }
            }
        }
    }
}
