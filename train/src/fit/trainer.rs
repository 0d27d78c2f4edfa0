//! One head in training.

use std::ops::Range;

use mdm::model::Head;
use mdm::{Control, Result};
use rayon::prelude::*;

use super::chunk::{CHUNK, Chunk, Normalisation};
use super::folded::{Affine, Folded};
use super::parameters::Adam;
use super::samples::Parts;
use super::state::{EPS, HeadState, MOMENTUM};

/// A head in training, on whatever trains it. Batches are of one size.
pub(crate) trait HeadTrainer {
    /// Steps that are taken at a time at most, at least 1: their losses are known after the last of them.
    fn most_steps(&self) -> usize;

    /// One step of Adam for each of `rates`, on the samples numbered `picked`, as many a step as the batch has; the loss before
    /// each step.
    ///
    /// # Errors
    /// [`Error::Cancelled`](mdm::Error::Cancelled), and those of a device.
    fn steps(&mut self, picked: &[u32], rates: &[f64], control: &Control<'_>) -> Result<Vec<f64>>;

    /// The head as it is now, for features as they come.
    ///
    /// # Errors
    /// Those of a device.
    fn head(&mut self) -> Result<Head>;
}

/// Weights of the classes in a batch's loss: `class_weights` divided by their sum over the batch.
pub(crate) fn batch_weights(class_weights: &[f32], labels: impl Iterator<Item = u8>) -> Vec<f32> {
    let total: f64 = labels.map(|label| f64::from(class_weights[usize::from(label)])).sum();
    class_weights.iter().map(|&weight| (f64::from(weight) / total) as f32).collect()
}

/// A head in training on the host, with its optimiser and buffers for a batch.
pub(crate) struct Trainer<'a> {
    samples: &'a Parts<'a>,
    state: HeadState,
    adam: Adam,
    gradient: Vec<f32>,
    norms: [Normalisation; 2],
    /// Weight and bias of the second and third layer with the scale and shift of the norm before them folded in.
    folded: [Folded; 2],
    class_weights: Vec<f32>,
    chunks: Vec<Chunk>,
}

impl HeadTrainer for Trainer<'_> {
    fn most_steps(&self) -> usize {
        1
    }

    fn steps(&mut self, picked: &[u32], rates: &[f64], control: &Control<'_>) -> Result<Vec<f64>> {
        let batches = picked.chunks_exact(self.batch()).zip(rates);
        batches.map(|(picked, &rate)| control.check().map(|()| self.step(picked, rate))).collect()
    }

    fn head(&mut self) -> Result<Head> {
        Ok(self.state.head())
    }
}

impl<'a> Trainer<'a> {
    /// Goes on from `state` with batches of `batch` samples, at least two.
    pub(crate) fn new(
        samples: &'a Parts<'a>,
        state: HeadState,
        batch: usize,
        class_weights: Vec<f32>,
    ) -> Self {
        let (shape, len) = (state.shape, state.layout.len);
        let sizes = (0..batch).step_by(CHUNK).map(|start| CHUNK.min(batch - start));
        let [_, second, third] = shape.linear().map(|(inputs, outputs)| Folded::new(inputs, outputs));
        Self {
            samples,
            adam: Adam::new(len),
            gradient: vec![0.0; len],
            norms: shape.hidden.map(Normalisation::new),
            folded: [second, third],
            chunks: sizes.map(|rows| Chunk::new(shape, rows)).collect(),
            class_weights,
            state,
        }
    }

    /// One step of Adam on the samples numbered `picked`, as many as the batch has; their loss before the step.
    ///
    /// It runs on the current thread pool; the result does not depend on how many threads that has.
    fn step(&mut self, picked: &[u32], rate: f64) -> f64 {
        assert_eq!(picked.len(), self.batch(), "samples of a batch");
        let layer = Affine {
            weight: &self.state.parameters[self.state.layout.weight[0].clone()],
            bias: &self.state.parameters[self.state.layout.bias[0].clone()],
        };
        self.chunks.par_iter_mut().zip(picked.par_chunks(CHUNK)).for_each(|(chunk, picked)| {
            chunk.gather(self.samples, picked, &self.state.standardisation);
            chunk.first_layer(layer);
        });
        self.finish_norm(0);
        let (norm, layer) = (&self.norms[0], self.folded[0].affine());
        self.chunks.par_iter_mut().for_each(|chunk| chunk.second_layer(norm, layer));
        self.finish_norm(1);
        let labels = self.chunks.iter().flat_map(Chunk::labels).copied();
        let weights = batch_weights(&self.class_weights, labels);
        let (norm, layer) = (&self.norms[1], self.folded[1].affine());
        self.chunks.par_iter_mut().for_each(|chunk| chunk.third_layer(norm, layer, &weights));
        self.finish_layer(2);
        let (norm, weight) = (&self.norms[1], &self.folded[1].weight);
        self.chunks.par_iter_mut().for_each(|chunk| chunk.second_gradients(norm, weight));
        self.finish_layer(1);
        let (norm, weight) = (&self.norms[0], &self.folded[0].weight);
        self.chunks.par_iter_mut().for_each(|chunk| chunk.first_gradients(norm, weight));
        self.sum_gradients(0);
        self.adam.step(&mut self.state.parameters, &self.gradient, rate);
        self.chunks.iter().map(|chunk| chunk.loss).sum()
    }

