//! The ensemble of heads after their first layer, and the Frobenius norm of the features.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::buffer::{Buffer, SharedMut};
use super::product::{Product, Segment, product};
use super::reader::{Map, load, store};
use super::simd::{Kernel, Simd};
use super::step::{Context, ScratchSize, Step};
use super::sums::TERMS;
use super::upsample::{Between, between, column_between, row_between};
use crate::plan::{Combine, HeadShape, Plan, TensorId};

pub struct FeatureNorm {
    pub blocks: Vec<TensorId>,
    pub size: (usize, usize),
    pub output: TensorId,
    batch: usize,
    private: usize,
}

impl FeatureNorm {
    pub fn new(blocks: &[TensorId], size: (usize, usize), output: TensorId, plan: &Plan) -> Self {
        let row = |&id: &TensorId| plan.tensors[id].width * plan.tensors[id].channels;
        let private = blocks.iter().map(row).max().unwrap_or(0);
        Self { blocks: blocks.to_vec(), size, output, batch: plan.options.batch, private }
    }
}

impl Step for FeatureNorm {
    fn scratch(&self) -> ScratchSize {
        ScratchSize { shared: self.batch * self.size.0, private: self.private }
    }

    fn run(&self, context: &Context<'_>) {
        let maps: Vec<Map> = self.blocks.iter().map(|&id| context.map(id)).collect();
        let (height, width) = self.size;
        context.parallel(self.batch * height, |task| {
            context.with_private(|row| {
                let kernel =
                    SquaredRow { maps: &maps, sample: task / height, y: task % height, height, width, row };
                // SAFETY: a slot of its own for each task.
                unsafe { *context.shared.get().add(task) = context.dispatch(kernel) };
            });
        });
        let output = context.output(self.output).get();
        for sample in 0..self.batch {
            // SAFETY: written above.
            let sum: f64 = (0..height)
                .map(|y| f64::from(unsafe { *context.shared.get().add(sample * height + y) }))
                .sum();
            // SAFETY: one value a sample.
            unsafe { *output.add(sample) = sum.sqrt() as f32 };
        }
    }
}

/// Sum of squares of one row of the upsampled features.
struct SquaredRow<'a> {
    maps: &'a [Map],
    sample: usize,
    y: usize,
    height: usize,
    width: usize,
    row: *mut f32,
}

impl Kernel for SquaredRow<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let mut total = 0.0;
        for map in self.maps {
            // SAFETY: `row` takes the widest map.
            unsafe {
                row_between::<S>(map, self.sample, self.y, self.height, 0..map.channels, self.row);
                for x in 0..self.width {
                    let x = between(x, self.width, map.width);
                    let mut sum = S::splat(0.0);
                    let mut c = 0;
                    while c < map.channels {
                        let lanes = S::LANES.min(map.channels - c);
                        let value = column_between::<S>(self.row, map.channels, x, c, lanes);
                        sum = S::mul_add(value, value, sum);
                        c += S::LANES;
                    }
                    total += S::sum(sum);
                }
            }
        }
        total
    }
}

pub struct Head {
    pub partial_sums: Vec<TensorId>,
    pub feature_norm: Option<TensorId>,
    pub shape: HeadShape,
    /// First bias, second weight and bias, third weight and bias.
    pub params: [Arc<Buffer>; 5],
    pub output: TensorId,
    size: (usize, usize),
    batch: usize,
    row_len: usize,
}

impl Head {
    pub fn new(
        partial_sums: &[TensorId],
        feature_norm: Option<TensorId>,
        shape: HeadShape,
        params: [Arc<Buffer>; 5],
        output: TensorId,
        plan: &Plan,
    ) -> Self {
        let size = (plan.tensors[output].height, plan.tensors[output].width);
        let widest = partial_sums.iter().map(|&id| plan.tensors[id].width).max().unwrap_or(0);
        Self {
            partial_sums: partial_sums.to_vec(),
            feature_norm,
            shape,
            params,
            output,
            size,
            batch: plan.options.batch,
            row_len: widest * shape.hidden.0,
        }
    }
}

impl Step for Head {
    fn scratch(&self) -> ScratchSize {
        let HeadShape { hidden, classes, .. } = self.shape;
        ScratchSize {
            private: self.row_len + self.size.1 * (hidden.0 + hidden.1 + 2 * classes + 1),
            shared: 0,
        }
    }

    fn run(&self, context: &Context<'_>) {
        let maps: Vec<Map> = self.partial_sums.iter().map(|&id| context.map(id)).collect();
        let norm = self.feature_norm.map(|id| context.map(id));
        let (height, width) = self.size;
        let columns: Vec<Vec<Between>> =
            maps.iter().map(|map| (0..width).map(|x| between(x, width, map.width)).collect()).collect();
        let channels = context.plan.tensors[self.output].channels;
        let output = context.output(self.output);
        context.parallel(self.batch * height, |task| {
            context.with_private(|scratch| {
                let sample = task / height;
                // SAFETY: one norm a sample; rows of the output are disjoint.
                unsafe {
                    let scale =
                        norm.map_or(1.0, |norm| 1.0 / (*norm.data.add(sample)).max(f32::MIN_POSITIVE));
                    let out = output.add(task * width * channels);
                    let kernel = Row {
                        step: self,
                        maps: &maps,
                        columns: &columns,
                        sample,
                        y: task % height,
                        scale,
                        scratch,
                        out,
                    };
                    context.dispatch(kernel);
                }
            });
        });
    }
}

