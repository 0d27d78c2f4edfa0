//! As a product of the input's windows and the gradient.

use std::ops::Range;

use mdm::engine::cpu::buffer::SharedMut;
use mdm::engine::cpu::reader::{Map, Reader};
use mdm::engine::cpu::simd::{Kernel, Simd};
use mdm::engine::cpu::step::{Context, ScratchSize};
use mdm::plan::{Plan, Resample};

use super::ConvWeight;
use crate::engine::cpu::outer::{Outer, Rows, outer};
use crate::engine::parameters::Gradients;

/// Weights up to which sums over pixels are divided.
const FEW_WEIGHTS: usize = 1 << 16;

/// Groups of rows that are summed by themselves.
const GROUPS: usize = 16;

/// Outputs of a task.
const SHARE: usize = 64;

/// Outputs up to which they are the rows of the product, not its columns, of which it computes many at a time.
const FEW_OUTPUTS: usize = 8;

pub(super) struct Direct<'a> {
    op: &'a ConvWeight<'a>,
    inputs: usize,
    outputs: usize,
    /// Rows and columns of the result of the convolution.
    size: (usize, usize),
    batch: usize,
    groups: usize,
    /// Whether sums lie as `[out][taps][in]` instead of `[taps][in][out]`.
    outputs_first: bool,
    /// Rows, columns of the padded, normalised input; none where it is read in place.
    stage: Option<(usize, usize)>,
}

impl<'a> Direct<'a> {
    pub(super) fn new(op: &'a ConvWeight<'a>, plan: &Plan) -> Self {
        let output = &plan.tensors[op.gradient];
        let (inputs, batch) = (op.inputs(plan), plan.options.batch);
        let plain = op.source.norm.is_none() && op.source.resample == Resample::None;
        let padding = op.kernel - 1;
        let few = op.kernel * op.kernel * inputs * output.channels <= FEW_WEIGHTS;
        Self {
            op,
            inputs,
            outputs: output.channels,
            size: (output.height, output.width),
            batch,
            outputs_first: output.channels <= FEW_OUTPUTS,
            groups: if few { GROUPS.min(batch * output.height) } else { 1 },
            stage: (op.kernel == 3 || !plain)
                .then_some((output.height * op.stride + padding, output.width * op.stride + padding)),
        }
    }

    /// Values of the result.
    fn weights(&self) -> usize {
        self.op.kernel * self.op.kernel * self.inputs * self.outputs
    }

    fn stage_len(&self) -> usize {
        self.stage.map_or(0, |(height, width)| self.batch * height * width * self.inputs)
    }

    pub(super) fn scratch(&self) -> ScratchSize {
        ScratchSize { shared: self.stage_len() + self.groups * self.weights(), private: 0 }
    }

    pub(super) fn run(&self, context: &Context<'_>, gradients: &Gradients<'_>) {
        let reader = context.reader(self.op.source);
        if let Some((height, width)) = self.stage {
            context.parallel(self.batch * height, |row| {
                let kernel = FillRow {
                    reader: &reader,
                    sample: row / height,
                    y: row % height,
                    width,
                    padding: self.op.kernel / 2,
                    channels: self.inputs,
                    // SAFETY: each task fills one row of the stage.
                    out: unsafe { context.shared.add(row * width * self.inputs) },
                };
                // SAFETY: as above.
                unsafe { context.dispatch(kernel) }
            });
        }
        // SAFETY: the sums follow the stage.
        let sums = unsafe { context.shared.add(self.stage_len()) };
        // Blocks of rows of the result: those of a row of taps, or of a part that is read in place.
        let mut blocks: Vec<Block> = Vec::new();
        if self.stage.is_some() {
            let height = self.op.kernel * self.inputs;
            blocks.extend((0..self.op.kernel).map(|tap| Block { part: tap, first: tap * height, height }));
        } else {
            let mut first = 0;
            for (part, map) in reader.parts.iter().enumerate() {
                blocks.push(Block { part, first, height: map.channels });
                first += map.channels;
            }
        }
        let shares = self.outputs.div_ceil(SHARE);
        let units = self.batch * self.size.0;
        let gradient = context.map(self.op.gradient);
        context.parallel(self.groups * blocks.len() * shares, |task| {
            let (group, rest) = (task / (blocks.len() * shares), task % (blocks.len() * shares));
            let (block, share) = (&blocks[rest / shares], rest % shares);
            let columns = share * SHARE..self.outputs.min((share + 1) * SHARE);
            let units = group * units / self.groups..(group + 1) * units / self.groups;
            let mut rows = self.rows(context, &reader, &gradient, block.part, units, columns.start);
            let (mut height, mut width) = (block.height, columns.len());
            let (input_stride, output_stride) = self.strides();
            let start = group * self.weights() + block.first * input_stride + columns.start * output_stride;
            if self.outputs_first {
                rows.iter_mut().for_each(Rows::exchange);
                (height, width) = (width, height);
            }
            let kernel = Outer {
                rows: &rows,
                height,
                width,
                accumulate: false,
                // SAFETY: each task writes its own group, rows and columns.
                out: unsafe { sums.add(start) }.get(),
                out_stride: input_stride.max(output_stride),
            };
            // SAFETY: as above; what is read lies in the maps.
            unsafe { context.dispatch(Sum(kernel)) }
        });
        self.add_up(context, sums, gradients);
    }

