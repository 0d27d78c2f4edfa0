//! The gradient of attention, a block of queries at a time: probabilities are computed again.
//!
//! With P = softmax(Q K^T / s), s the root of the channels a head, and g the gradient of P V:
//! dV = P^T g, dS = P . (g V^T - rowsum(P . g V^T)), dQ = dS K / s, dK = dS^T Q / s.

#![allow(unsafe_code)]

use mdm::engine::cpu::buffer::SharedMut;
use mdm::engine::cpu::product::{Product, Segment, product};
use mdm::engine::cpu::simd::{Kernel, Simd, panel};
use mdm::engine::cpu::step::{Context, ScratchSize};
use mdm::engine::cpu::sums::FEW_TERMS;
use mdm::plan::{Plan, TensorId};

use super::outer::{Outer, Rows, outer};

/// Queries of a block.
const QUERIES: usize = 28;

/// What [`Gradient::Attention`](crate::differentiate::Gradient::Attention) names.
pub(super) struct Attention {
    pub qkv: TensorId,
    pub heads: usize,
    pub qkv_first: bool,
    pub gradient: TensorId,
    pub output: TensorId,
}

impl Attention {
    /// Pixels, and channels a head.
    fn size(&self, plan: &Plan) -> (usize, usize) {
        let tensor = &plan.tensors[self.gradient];
        (tensor.height * tensor.width, tensor.channels / self.heads)
    }

    pub(super) fn scratch(&self, plan: &Plan, panel: usize) -> ScratchSize {
        let (pixels, width) = self.size(plan);
        let padded = pixels.next_multiple_of(panel);
        let private = 2 * padded * width + width.next_multiple_of(panel) * pixels + 2 * QUERIES * padded;
        ScratchSize { shared: 0, private }
    }

    pub(super) fn run(&self, context: &Context<'_>) {
        let (pixels, width) = self.size(context.plan);
        let channels = self.heads * width;
        let qkv = context.map(self.qkv);
        let gradient = context.map(self.gradient);
        let output = context.output(self.output);
        context.parallel(context.batch() * self.heads, |task| {
            let (sample, head) = (task / self.heads, task % self.heads);
            let (first, role) =
                if self.qkv_first { (head * width, channels) } else { (head * 3 * width, width) };
            let start = sample * pixels * 3 * channels + first;
            context.with_private(|scratch| {
                let kernel = Head {
                    query: qkv.at(start),
                    role,
                    stride: 3 * channels,
                    gradient: gradient.at(sample * pixels * channels + head * width),
                    pixels,
                    width,
                    // SAFETY: each task writes the channels of its own head.
                    output: unsafe { output.add(start) },
                    scratch,
                };
                // SAFETY: as above; scratch memory has the size that was asked for.
                unsafe { context.dispatch(kernel) }
            });
        });
    }
}

/// One head of one sample.
struct Head {
    query: *const f32,
    /// From a query's channels to the same pixel's key, and from there to its value.
    role: usize,
    /// From one pixel to the next.
    stride: usize,
    /// That of the result, with a third of the stride.
    gradient: *const f32,
    pixels: usize,
    width: usize,
    /// Laid out like the query.
    output: SharedMut,
    scratch: *mut f32,
}

impl Head {
    /// Packs the transposed of keys or values as the right side of a product: panels of pixels.
    ///
    /// # Safety
    /// `from` is one of them, and `to` takes them.
    unsafe fn pack_transposed(&self, from: *const f32, to: *mut f32, panel: usize) {
        // SAFETY: promised by the caller; pixels past the last are a copy of it.
        unsafe {
            for first in (0..self.pixels).step_by(panel) {
                for column in 0..panel {
                    let pixel = from.add((first + column).min(self.pixels - 1) * self.stride);
                    for c in 0..self.width {
                        *to.add((first * self.width) + c * panel + column) = *pixel.add(c);
                    }
                }
            }
        }
    }

    /// Packs keys as the right side of a product: panels of channels.
    ///
    /// # Safety
    /// As [`pack_transposed`](Self::pack_transposed).
    unsafe fn pack(&self, from: *const f32, to: *mut f32, panel: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            for first in (0..self.width).step_by(panel) {
                let count = panel.min(self.width - first);
                for pixel in 0..self.pixels {
                    let to = to.add((first * self.pixels) + pixel * panel);
                    std::ptr::copy_nonoverlapping(from.add(pixel * self.stride + first), to, count);
                    std::ptr::write_bytes(to.add(count), 0, panel - count);
                }
            }
        }
    }
}

