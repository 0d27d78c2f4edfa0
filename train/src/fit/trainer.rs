//! One head in training.

use std::ops::Range;

use mdm::model::{BatchNorm, Head, Linear};
use rayon::prelude::*;

use super::chunk::{CHUNK, Chunk, Normalisation};
use super::folded::{Affine, Folded};
use super::parameters::{Adam, Layout, Shape};
use super::samples::Parts;
use super::standardise::Standardisation;

/// Momentum of the running statistics.
const MOMENTUM: f64 = 0.1;
/// Added to variances before their root.
pub(crate) const EPS: f64 = 1e-5;

/// A head, its optimiser, and buffers for batches of one size.
pub(crate) struct Trainer {
    shape: Shape,
    layout: Layout,
    standardisation: Standardisation,
    parameters: Vec<f32>,
    running_mean: [Vec<f32>; 2],
    running_var: [Vec<f32>; 2],
    adam: Adam,
    gradient: Vec<f32>,
    norms: [Normalisation; 2],
    /// Weight and bias of the second and third layer with the scale and shift of the norm before them folded in.
    folded: [Folded; 2],
    class_weights: Vec<f32>,
    chunks: Vec<Chunk>,
}

impl Trainer {
    /// A head with `parameters` in `layout`'s order, for batches of `batch` samples, at least two.
    pub(crate) fn new(
        shape: Shape,
        standardisation: Standardisation,
        parameters: Vec<f32>,
        batch: usize,
        class_weights: Vec<f32>,
    ) -> Self {
        let layout = Layout::new(&shape);
        assert_eq!(parameters.len(), layout.len, "parameters of {shape:?}");
        let sizes = (0..batch).step_by(CHUNK).map(|start| CHUNK.min(batch - start));
        let [_, second, third] = shape.linear().map(|(inputs, outputs)| Folded::new(inputs, outputs));
        Self {
            adam: Adam::new(layout.len),
            gradient: vec![0.0; layout.len],
            running_mean: shape.hidden.map(|channels| vec![0.0; channels]),
            running_var: shape.hidden.map(|channels| vec![1.0; channels]),
            norms: shape.hidden.map(Normalisation::new),
            folded: [second, third],
            chunks: sizes.map(|rows| Chunk::new(shape, rows)).collect(),
            class_weights,
            shape,
            standardisation,
            layout,
            parameters,
        }
    }

    /// Goes on with a head of that shape that was fitted before. Adam begins anew.
    pub(crate) fn continuing(
        head: &Head,
        shape: Shape,
        standardisation: Standardisation,
        batch: usize,
        class_weights: Vec<f32>,
    ) -> Self {
        let layout = Layout::new(&shape);
        let mut first = head.linear[0].clone();
        standardisation.unfold(&mut first);
        let mut parameters = vec![0.0; layout.len];
        let [_, second, third] = &head.linear;
        for (layer, linear) in [&first, second, third].into_iter().enumerate() {
            parameters[layout.weight[layer].clone()].copy_from_slice(&linear.weight);
            parameters[layout.bias[layer].clone()].copy_from_slice(&linear.bias);
        }
        for (layer, norm) in head.norm.iter().enumerate() {
            parameters[layout.scale[layer].clone()].copy_from_slice(&norm.weight);
            parameters[layout.shift[layer].clone()].copy_from_slice(&norm.bias);
        }
        let mut trainer = Self::new(shape, standardisation, parameters, batch, class_weights);
        trainer.running_mean = head.norm.each_ref().map(|norm| norm.running_mean.clone());
        trainer.running_var = head.norm.each_ref().map(|norm| norm.running_var.clone());
        trainer
    }

