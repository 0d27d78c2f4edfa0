//! Operations on vectors: the time embedding and what is derived from it.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::buffer::{Buffer, SharedMut};
use super::product::{Product, Segment, product};
use super::simd::{Kernel, Simd};
use super::step::{Context, ScratchSize, Step};
use crate::plan::TensorId;

pub struct Sinusoid {
    pub timesteps: TensorId,
    pub output: TensorId,
}

impl Step for Sinusoid {
    fn run(&self, context: &Context<'_>) {
        let timesteps = context.map(self.timesteps);
        let half = context.plan.tensors[self.output].channels / 2;
        let output = context.output(self.output).get();
        for sample in 0..context.batch() {
            for k in 0..half {
                let frequency = (-(10_000f64.ln()) * k as f64 / half as f64).exp();
                // SAFETY: one timestep and `2 * half` values a sample.
                unsafe {
                    let angle = f64::from(*timesteps.data.add(sample)) * frequency;
                    *output.add(sample * 2 * half + k) = angle.cos() as f32;
                    *output.add(sample * 2 * half + half + k) = angle.sin() as f32;
                }
            }
        }
    }
}

pub struct Linear {
    pub input: TensorId,
    pub silu: bool,
    pub weight: Arc<Buffer>,
    pub bias: Arc<Buffer>,
    /// A row for each class.
    pub label_embedding: Option<Arc<Buffer>>,
    pub output: TensorId,
    /// Values of the input, all samples.
    pub shared: usize,
}

impl Step for Linear {
    fn scratch(&self) -> ScratchSize {
        ScratchSize { shared: self.shared, private: 0 }
    }

    fn run(&self, context: &Context<'_>) {
        let input = context.map(self.input);
        let batch = context.batch();
        let activated = context.shared;
        for i in 0..batch * input.channels {
            // SAFETY: the input and the scratch memory have that many values.
            unsafe {
                let x = *input.data.add(i);
                *activated.get().add(i) = if self.silu { x / (1.0 + (-x).exp()) } else { x };
            }
        }
        let channels = context.plan.tensors[self.output].channels;
        let output = context.output(self.output);
        if let Some(table) = &self.label_embedding {
            for (sample, &class) in context.classes.iter().enumerate() {
                let row = &table.slice()[class as usize * channels..][..channels];
                // SAFETY: the output has `channels` values a sample; classes were checked.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        row.as_ptr(),
                        output.get().add(sample * channels),
                        channels,
                    );
                }
            }
        }
        let share = channels.div_ceil(4 * context.private.len()).next_multiple_of(context.set.panel());
        context.parallel(channels.div_ceil(share), |task| {
            let first = task * share;
            let kernel = Share {
                step: self,
                terms: context.terms,
                left: activated,
                inputs: input.channels,
                batch,
                columns: first..channels.min(first + share),
                output,
                channels,
            };
            // SAFETY: each task writes its own channels.
            unsafe { context.dispatch(kernel) }
        });
    }
}

struct Share<'a> {
    step: &'a Linear,
    terms: usize,
    left: SharedMut,
    inputs: usize,
    batch: usize,
    columns: std::ops::Range<usize>,
    output: SharedMut,
    channels: usize,
}

impl Kernel for Share<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `columns` start at a panel; sizes are the plan's.
        unsafe {
            let start = self.left.get().cast_const();
            product::<S>(&Product {
                segments: &[Segment { start, row_stride: self.inputs, len: self.inputs }],
                rows: self.batch,
                right: self.step.weight.slice().as_ptr().add(self.columns.start * self.inputs),
                terms: self.terms,
                bf16: false,
                columns: self.columns.len(),
                bias: self.step.bias.slice().as_ptr().add(self.columns.start),
                accumulate: self.step.label_embedding.is_some(),
                out: self.output.get().add(self.columns.start),
                out_stride: self.channels,
            });
        }
    }
}
