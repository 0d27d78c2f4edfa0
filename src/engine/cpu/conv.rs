//! Direct convolution: a matrix product whose left rows are windows of the input.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::buffer::{Buffer, SharedMut};
use super::product::{Product, Segment, product};
use super::reader::{Reader, load};
use super::simd::{Kernel, Simd};
use super::step::{Context, ScratchSize, Step};
use crate::plan::{Conv, Plan};

/// Values of the input that a task reads again for each panel of weights; they should stay in the second-level cache.
const TASK_INPUT: usize = 1 << 17;

/// 1x1 and 3x3 convolutions with weights in panels.
pub struct DirectConv {
    conv: Conv,
    weight: Arc<Buffer>,
    bias: Option<Arc<Buffer>>,
    /// Inputs and weights are bf16.
    bf16: bool,
    /// Values of the padded, normalised input of the whole batch; none where the input is read in place. Two in bf16 count as one.
    staged: usize,
    /// Values of a row of that, in f32.
    row: usize,
}

impl DirectConv {
    /// In `bf16`, the number of inputs is even.
    pub fn new(conv: &Conv, plan: &Plan, weight: Arc<Buffer>, bias: Option<Arc<Buffer>>, bf16: bool) -> Self {
        let source = &conv.source;
        let plain = !bf16 && source.norm.is_none() && source.resample == crate::plan::Resample::None;
        let output = &plan.tensors[conv.output];
        let channels: usize = source.parts.iter().map(|&part| plan.tensors[part].channels).sum();
        let (rows, row) = match (conv.kernel, plain) {
            (1, true) => (0, 0),
            (1, false) => (output.height, output.width * channels),
            _ => {
                let (height, width) = (output.height * conv.stride, output.width * conv.stride);
                (height + 2, (width + 2) * channels)
            }
        };
        let staged = plan.options.batch * rows * if bf16 { row / 2 } else { row };
        Self { conv: conv.clone(), weight, bias, bf16, staged, row }
    }
}

impl Step for DirectConv {
    fn scratch(&self) -> ScratchSize {
        // Rows are made in f32 first.
        ScratchSize { shared: self.staged, private: if self.bf16 { self.row } else { 0 } }
    }

    fn run(&self, context: &Context<'_>) {
        let reader = context.reader(&self.conv.source);
        let output = &context.plan.tensors[self.conv.output];
        let stride = self.conv.stride;
        let padding = usize::from(self.conv.kernel == 3);
        let channels = reader.channels() / if self.bf16 { 2 } else { 1 };
        let stage = (self.staged > 0).then(|| Stage {
            data: context.shared,
            height: output.height * stride + 2 * padding,
            width: output.width * stride + 2 * padding,
            channels,
        });
        if let Some(stage) = &stage {
            context.parallel(context.batch() * stage.height, |row| {
                context.with_private(|scratch| {
                    let bf16 = self.bf16.then_some(scratch);
                    let kernel = FillRow { reader: &reader, stage, row, padding, bf16 };
                    // SAFETY: each task fills one row of the stage, which is as large as `scratch` says.
                    unsafe { context.dispatch(kernel) }
                });
            });
        }

        // Rows of the image are the unit of work; a thread takes several at a time, and a share of the outputs.
        let row_values = channels * self.conv.kernel * output.width;
        let rows = (TASK_INPUT / row_values.max(1)).clamp(1, output.height);
        let blocks = output.height.div_ceil(rows);
        let panel = context.set.panel();
        let panels = output.channels.div_ceil(panel);
        // Where there are few rows, outputs are divided too, so that all threads have work.
        let wanted = (4 * context.private.len()).div_ceil(context.batch() * blocks);
        let per_task = panels.div_ceil(wanted.min(panels));
        let shares = panels.div_ceil(per_task);
        let residual = self.conv.residual.as_ref().map(|source| context.reader(source));
        let sample_bias = self.conv.sample_bias.map(|id| context.map(id));
        let target = context.output(self.conv.output);
        context.parallel(context.batch() * blocks * shares, |task| {
            let (block, share) = (task / shares, task % shares);
            let (sample, first) = (block / blocks, block % blocks * rows);
            let columns = share * per_task * panel..output.channels.min((share + 1) * per_task * panel);
            let kernel = Rows {
                step: self,
                terms: context.terms,
                reader: &reader,
                stage: stage.as_ref(),
                residual: residual.as_ref(),
                sample_bias: sample_bias.map(|map| map.at(sample * output.channels)),
                size: (output.height, output.width, output.channels),
                output: target,
                sample,
                rows: first..output.height.min(first + rows),
                columns,
            };
            // SAFETY: tasks write disjoint rows or channels of the output.
            unsafe { context.dispatch(kernel) }
        });
    }
}

/// The normalised input with its padding.
struct Stage {
    data: SharedMut,
    height: usize,
    width: usize,
    /// Two in bf16 count as one.
    channels: usize,
}

