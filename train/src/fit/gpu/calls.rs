//! A step of a head as calls of shaders.

use std::ops::Range;
use std::sync::Arc;

use mdm::Result;
use mdm::engine::gpu::call::{Binding, Call, word, words};
use mdm::engine::gpu::context::Memory;
use mdm::engine::gpu::shader::{Shader, Tile};

use super::memory::{HeadMemory, LOSSES, Parts, blocks};
use crate::engine::gpu::shaders::{
    ADAMW, HEAD_GATHER, HEAD_INPUT, HEAD_LAYER, HEAD_LOSS, HEAD_MOMENTS, HEAD_NORM, HEAD_WEIGHT,
    HEAD_WEIGHT_SUM, plain,
};
use crate::fit::state::{EPS, HeadState, MOMENTUM};

/// What calls need to know.
pub(super) struct Calls<'a> {
    pub(super) state: &'a HeadState,
    pub(super) batch: usize,
    pub(super) memory: &'a HeadMemory,
}

/// Which of [`Calls::all`] make up step `slot`.
pub(super) fn order(slot: usize) -> [usize; 5] {
    let own = 2 + 3 * slot;
    [own, 0, own + 1, 1, own + 2]
}

fn whole(memory: &Arc<Memory>) -> Binding {
    Binding::whole(memory.clone())
}

fn call(
    shader: Shader,
    params: Vec<u32>,
    bindings: impl IntoIterator<Item = Binding>,
    workgroups: usize,
    work: usize,
) -> Result<Call> {
    let (permutation, workgroups) = (plain(shader), word(workgroups)?);
    Ok(Call { permutation, params, bindings: (1..).zip(bindings).collect(), workgroups, work: work as f64 })
}

/// Tiles of a product.
fn tiles(rows: usize, columns: usize) -> usize {
    rows.div_ceil(8 * Tile::SMALL.rows as usize) * columns.div_ceil(8 * Tile::SMALL.columns as usize)
}