    /// One step of Adam on the samples numbered `picked`, as many as the batch has; their loss before the step.
    ///
    /// It runs on the current thread pool; the result does not depend on how many threads that has.
    pub(crate) fn step(&mut self, samples: &Parts<'_>, picked: &[u32], rate: f64) -> f64 {
        assert_eq!(picked.len(), self.batch(), "samples of a batch");
        let layer = Affine {
            weight: &self.parameters[self.layout.weight[0].clone()],
            bias: &self.parameters[self.layout.bias[0].clone()],
        };
        self.chunks.par_iter_mut().zip(picked.par_chunks(CHUNK)).for_each(|(chunk, picked)| {
            chunk.gather(samples, picked, &self.standardisation);
            chunk.first_layer(layer);
        });
        self.finish_norm(0);
        let (norm, layer) = (&self.norms[0], self.folded[0].affine());
        self.chunks.par_iter_mut().for_each(|chunk| chunk.second_layer(norm, layer));
        self.finish_norm(1);
        let weights = self.sample_weights();
        let (norm, layer) = (&self.norms[1], self.folded[1].affine());
        self.chunks.par_iter_mut().for_each(|chunk| chunk.third_layer(norm, layer, &weights));
        self.finish_layer(2);
        let (norm, weight) = (&self.norms[1], &self.folded[1].weight);
        self.chunks.par_iter_mut().for_each(|chunk| chunk.second_gradients(norm, weight));
        self.finish_layer(1);
        let (norm, weight) = (&self.norms[0], &self.folded[0].weight);
        self.chunks.par_iter_mut().for_each(|chunk| chunk.first_gradients(norm, weight));
        self.sum_gradients(0);
        self.adam.step(&mut self.parameters, &self.gradient, rate);
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
            move_towards(&mut self.running_mean[layer][channel], mean);
            move_towards(&mut self.running_var[layer][channel], deviation / (batch - 1.0));
        }
        let (scale, shift) = (
            &self.parameters[self.layout.scale[layer].clone()],
            &self.parameters[self.layout.shift[layer].clone()],
        );
        let next = Affine {
            weight: &self.parameters[self.layout.weight[layer + 1].clone()],
            bias: &self.parameters[self.layout.bias[layer + 1].clone()],
        };
        self.folded[layer].set(next, scale, shift);
    }

    /// For each class the weight of a sample in the batch's loss.
    fn sample_weights(&self) -> Vec<f32> {
        let labels = self.chunks.iter().flat_map(Chunk::labels);
        let total: f64 = labels.map(|&label| f64::from(self.class_weights[usize::from(label)])).sum();
        self.class_weights.iter().map(|&weight| (f64::from(weight) / total) as f32).collect()
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
        sum(&self.layout.weight[layer], |chunk, layer| &chunk.weight[layer]);
        sum(&self.layout.bias[layer], |chunk, layer| &chunk.bias[layer]);
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
        let [scale, shift] = [&self.layout.scale[layer - 1], &self.layout.shift[layer - 1]];
        self.gradient[scale.clone()].fill(0.0);
        self.gradient[shift.clone()].fill(0.0);
        for output in 0..self.layout.bias[layer].len() {
            let bias = self.gradient[self.layout.bias[layer].start + output];
            let row = self.layout.weight[layer].start + output * channels;
            for channel in 0..channels {
                let (weight, slope) = (self.parameters[row + channel], self.gradient[row + channel]);
                self.gradient[scale.start + channel] += weight * slope;
                self.gradient[shift.start + channel] += weight * bias;
                self.gradient[row + channel] = slope * self.parameters[scale.start + channel]
                    + bias * self.parameters[shift.start + channel];
            }
        }
        for channel in 0..channels {
            let scaled = self.parameters[scale.start + channel] / batch;
            norm.gradient_mean[channel] = scaled * self.gradient[shift.start + channel];
            norm.gradient_slope[channel] = scaled * self.gradient[scale.start + channel];
        }
    }

    /// The head as it is now, for features as they come.
    pub(crate) fn head(&self) -> Head {
        let [first, second, third] = self.shape.linear();
        let values = |range: &Range<usize>| self.parameters[range.clone()].to_vec();
        let linear = |layer: usize, (inputs, outputs): (usize, usize)| Linear {
            inputs,
            outputs,
            weight: values(&self.layout.weight[layer]),
            bias: values(&self.layout.bias[layer]),
        };
        let norm = |layer: usize| BatchNorm {
            weight: values(&self.layout.scale[layer]),
            bias: values(&self.layout.shift[layer]),
            running_mean: self.running_mean[layer].clone(),
            running_var: self.running_var[layer].clone(),
        };
        let mut first = linear(0, first);
        self.standardisation.fold(&mut first);
        Head { linear: [first, linear(1, second), linear(2, third)], norm: [norm(0), norm(1)] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Samples;
    use super::*;
    use crate::support::{Golden, weight};

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// Relative error in the L2 norm.
    fn error(got: &[f32], want: &[f32]) -> f64 {
        assert_eq!(got.len(), want.len());
        let square = |value: f64| value * value;
        let wrong: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
        (wrong / want.iter().map(|&value| square(f64::from(value))).sum::<f64>()).sqrt()
    }

    #[test]
    fn golden_steps() {
        for golden in Golden::all("head_training") {
            let number = |key: &str| golden.meta[key].as_u64().unwrap() as usize;
            let (dim, batch, steps) = (number("dim"), number("batch"), number("steps"));
            let salt = golden.meta["salt"].as_u64().unwrap();
            let shape = Shape::new(dim, number("classes"));
            let layout = Layout::new(&shape);
            let mut parameters = vec![0.0; layout.len];
            let mut set = |range: &Range<usize>, name: &str, dims: &[usize]| {
                parameters[range.clone()].copy_from_slice(&weight(name, dims, salt));
            };
            for (layer, (inputs, outputs)) in shape.linear().into_iter().enumerate() {
                set(&layout.weight[layer], &format!("layers.{}.weight", 3 * layer), &[outputs, inputs]);
                set(&layout.bias[layer], &format!("layers.{}.bias", 3 * layer), &[outputs]);
            }
            for (layer, channels) in shape.hidden.into_iter().enumerate() {
                set(&layout.scale[layer], &format!("layers.{}.weight", 3 * layer + 2), &[channels]);
                set(&layout.shift[layer], &format!("layers.{}.bias", 3 * layer + 2), &[channels]);
            }
            let mut samples = Samples::new(dim).unwrap();
            for (row, label) in golden.floats("x").chunks_exact(dim).zip(golden.integers("y")) {
                samples.push(label as u8, false, |features| features.copy_from_slice(row));
            }
            let mut trainer =
                Trainer::new(shape, Standardisation::none(dim), parameters, batch, vec![1.0; shape.classes]);
            let losses: Vec<f32> = (0..steps)
                .map(|step| {
                    let row = |row: usize| ((step * batch + row) % samples.len()) as u32;
                    let picked: Vec<u32> = (0..batch).map(row).collect();
                    pool(1).install(|| trainer.step(&Parts::from(&samples), &picked, 1e-3)) as f32
                })
                .collect();
            assert!(error(&losses, &golden.floats("losses")) < 1e-6, "{losses:?}");
            let head = trainer.head();
            let check = |name: String, got: &[f32]| {
                let error = error(got, &golden.floats(&format!("final.layers.{name}")));
                assert!(error < 1e-5, "{name}: relative error {error:.1e}");
            };
            for (layer, linear) in head.linear.iter().enumerate() {
                check(format!("{}.weight", 3 * layer), &linear.weight);
                check(format!("{}.bias", 3 * layer), &linear.bias);
            }
            for (layer, norm) in head.norm.iter().enumerate() {
                check(format!("{}.weight", 3 * layer + 2), &norm.weight);
                check(format!("{}.bias", 3 * layer + 2), &norm.bias);
                check(format!("{}.running_mean", 3 * layer + 2), &norm.running_mean);
                check(format!("{}.running_var", 3 * layer + 2), &norm.running_var);
            }
        }
    }
}