    fn batch(&self) -> usize {
        self.chunks.iter().map(Chunk::rows).sum()
    }

    /// Statistics of hidden layer `layer` over the batch, and the layer after it with the batch norm folded in.
    fn finish_norm(&mut self, layer: usize) {
        let batch = self.batch() as f64;
        let norm = &mut self.norms[layer];
        for channel in 0..norm.mean.len() {
            let moments = || {
                self.chunks.iter().map(|chunk| {
                    let (mean, deviation) = chunk.moments(layer);
                    (chunk.rows() as f64, f64::from(mean[channel]), f64::from(deviation[channel]))
                })
            };
            let mean = moments().map(|(rows, mean, _)| rows * mean).sum::<f64>() / batch;
            let spread = moments().map(|(rows, own, deviation)| deviation + rows * (own - mean).powi(2));
            let deviation: f64 = spread.sum();
            norm.mean[channel] = mean as f32;
            norm.inverse[channel] = (1.0 / (deviation / batch + EPS).sqrt()) as f32;
            let move_towards = |running: &mut f32, value: f64| {
                *running = ((1.0 - MOMENTUM) * f64::from(*running) + MOMENTUM * value) as f32;
            };
            move_towards(&mut self.state.running_mean[layer][channel], mean);
            move_towards(&mut self.state.running_var[layer][channel], deviation / (batch - 1.0));
        }
        let (scale, shift) = (
            &self.state.parameters[self.state.layout.scale[layer].clone()],
            &self.state.parameters[self.state.layout.shift[layer].clone()],
        );
        let next = Affine {
            weight: &self.state.parameters[self.state.layout.weight[layer + 1].clone()],
            bias: &self.state.parameters[self.state.layout.bias[layer + 1].clone()],
        };
        self.folded[layer].set(next, scale, shift);
    }

    /// Sums the chunks' gradients of layer `layer`, in their order.
    fn sum_gradients(&mut self, layer: usize) {
        let mut sum = |range: &Range<usize>, of: fn(&Chunk, usize) -> &[f32]| {
            let sums = &mut self.gradient[range.clone()];
            sums.fill(0.0);
            for chunk in &self.chunks {
                for (sum, value) in sums.iter_mut().zip(of(chunk, layer)) {
                    *sum += value;
                }
            }
        };
        sum(&self.state.layout.weight[layer], |chunk, layer| &chunk.weight[layer]);
        sum(&self.state.layout.bias[layer], |chunk, layer| &chunk.bias[layer]);
    }

    /// Gradients of layer `layer`, the second or third, and of the batch norm before it.
    ///
    /// The chunks' gradients are with respect to the layer's normalised input; from them follow those of the weight, of the
    /// norm's scale and shift, and the two means that the norm's own gradient needs, without a pass over the samples.
    fn finish_layer(&mut self, layer: usize) {
        self.sum_gradients(layer);
        let batch = self.batch() as f32;
        let norm = &mut self.norms[layer - 1];
        let channels = norm.mean.len();
        let [scale, shift] = [&self.state.layout.scale[layer - 1], &self.state.layout.shift[layer - 1]];
        self.gradient[scale.clone()].fill(0.0);
        self.gradient[shift.clone()].fill(0.0);
        for output in 0..self.state.layout.bias[layer].len() {
            let bias = self.gradient[self.state.layout.bias[layer].start + output];
            let row = self.state.layout.weight[layer].start + output * channels;
            for channel in 0..channels {
                let (weight, slope) = (self.state.parameters[row + channel], self.gradient[row + channel]);
                self.gradient[scale.start + channel] += weight * slope;
                self.gradient[shift.start + channel] += weight * bias;
                self.gradient[row + channel] = slope * self.state.parameters[scale.start + channel]
                    + bias * self.state.parameters[shift.start + channel];
            }
        }
        for channel in 0..channels {
            let scaled = self.state.parameters[scale.start + channel] / batch;
            norm.gradient_mean[channel] = scaled * self.gradient[shift.start + channel];
            norm.gradient_slope[channel] = scaled * self.gradient[scale.start + channel];
        }
    }
}