impl Kernel for Head {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { query, role, stride, pixels, width, .. } = self;
        let padded = pixels.next_multiple_of(panel::<S>());
        let scale = 1.0 / (width as f32).sqrt();
        // SAFETY: sizes are those of `scratch`.
        unsafe {
            let (key, value) = (query.add(role), query.add(2 * role));
            let keys_transposed = self.scratch;
            let values_transposed = keys_transposed.add(padded * width);
            let keys = values_transposed.add(padded * width);
            let probabilities = keys.add(width.next_multiple_of(panel::<S>()) * pixels);
            let slopes = probabilities.add(QUERIES * padded);
            self.pack_transposed(key, keys_transposed, panel::<S>());
            self.pack_transposed(value, values_transposed, panel::<S>());
            self.pack(key, keys, panel::<S>());
            let (query_out, key_out) = (self.output.get(), self.output.add(role).get());
            let value_out = self.output.add(2 * role).get();

            for first in (0..pixels).step_by(QUERIES) {
                let rows = QUERIES.min(pixels - first);
                let queries = query.add(first * stride);
                let gradients = self.gradient.add(first * stride / 3);
                for (left, left_stride, right, out) in [
                    (queries, stride, keys_transposed, probabilities),
                    (gradients, stride / 3, values_transposed, slopes),
                ] {
                    product::<S>(&Product {
                        segments: &[Segment { start: left, row_stride: left_stride, len: width }],
                        rows,
                        right,
                        terms: FEW_TERMS,
                        bf16: false,
                        columns: pixels,
                        bias: std::ptr::null(),
                        accumulate: false,
                        out,
                        out_stride: padded,
                    });
                }
                for row in 0..rows {
                    softmax_and_slope::<S>(
                        probabilities.add(row * padded),
                        slopes.add(row * padded),
                        pixels,
                        padded,
                        scale,
                    );
                }
                product::<S>(&Product {
                    segments: &[Segment { start: slopes, row_stride: padded, len: pixels }],
                    rows,
                    right: keys,
                    terms: FEW_TERMS,
                    bf16: false,
                    columns: width,
                    bias: std::ptr::null(),
                    accumulate: false,
                    out: query_out.add(first * stride),
                    out_stride: stride,
                });
                for (left, right, right_stride, out) in
                    [(probabilities, gradients, stride / 3, value_out), (slopes, queries, stride, key_out)]
                {
                    outer::<S>(&Outer {
                        rows: &[Rows { left, left_stride: padded, right, right_stride, count: rows }],
                        height: pixels,
                        width,
                        accumulate: first > 0,
                        out,
                        out_stride: stride,
                    });
                }
            }
        }
    }
}

/// Turns a row of scores into probabilities p, and a row of their gradients g into `p (g - sum(p g)) scale`, the gradient of
/// the unscaled scores.
///
/// # Safety
/// Both rows have `padded` values, a multiple of the lanes.
#[inline(always)]
unsafe fn softmax_and_slope<S: Simd>(
    scores: *mut f32,
    gradients: *mut f32,
    pixels: usize,
    padded: usize,
    scale: f32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        // Padding counts as infinitely unlike.
        for i in pixels..padded {
            *scores.add(i) = f32::MIN;
            *gradients.add(i) = 0.0;
        }
        let mut highest = S::load(scores);
        for i in (S::LANES..padded).step_by(S::LANES) {
            highest = S::max(highest, S::load(scores.add(i)));
        }
        let mut lanes = [f32::MIN; 16];
        S::store(lanes.as_mut_ptr(), highest);
        let highest = S::splat(lanes.iter().copied().fold(f32::MIN, f32::max));
        let mut sum = S::splat(0.0);
        let mut weighted = S::splat(0.0);
        for i in (0..padded).step_by(S::LANES) {
            let value = S::exp(S::mul(S::sub(S::load(scores.add(i)), highest), S::splat(scale)));
            S::store(scores.add(i), value);
            sum = S::add(sum, value);
            weighted = S::mul_add(value, S::load(gradients.add(i)), weighted);
        }
        let inverse = 1.0 / S::sum(sum);
        let mean = S::splat(S::sum(weighted) * inverse);
        let (inverse, scale) = (S::splat(inverse), S::splat(scale));
        for i in (0..padded).step_by(S::LANES) {
            let p = S::mul(S::load(scores.add(i)), inverse);
            S::store(scores.add(i), p);
            let slope = S::mul(p, S::sub(S::load(gradients.add(i)), mean));
            S::store(gradients.add(i), S::mul(slope, scale));
        }
    }
}
