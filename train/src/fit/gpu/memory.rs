//! A device's memory for a head in training.

use std::ops::Range;
use std::sync::Arc;

use mdm::Result;
use mdm::engine::gpu::call::{ALIGNMENT, Binding, ENOUGH_WORKGROUPS, too_large};
use mdm::engine::gpu::context::{Context, Memory};
use mdm::engine::gpu::shader::Tile;
use wgpu::BufferUsages as Usage;

use crate::engine::gpu::optimiser::UPDATE;
use crate::fit::state::HeadState;

/// Blocks of rows that moments are taken of, at most: a thread adds up those of a channel.
const MOST_BLOCKS: usize = 64;

/// Rows of such a block at least, and of a part of a weight's gradient.
const LEAST_ROWS: usize = 128;

/// Samples whose losses a workgroup adds up, as in the shader.
pub(super) const LOSSES: usize = 64;

/// What belongs to a head, and the intermediate results of a step. All values are f32 but for samples' numbers and labels.
pub(super) struct HeadMemory {
    /// Parameters, their gradients and the means of these and of their squares, all in the order of the head's layout.
    pub(super) parameters: Arc<Memory>,
    pub(super) gradients: Arc<Memory>,
    pub(super) first: Arc<Memory>,
    pub(super) second: Arc<Memory>,
    /// `[mean, inverse of the standard deviation, running mean, running variance][channels]` of both batch norms.
    pub(super) norms: [Arc<Memory>; 2],
    /// What is subtracted from the features of each channel, then what they are multiplied by.
    pub(super) scale: Arc<Memory>,
    pub(super) steps: StepMemory,
    /// What each layer reads: the batch's features, and what is left by both ReLUs.
    pub(super) inputs: [Arc<Memory>; 3],
    /// Gradients of what each layer answers; the last are logits first.
    pub(super) outputs: [Arc<Memory>; 3],
    /// Statistics of blocks of rows.
    pub(super) moments: Arc<Memory>,
    /// Parts of the gradients of a layer.
    pub(super) parts: Arc<Memory>,
    /// Sums of losses, `loss_sums` for each step, and the same on their way to the host.
    pub(super) losses: Arc<Memory>,
    pub(super) staging: Memory,
    pub(super) loss_sums: usize,
}

impl HeadMemory {
    pub(super) fn new(context: &Context, state: &HeadState, batch: usize, steps: usize) -> Result<Self> {
        let usage = Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC;
        let values = |label: &str, count: Option<usize>| {
            let count = count.and_then(|count| count.checked_mul(4)).ok_or_else(|| too_large(label))?;
            Ok(Arc::new(context.buffer(label, count as u64, usage)?))
        };
        let shape = &state.shape;
        let of_batch = |label: &str, channels: usize| values(label, batch.checked_mul(channels));
        let [first, second] = shape.hidden;
        let of_parameters = |label: &str| values(label, Some(state.layout.len));
        let parts = (0..3).map(|layer| Parts::new(state, batch, layer).values()).max();
        let loss_sums = batch.div_ceil(LOSSES);
        let staging = Usage::COPY_DST | Usage::MAP_READ;
        Ok(Self {
            parameters: of_parameters("a head's parameters")?,
            gradients: of_parameters("a head's gradients")?,
            first: of_parameters("mean of a head's gradients")?,
            second: of_parameters("mean of a head's squared gradients")?,
            norms: [values("a batch norm", Some(4 * first))?, values("a batch norm", Some(4 * second))?],
            scale: values("scale of features", Some(2 * shape.inputs))?,
            steps: StepMemory::new(context, batch, shape.classes, steps)?,
            inputs: [
                of_batch("features of a batch", shape.inputs)?,
                of_batch("a hidden layer", first)?,
                of_batch("a hidden layer", second)?,
            ],
            outputs: [
                of_batch("gradients of a hidden layer", first)?,
                of_batch("gradients of a hidden layer", second)?,
                of_batch("logits", shape.classes)?,
            ],
            moments: values("moments of a hidden layer", Some(2 * first.max(second) * blocks(batch).1))?,
            parts: values("parts of a gradient", parts)?,
            losses: values("losses", Some(loss_sums * steps))?,
            staging: context.buffer("losses", 4 * (loss_sums * steps) as u64, staging)?,
            loss_sums,
        })
    }
}

/// Rows of a block of a batch, and blocks.
pub(super) fn blocks(batch: usize) -> (usize, usize) {
    let block = batch.div_ceil(MOST_BLOCKS).max(LEAST_ROWS);
    (block, batch.div_ceil(block))
}

/// How the gradient of a layer's weight is divided.
pub(super) struct Parts {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) tiles: usize,
    pub(super) splits: usize,
}

impl Parts {
    pub(super) fn new(state: &HeadState, batch: usize, layer: usize) -> Self {
        let (inputs, outputs) = state.shape.linear()[layer];
        let Tile { rows, columns, .. } = Tile::SMALL;
        let tiles = outputs.div_ceil(8 * rows as usize) * (inputs + 1).div_ceil(8 * columns as usize);
        let splits = ENOUGH_WORKGROUPS.div_ceil(tiles).min((batch / LEAST_ROWS).max(1));
        Self { inputs, outputs, tiles, splits }
    }

    /// Values of all parts; the bias is one input more.
    pub(super) fn values(&self) -> usize {
        self.splits * self.outputs * (self.inputs + 1)
    }
}

/// What differs from step to step: written for several of them before the first.
pub(super) struct StepMemory {
    pub(super) memory: Arc<Memory>,
    /// Steps that there is room for.
    pub(super) count: usize,
    batch: usize,
    classes: usize,
}

/// Where things lie in [`StepMemory`], in words.
pub(super) struct StepPlaces {
    /// Words of the optimiser.
    pub(super) update: Range<usize>,
    /// Of the classes.
    pub(super) weights: Range<usize>,
    /// Of the batch's samples.
    pub(super) labels: Range<usize>,
    /// Numbers of the batch's samples.
    pub(super) picked: Range<usize>,
}

impl StepMemory {
    fn new(context: &Context, batch: usize, classes: usize, count: usize) -> Result<Self> {
        let words = count * Self::words(batch, classes);
        let usage = Usage::STORAGE | Usage::COPY_DST;
        let memory = Arc::new(context.buffer("steps", 4 * words as u64, usage)?);
        Ok(Self { memory, count, batch, classes })
    }

    fn words(batch: usize, classes: usize) -> usize {
        let end = |len: usize| len.next_multiple_of(ALIGNMENT / 4);
        end(UPDATE) + end(classes) + 2 * end(batch)
    }

    /// Words of a step.
    pub(super) fn slot_words(&self) -> usize {
        Self::words(self.batch, self.classes)
    }

    /// Where what belongs to step `slot` lies.
    pub(super) fn places(&self, slot: usize) -> StepPlaces {
        let mut end = slot * self.slot_words();
        let mut take = |len: usize| {
            let start = end;
            end += len.next_multiple_of(ALIGNMENT / 4);
            start..start + len
        };
        StepPlaces {
            update: take(UPDATE),
            weights: take(self.classes),
            labels: take(self.batch),
            picked: take(self.batch),
        }
    }

    /// The part of it at some of its [`places`](Self::places).
    pub(super) fn at(&self, place: &Range<usize>) -> Binding {
        Binding::Memory(self.memory.clone(), 4 * place.start..4 * place.end)
    }
}