/// One row of the answer.
struct Row<'a> {
    step: &'a Head,
    maps: &'a [Map],
    columns: &'a [Vec<Between>],
    sample: usize,
    y: usize,
    scale: f32,
    scratch: *mut f32,
    out: SharedMut,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let HeadShape { heads, hidden, classes, .. } = self.step.shape;
        let (height, width) = self.step.size;
        let [_, second, second_bias, third, third_bias] = &self.step.params;
        let (second_len, third_len) = (second.slice().len() / heads, third.slice().len() / heads);
        // SAFETY: scratch is divided as `Head::scratch` adds it up; parameters have the plan's shapes.
        unsafe {
            let first = self.scratch.add(self.step.row_len);
            let middle = first.add(width * hidden.0);
            let logits = middle.add(width * hidden.1);
            let sums = logits.add(width * classes);
            let entropies = sums.add(width * classes);
            std::ptr::write_bytes(sums, 0, width * (classes + 1));
            let votes = std::slice::from_raw_parts_mut(sums, width * classes);
            let entropies = std::slice::from_raw_parts_mut(entropies, width);
            let channels = classes + usize::from(self.step.shape.uncertainty);
            let out = std::slice::from_raw_parts_mut(self.out.get(), width * channels);
            out.fill(0.0);
            for head in 0..heads {
                self.first_layer::<S>(head, height, first);
                product::<S>(&Product {
                    segments: &[Segment { start: first, row_stride: hidden.0, len: hidden.0 }],
                    rows: width,
                    right: second.slice().as_ptr().add(head * second_len),
                    terms: TERMS,
                    bf16: false,
                    columns: hidden.1,
                    bias: second_bias.slice().as_ptr().add(head * hidden.1),
                    accumulate: false,
                    out: middle,
                    out_stride: hidden.1,
                });
                for value in std::slice::from_raw_parts_mut(middle, width * hidden.1) {
                    *value = relu(*value);
                }
                product::<S>(&Product {
                    segments: &[Segment { start: middle, row_stride: hidden.1, len: hidden.1 }],
                    rows: width,
                    right: third.slice().as_ptr().add(head * third_len),
                    terms: TERMS,
                    bf16: false,
                    columns: classes,
                    bias: third_bias.slice().as_ptr().add(head * classes),
                    accumulate: false,
                    out: logits,
                    out_stride: classes,
                });
                let logits = std::slice::from_raw_parts_mut(logits, width * classes);
                for (x, logits) in logits.chunks_exact_mut(classes).enumerate() {
                    softmax(logits);
                    for (to, p) in out[x * channels..].iter_mut().zip(&*logits).take(classes) {
                        *to += p;
                    }
                    if self.step.shape.combine == Combine::Vote {
                        let best = highest(logits);
                        votes[x * classes + best] += 1.0 + 0.0 * logits[best];
                    }
                    if self.step.shape.uncertainty {
                        entropies[x] += entropy(logits);
                    }
                }
            }
            let share = 1.0 / heads as f32;
            for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                let (mean, uncertainty) = out.split_at_mut(classes);
                mean.iter_mut().for_each(|p| *p *= share);
                if let Some(uncertainty) = uncertainty.first_mut() {
                    // Not negative but for rounding.
                    *uncertainty = (entropy(mean) - entropies[x] * share).max(0.0);
                }
                if self.step.shape.combine == Combine::Vote {
                    for (to, votes) in mean.iter_mut().zip(&votes[x * classes..]) {
                        *to = votes * share;
                    }
                }
            }
        }
    }
}

impl Row<'_> {
    /// The first hidden layer of one head, after ReLU: `[width, hidden.0]`.
    ///
    /// # Safety
    /// As for the kernel.
    #[inline(always)]
    unsafe fn first_layer<S: Simd>(&self, head: usize, height: usize, out: *mut f32) {
        let hidden = self.step.shape.hidden.0;
        let channels = head * hidden..(head + 1) * hidden;
        let width = self.step.size.1;
        // SAFETY: promised by the caller.
        unsafe {
            for (index, (map, columns)) in self.maps.iter().zip(self.columns).enumerate() {
                row_between::<S>(map, self.sample, self.y, height, channels.clone(), self.scratch);
                let last = index + 1 == self.maps.len();
                let mut c = 0;
                while c < hidden {
                    let lanes = S::LANES.min(hidden - c);
                    let bias = load::<S>(self.step.params[0].slice().as_ptr().add(channels.start + c), lanes);
                    for (x, between) in columns.iter().enumerate().take(width) {
                        let at = out.add(x * hidden + c);
                        let mut value = column_between::<S>(self.scratch, hidden, *between, c, lanes);
                        if index > 0 {
                            value = S::add(value, load::<S>(at, lanes));
                        }
                        if last {
                            value = S::mul_add(value, S::splat(self.scale), bias);
                            let zero = S::splat(0.0);
                            // As `relu`.
                            value = S::mul_add(value, zero, S::max(value, zero));
                        }
                        store::<S>(at, value, lanes);
                    }
                    c += S::LANES;
                }
            }
        }
    }
}

/// Negative numbers as zero; what is not finite is not a number afterwards either, so that an overflow does not become a label.
fn relu(value: f32) -> f32 {
    value.max(0.0) + 0.0 * value
}

fn softmax(logits: &mut [f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in logits.iter_mut() {
        *value = (*value - highest).exp();
        sum += *value;
    }
    logits.iter_mut().for_each(|value| *value /= sum);
}

/// Index of the highest value; the first of equals.
fn highest(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// In nats.
fn entropy(probabilities: &[f32]) -> f32 {
    -probabilities.iter().map(|&p| if p > 0.0 { p * p.ln() } else { 0.0 }).sum::<f32>()
}