struct FillRow<'a> {
    reader: &'a Reader,
    stage: &'a Stage,
    row: usize,
    padding: usize,
    /// Room for the row in f32, where the stage is in bf16.
    bf16: Option<*mut f32>,
}

impl Kernel for FillRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Stage { data, height, width, channels } = *self.stage;
        let (sample, y) = (self.row / height, self.row % height);
        let padding = self.padding as isize;
        // SAFETY: the row lies in the stage.
        unsafe {
            let out = data.get().add(self.row * width * channels);
            let all = self.reader.channels();
            let row = self.bf16.unwrap_or(out);
            self.reader.row::<S>(sample, y as isize - padding, -padding, width, 0..all, row, all);
            if self.bf16.is_some() {
                to_bf16::<S>(row, width * all, out.cast());
            }
        }
    }
}

/// Rounds `count` values to bf16.
///
/// # Safety
/// The instruction set has bf16, and both hold that many values.
#[inline(always)]
unsafe fn to_bf16<S: Simd>(from: *const f32, count: usize, to: *mut u16) {
    let whole = count - count % S::LANES;
    // SAFETY: the rest goes through arrays of a vector.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            S::store_bf16(to.add(i), S::load(from.add(i)));
        }
        if whole < count {
            let mut rest = [0u16; 16];
            S::store_bf16(rest.as_mut_ptr(), load::<S>(from.add(whole), count - whole));
            std::ptr::copy_nonoverlapping(rest.as_ptr(), to.add(whole), count - whole);
        }
    }
}

struct Rows<'a> {
    step: &'a DirectConv,
    terms: usize,
    reader: &'a Reader,
    stage: Option<&'a Stage>,
    residual: Option<&'a Reader>,
    sample_bias: Option<*const f32>,
    size: (usize, usize, usize),
    output: SharedMut,
    sample: usize,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (height, width, channels) = self.size;
        let conv = &self.step.conv;
        let columns = self.columns.len();
        let mut segments = Vec::with_capacity(3.max(self.reader.parts.len()));
        // SAFETY: stage, maps and output are as large as the plan says; `columns` start at a panel.
        unsafe {
            let inputs = self.reader.channels() / if self.step.bf16 { 2 } else { 1 };
            let inner = inputs * conv.kernel * conv.kernel;
            let right = self.step.weight.slice().as_ptr().add(self.columns.start * inner);
            let image = self.output.get().add(self.sample * height * width * channels);
            let out_row = |y: usize| image.add(y * width * channels + self.columns.start);
            let accumulate = self.residual.is_some() || self.sample_bias.is_some();
            for y in self.rows.clone() {
                if let Some(residual) = self.residual {
                    residual.row::<S>(
                        self.sample,
                        y as isize,
                        0,
                        width,
                        self.columns.clone(),
                        out_row(y),
                        channels,
                    );
                }
                if let Some(bias) = self.sample_bias {
                    let bias = std::slice::from_raw_parts(bias.add(self.columns.start), columns);
                    for x in 0..width {
                        let pixel = std::slice::from_raw_parts_mut(out_row(y).add(x * channels), columns);
                        if self.residual.is_some() {
                            pixel.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                        } else {
                            pixel.copy_from_slice(bias);
                        }
                    }
                }
            }
            let bias = self.step.bias.as_ref();
            let p = Product {
                segments: &[],
                rows: width,
                right,
                terms: self.terms,
                bf16: self.step.bf16,
                columns,
                bias: bias.map_or(std::ptr::null(), |bias| bias.slice().as_ptr().add(self.columns.start)),
                accumulate,
                out: out_row(self.rows.start),
                out_stride: channels,
            };
            if conv.kernel == 1 {
                // All pixels of the rows lie one after another.
                let first = self.sample * height * width + self.rows.start * width;
                match self.stage {
                    Some(Stage { data, channels, .. }) => {
                        let start = data.get().add(first * channels).cast_const();
                        segments.push(Segment { start, row_stride: *channels, len: *channels });
                    }
                    None => segments.extend(self.reader.parts.iter().map(|part| Segment {
                        start: part.data.add(first * part.channels),
                        row_stride: part.channels,
                        len: part.channels,
                    })),
                }
                product::<S>(&Product { rows: self.rows.len() * width, segments: &segments, ..p });
            } else if let Some(stage) = self.stage {
                for y in self.rows.clone() {
                    segments.clear();
                    for tap in 0..3 {
                        let row = self.sample * stage.height + y * conv.stride + tap;
                        segments.push(Segment {
                            start: stage.data.get().add(row * stage.width * stage.channels),
                            row_stride: conv.stride * stage.channels,
                            len: 3 * stage.channels,
                        });
                    }
                    product::<S>(&Product { segments: &segments, out: out_row(y), ..p });
                }
            }
        }
    }
}