    /// Distances in the sums from one tap or input to the next, and from one output to the next.
    fn strides(&self) -> (usize, usize) {
        if self.outputs_first { (1, self.weights() / self.outputs) } else { (self.outputs, 1) }
    }

    /// Where the rows of the convolution's result, counted through all samples, read input and gradient.
    fn rows(
        &self,
        context: &Context<'_>,
        reader: &Reader,
        gradient: &Map,
        part: usize,
        units: Range<usize>,
        column: usize,
    ) -> Vec<Rows> {
        let (height, width) = self.size;
        units
            .map(|unit| {
                let (sample, y) = (unit / height, unit % height);
                let (left, left_stride) = match self.stage {
                    Some((rows, columns)) => {
                        let row = sample * rows + y * self.op.stride + part;
                        let start = context.shared.get().wrapping_add(row * columns * self.inputs);
                        (start.cast_const(), self.op.stride * self.inputs)
                    }
                    None => {
                        let map = &reader.parts[part];
                        (map.at(unit * width * map.channels), map.channels)
                    }
                };
                let right = gradient.at(unit * width * self.outputs + column);
                Rows { left, left_stride, right, right_stride: self.outputs, count: width }
            })
            .collect()
    }

    /// Adds the sums of all groups to the gradient, which lies as `[out][in][taps]`.
    fn add_up(&self, context: &Context<'_>, sums: SharedMut, gradients: &Gradients<'_>) {
        let (inputs, outputs, weights) = (self.inputs, self.outputs, self.weights());
        let taps = self.op.kernel * self.op.kernel;
        let (input_stride, output_stride) = self.strides();
        let target = gradients.of(self.op.weight);
        context.parallel(outputs.div_ceil(SHARE), |task| {
            let columns = task * SHARE..outputs.min((task + 1) * SHARE);
            let mut totals = [0.0f32; SHARE];
            for i in 0..inputs {
                for tap in 0..taps {
                    totals.fill(0.0);
                    for group in 0..self.groups {
                        let start = group * weights
                            + (tap * inputs + i) * input_stride
                            + columns.start * output_stride;
                        for (out, total) in totals.iter_mut().enumerate().take(columns.len()) {
                            // SAFETY: written before.
                            *total += unsafe { *sums.get().add(start + out * output_stride) };
                        }
                    }
                    for (out, total) in columns.clone().zip(totals) {
                        // SAFETY: each task adds to its own outputs.
                        unsafe { *target.get().add((out * inputs + i) * taps + tap) += total };
                    }
                }
            }
        });
    }
}

/// Rows of the result that belong together.
struct Block {
    part: usize,
    first: usize,
    height: usize,
}

struct FillRow<'a> {
    reader: &'a Reader,
    sample: usize,
    y: usize,
    width: usize,
    padding: usize,
    channels: usize,
    out: SharedMut,
}

impl Kernel for FillRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let padding = self.padding as isize;
        // SAFETY: the row takes as many pixels.
        unsafe {
            self.reader.row::<S>(
                self.sample,
                self.y as isize - padding,
                -padding,
                self.width,
                0..self.channels,
                self.out.get(),
                self.channels,
            );
        }
    }
}

struct Sum<'a>(Outer<'a>);

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: promised by the caller.
        unsafe { outer::<S>(&self.0) }
    }
}