impl Calls<'_> {
    /// The forward pass but for its ends, the backward pass, and for each step that differs from others: the batch, the loss,
    /// the update.
    pub(super) fn all(&self, pages: &[(Range<usize>, Arc<Memory>)]) -> Result<Vec<Vec<Call>>> {
        let mut forward = Vec::new();
        for layer in 0..3 {
            forward.push(self.layer(layer)?);
            if layer < 2 {
                forward.push(self.moments(layer)?);
                forward.push(self.norm(layer)?);
            }
        }
        let mut backward = Vec::new();
        for layer in (0..3).rev() {
            backward.push(self.weight(layer)?);
            backward.push(self.weight_sum(layer)?);
            if layer > 0 {
                backward.push(self.input(layer)?);
            }
        }
        let mut all = vec![forward, backward];
        for slot in 0..self.memory.steps.count {
            all.push(pages.iter().map(|page| self.gather(slot, page)).collect::<Result<_>>()?);
            all.push(vec![self.loss(slot)?]);
            all.push(vec![self.update(slot)?]);
        }
        Ok(all)
    }

    /// One more than the place of the multipliers of the batch norm before a layer, or 0, and the place of its summands.
    fn norm_before(&self, layer: usize) -> (usize, usize) {
        let layout = &self.state.layout;
        layer.checked_sub(1).map_or((0, 0), |norm| (layout.scale[norm].start + 1, layout.shift[norm].start))
    }

    /// The statistics of the batch norm before a layer; where there is none, something to bind.
    fn statistics_before(&self, layer: usize) -> Binding {
        whole(&self.memory.norms[layer.saturating_sub(1)])
    }

    fn gather(&self, slot: usize, (range, page): &(Range<usize>, Arc<Memory>)) -> Result<Call> {
        let memory = self.memory;
        let channels = self.state.shape.inputs;
        let values = self.batch * channels;
        let picked = memory.steps.at(&memory.steps.places(slot).picked);
        call(
            HEAD_GATHER,
            words([self.batch, channels, range.start, range.end])?,
            [picked, whole(page), whole(&memory.scale), whole(&memory.inputs[0])],
            values.div_ceil(256),
            values,
        )
    }

    fn layer(&self, layer: usize) -> Result<Call> {
        let (memory, layout) = (self.memory, &self.state.layout);
        let (inputs, outputs) = self.state.shape.linear()[layer];
        let (scale, shift) = self.norm_before(layer);
        let (weight, bias) = (layout.weight[layer].start, layout.bias[layer].start);
        let relu = usize::from(layer < 2);
        let output = if layer < 2 { &memory.inputs[layer + 1] } else { &memory.outputs[2] };
        call(
            HEAD_LAYER,
            words([self.batch, inputs, outputs, weight, bias, scale, shift, relu])?,
            [
                whole(&memory.inputs[layer]),
                whole(&memory.parameters),
                self.statistics_before(layer),
                whole(output),
            ],
            tiles(self.batch, outputs),
            self.batch * inputs * outputs,
        )
    }

    /// Statistics of what hidden layer `layer` answers, by blocks.
    fn moments(&self, layer: usize) -> Result<Call> {
        let memory = self.memory;
        let channels = self.state.shape.hidden[layer];
        let (block, count) = blocks(self.batch);
        call(
            HEAD_MOMENTS,
            words([self.batch, channels, block])?,
            [whole(&memory.inputs[layer + 1]), whole(&memory.moments)],
            count * channels.div_ceil(32),
            2 * self.batch * channels,
        )
    }

    fn norm(&self, layer: usize) -> Result<Call> {
        let memory = self.memory;
        let channels = self.state.shape.hidden[layer];
        let (block, count) = blocks(self.batch);
        let mut params = words([self.batch, channels, block, count])?;
        params.extend([(MOMENTUM as f32).to_bits(), (EPS as f32).to_bits()]);
        call(
            HEAD_NORM,
            params,
            [whole(&memory.moments), whole(&memory.norms[layer])],
            channels.div_ceil(64),
            4 * count * channels,
        )
    }

    fn loss(&self, slot: usize) -> Result<Call> {
        let memory = self.memory;
        let places = memory.steps.places(slot);
        let classes = self.state.shape.classes;
        call(
            HEAD_LOSS,
            words([self.batch, classes, slot * memory.loss_sums])?,
            [
                memory.steps.at(&places.labels),
                memory.steps.at(&places.weights),
                whole(&memory.outputs[2]),
                whole(&memory.losses),
            ],
            self.batch.div_ceil(LOSSES),
            16 * self.batch * classes,
        )
    }

    fn weight(&self, layer: usize) -> Result<Call> {
        let memory = self.memory;
        let Parts { inputs, outputs, tiles, splits } = Parts::new(self.state, self.batch, layer);
        call(
            HEAD_WEIGHT,
            words([self.batch, inputs, outputs, usize::from(layer > 0), splits])?,
            [
                whole(&memory.outputs[layer]),
                whole(&memory.inputs[layer]),
                self.statistics_before(layer),
                whole(&memory.parts),
            ],
            tiles * splits,
            self.batch * inputs * outputs,
        )
    }

    fn weight_sum(&self, layer: usize) -> Result<Call> {
        let (memory, layout) = (self.memory, &self.state.layout);
        let parts = Parts::new(self.state, self.batch, layer);
        let (scale, shift) = self.norm_before(layer);
        let (weight, bias) = (layout.weight[layer].start, layout.bias[layer].start);
        call(
            HEAD_WEIGHT_SUM,
            words([parts.inputs, parts.outputs, parts.splits, weight, bias, scale, shift])?,
            [whole(&memory.parts), whole(&memory.parameters), whole(&memory.gradients)],
            (parts.inputs + 1).div_ceil(16),
            4 * parts.values(),
        )
    }

    /// What flows back to the layer before layer `layer`, the second or third.
    fn input(&self, layer: usize) -> Result<Call> {
        let (memory, layout) = (self.memory, &self.state.layout);
        let (inputs, outputs) = self.state.shape.linear()[layer];
        let norm = layer - 1;
        let (scale, shift) = (layout.scale[norm].start, layout.shift[norm].start);
        call(
            HEAD_INPUT,
            words([self.batch, inputs, outputs, layout.weight[layer].start, scale, shift])?,
            [
                whole(&memory.outputs[layer]),
                whole(&memory.parameters),
                whole(&memory.gradients),
                whole(&memory.norms[norm]),
                whole(&memory.inputs[layer]),
                whole(&memory.outputs[norm]),
            ],
            tiles(self.batch, inputs),
            self.batch * inputs * outputs,
        )
    }

    fn update(&self, slot: usize) -> Result<Call> {
        let memory = self.memory;
        let len = self.state.layout.len;
        call(
            ADAMW,
            words([len])?,
            [
                memory.steps.at(&memory.steps.places(slot).update),
                whole(&memory.parameters),
                whole(&memory.gradients),
                whole(&memory.first),
                whole(&memory.second),
            ],
            len.div_ceil(256),
            8 * len,
        )
    }
}
