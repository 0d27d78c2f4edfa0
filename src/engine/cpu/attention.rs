//! Attention, a block of queries at a time: memory grows with the number of pixels, not with its square.

#![allow(unsafe_code)]

use super::buffer::SharedMut;
use super::product::{Product, Segment, product};
use super::reader::{load, store};
use super::simd::{Kernel, Simd, panel};
use super::step::{Context, ScratchSize, Step};
use crate::plan::{Plan, TensorId};

/// Queries of a task.
const QUERIES: usize = 28;

pub struct Attention {
    pub qkv: TensorId,
    pub heads: usize,
    pub qkv_first: bool,
    pub output: TensorId,
    pixels: usize,
    /// Channels a head.
    width: usize,
    panel: usize,
    batch: usize,
}

impl Attention {
    pub fn new(
        qkv: TensorId,
        heads: usize,
        qkv_first: bool,
        output: TensorId,
        plan: &Plan,
        panel: usize,
    ) -> Self {
        let tensor = &plan.tensors[output];
        let pixels = tensor.height * tensor.width;
        Self {
            qkv,
            heads,
            qkv_first,
            output,
            pixels,
            width: tensor.channels / heads,
            panel,
            batch: plan.options.batch,
        }
    }

    /// Scores of a query, padded to whole panels.
    fn score_len(&self) -> usize {
        self.pixels.next_multiple_of(self.panel)
    }

    fn keys_len(&self) -> usize {
        self.score_len() * self.width
    }

    fn values_len(&self) -> usize {
        self.width.next_multiple_of(self.panel) * self.pixels
    }
}

impl Step for Attention {
    fn scratch(&self) -> ScratchSize {
        ScratchSize {
            shared: self.batch * self.heads * (self.keys_len() + self.values_len()),
            private: QUERIES * self.score_len(),
        }
    }

    fn run(&self, context: &Context<'_>) {
        let qkv = context.map(self.qkv);
        let channels = self.heads * self.width;
        let head = |index: usize| {
            let (sample, head) = (index / self.heads, index % self.heads);
            let (first, step) = if self.qkv_first {
                (head * self.width, channels)
            } else {
                (head * 3 * self.width, self.width)
            };
            // SAFETY: two matrices for each head of each sample.
            let packed = unsafe { context.shared.add(index * (self.keys_len() + self.values_len())) };
            Head {
                step: self,
                query: qkv.at(sample * self.pixels * 3 * channels + first),
                key: step,
                stride: 3 * channels,
                // SAFETY: the values follow the keys.
                packed: (packed, unsafe { packed.add(self.keys_len()) }),
            }
        };
        let count = context.batch() * self.heads;
        context.parallel(count, |index| {
            // SAFETY: each task packs its own head.
            unsafe { context.dispatch(Pack(head(index))) }
        });
        let blocks = self.pixels.div_ceil(QUERIES);
        let output = context.output(self.output);
        context.parallel(count * blocks, |task| {
            let (index, first) = (task / blocks, task % blocks * QUERIES);
            context.with_private(|scores| {
                let queries = first..self.pixels.min(first + QUERIES);
                let start =
                    (index / self.heads * self.pixels + first) * channels + index % self.heads * self.width;
                // SAFETY: each task writes the channels of its own head and queries.
                unsafe {
                    let out = output.add(start);
                    context.dispatch(Attend {
                        head: head(index),
                        terms: context.terms,
                        queries,
                        scores,
                        out,
                        out_stride: channels,
                    });
                }
            });
        });
    }
}

/// One head of one sample.
struct Head<'a> {
    step: &'a Attention,
    query: *const f32,
    /// From a query's channels to the same pixel's key, and from there to its value.
    key: usize,
    /// From one pixel to the next.
    stride: usize,
    /// Transposed keys and values, in panels.
    packed: (SharedMut, SharedMut),
}

struct Pack<'a>(Head<'a>);

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Head { step, query, key, stride, packed } = self.0;
        let columns = panel::<S>();
        // SAFETY: sizes are those of `scratch`.
        unsafe {
            let (keys, values) = (packed.0.get(), packed.1.get());
            for first in (0..step.pixels).step_by(columns) {
                let to = keys.add(first * step.width);
                for column in 0..columns {
                    let pixel = query.add(key + (first + column).min(step.pixels - 1) * stride);
                    for c in 0..step.width {
                        *to.add(c * columns + column) = *pixel.add(c);
                    }
                }
            }
            for first in (0..step.width).step_by(columns) {
                let to = values.add(first * step.pixels);
                let count = columns.min(step.width - first);
                for pixel in 0..step.pixels {
                    let from = query.add(2 * key + pixel * stride + first);
                    std::ptr::copy_nonoverlapping(from, to.add(pixel * columns), count);
                    std::ptr::write_bytes(to.add(pixel * columns + count), 0, columns - count);
                }
            }
        }
    }
}

struct Attend<'a> {
    head: Head<'a>,
    terms: usize,
    queries: std::ops::Range<usize>,
    scores: *mut f32,
    out: SharedMut,
    out_stride: usize,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Head { step, query, stride, packed, .. } = self.head;
        let rows = self.queries.len();
        let len = step.score_len();
        let scale = 1.0 / (step.width as f32).sqrt();
        let mut inverse_sums = [0.0f32; QUERIES];
        // SAFETY: `scores` has a padded row a query; the rest is as the plan says.
        unsafe {
            product::<S>(&Product {
                segments: &[Segment {
                    start: query.add(self.queries.start * stride),
                    row_stride: stride,
                    len: step.width,
                }],
                rows,
                right: packed.0.get(),
                terms: self.terms,
                bf16: false,
                columns: step.pixels,
                bias: std::ptr::null(),
                accumulate: false,
                out: self.scores,
                out_stride: len,
            });
            for (row, inverse_sum) in inverse_sums.iter_mut().enumerate().take(rows) {
                let scores = self.scores.add(row * len);
                // Padding counts as infinitely unlike.
                for i in step.pixels..len {
                    *scores.add(i) = f32::MIN;
                }
                let mut highest = S::load(scores);
                for i in (S::LANES..len).step_by(S::LANES) {
                    highest = S::max(highest, S::load(scores.add(i)));
                }
                let mut lanes = [f32::MIN; 16];
                S::store(lanes.as_mut_ptr(), highest);
                let highest = S::splat(lanes.iter().copied().fold(f32::MIN, f32::max));
                let mut sum = S::splat(0.0);
                for i in (0..len).step_by(S::LANES) {
                    let at = scores.add(i);
                    let value = S::exp(S::mul(S::sub(S::load(at), highest), S::splat(scale)));
                    S::store(at, value);
                    sum = S::add(sum, value);
                }
                *inverse_sum = 1.0 / S::sum(sum);
            }
            product::<S>(&Product {
                segments: &[Segment { start: self.scores, row_stride: len, len: step.pixels }],
                rows,
                right: packed.1.get(),
                terms: self.terms,
                bf16: false,
                columns: step.width,
                bias: std::ptr::null(),
                accumulate: false,
                out: self.out.get(),
                out_stride: self.out_stride,
            });
            for (row, inverse_sum) in inverse_sums.iter().enumerate().take(rows) {
                let out = self.out.get().add(row * self.out_stride);
                for c in (0..step.width).step_by(S::LANES) {
                    let lanes = S::LANES.min(step.width - c);
                    let value = S::mul(load::<S>(out.add(c), lanes), S::splat(*inverse_sum));
                    store::<S>(out.add(c), value, lanes);
                }
            }
        }
    }
}
