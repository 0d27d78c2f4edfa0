//! A part of a batch, small enough that its activations stay in a core's cache.

use super::folded::Affine;
use super::matrix::{Matrix, product};
use super::parameters::Shape;
use super::samples::Parts;
use super::standardise::Standardisation;

/// Samples in a chunk. Fixed, so that the order of summation does not depend on the number of threads.
pub(crate) const CHUNK: usize = 512;

/// A batch norm during one step; all vectors have one entry a channel.
#[derive(Clone, Debug)]
pub(crate) struct Normalisation {
    /// Of the batch.
    pub(crate) mean: Vec<f32>,
    /// 1 / standard deviation of the batch.
    pub(crate) inverse: Vec<f32>,
    /// Mean over the batch of the gradient with respect to the normalised values.
    pub(crate) gradient_mean: Vec<f32>,
    /// Mean over the batch of that gradient times the normalised value.
    pub(crate) gradient_slope: Vec<f32>,
}

impl Normalisation {
    pub(crate) fn new(channels: usize) -> Self {
        let zeros = || vec![0.0; channels];
        Self { mean: zeros(), inverse: zeros(), gradient_mean: zeros(), gradient_slope: zeros() }
    }
}

/// Buffers of one hidden layer.
#[derive(Clone, Debug)]
struct Hidden {
    /// Activations after ReLU, later normalised in place, `[rows, channels]`.
    values: Vec<f32>,
    /// Gradient with respect to the normalised values, later to the linear layer's output.
    gradient: Vec<f32>,
    /// Means over the chunk.
    mean: Vec<f32>,
    /// Sums of squared deviations from the chunk's means.
    deviation: Vec<f32>,
}

/// Forward and backward pass of a chunk, in five parts with sums over the whole batch between them.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    shape: Shape,
    rows: usize,
    features: Vec<f32>,
    labels: Vec<u8>,
    hidden: [Hidden; 2],
    logits: Vec<f32>,
    /// Gradients of the three layers' weights, with respect to normalised inputs for the last two.
    pub(crate) weight: [Vec<f32>; 3],
    /// Gradients of the three layers' biases.
    pub(crate) bias: [Vec<f32>; 3],
    /// Sum of the samples' weighted losses.
    pub(crate) loss: f64,
}

impl Chunk {
    pub(crate) fn new(shape: Shape, rows: usize) -> Self {
        let hidden = shape.hidden.map(|channels| Hidden {
            values: vec![0.0; rows * channels],
            gradient: vec![0.0; rows * channels],
            mean: vec![0.0; channels],
            deviation: vec![0.0; channels],
        });
        Self {
            shape,
            rows,
            features: vec![0.0; rows * shape.inputs],
            labels: vec![0; rows],
            hidden,
            logits: vec![0.0; rows * shape.classes],
            weight: shape.linear().map(|(inputs, outputs)| vec![0.0; inputs * outputs]),
            bias: shape.linear().map(|(_, outputs)| vec![0.0; outputs]),
            loss: 0.0,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Means and sums of squared deviations of hidden layer `layer`.
    pub(crate) fn moments(&self, layer: usize) -> (&[f32], &[f32]) {
        (&self.hidden[layer].mean, &self.hidden[layer].deviation)
    }

    /// Takes the samples numbered `picked`.
    pub(crate) fn gather(&mut self, samples: &Parts<'_>, picked: &[u32], scale: &Standardisation) {
        let rows = self.features.chunks_exact_mut(self.shape.inputs);
        for ((row, label), &index) in rows.zip(&mut self.labels).zip(picked) {
            scale.apply(samples.features(index as usize), row);
            *label = samples.label(index as usize);
        }
    }

    /// First layer and ReLU, and the moments of their result.
    pub(crate) fn first_layer(&mut self, layer: Affine<'_>) {
        let input = Matrix::new(&self.features, self.rows, self.shape.inputs);
        self.hidden[0].forward(input, layer);
    }

    /// Batch norm, second layer and ReLU, and the moments of their result. `layer` has the norm's scale and shift
    /// folded in.
    pub(crate) fn second_layer(&mut self, norm: &Normalisation, layer: Affine<'_>) {
        let [first, second] = &mut self.hidden;
        first.normalise(norm);
        second.forward(Matrix::new(&first.values, self.rows, self.shape.hidden[0]), layer);
    }

    /// Batch norm, third layer (`layer` as in [`second_layer`](Self::second_layer)), loss, and the gradients of the
    /// third layer. `weights`, one a class, are divided by their sum over the batch.
    pub(crate) fn third_layer(&mut self, norm: &Normalisation, layer: Affine<'_>, weights: &[f32]) {
        let hidden = &mut self.hidden[1];
        hidden.normalise(norm);
        let (rows, classes) = (self.rows, self.shape.classes);
        let input = Matrix::new(&hidden.values, rows, self.shape.hidden[1]);
        product(
            &mut self.logits,
            input,
            Matrix::new(layer.weight, classes, self.shape.hidden[1]).transposed(),
        );
        self.loss = 0.0;
        self.bias[2].fill(0.0);
        for (row, &label) in self.logits.chunks_exact_mut(classes).zip(&self.labels) {
            let label = usize::from(label);
            let weight = weights[label];
            let wanted = row[label] + layer.bias[label];
            let total = softmax(row, layer.bias);
            self.loss += f64::from(weight) * f64::from(total - wanted);
            row[label] -= 1.0;
            for (gradient, sum) in row.iter_mut().zip(&mut self.bias[2]) {
                *gradient *= weight;
                *sum += *gradient;
            }
        }
        product(&mut self.weight[2], Matrix::new(&self.logits, rows, classes).transposed(), input);
    }

    /// Gradients of the second layer.
    pub(crate) fn second_gradients(&mut self, norm: &Normalisation, third_weight: &[f32]) {
        let [first, second] = &mut self.hidden;
        let outer = Matrix::new(&self.logits, self.rows, self.shape.classes);
        second.backward(outer, third_weight, norm, &mut self.bias[1]);
        let gradient = Matrix::new(&second.gradient, self.rows, self.shape.hidden[1]).transposed();
        product(&mut self.weight[1], gradient, Matrix::new(&first.values, self.rows, self.shape.hidden[0]));
    }

    /// Gradients of the first layer.
    pub(crate) fn first_gradients(&mut self, norm: &Normalisation, second_weight: &[f32]) {
        let [first, second] = &mut self.hidden;
        let outer = Matrix::new(&second.gradient, self.rows, self.shape.hidden[1]);
        first.backward(outer, second_weight, norm, &mut self.bias[0]);
        let gradient = Matrix::new(&first.gradient, self.rows, self.shape.hidden[0]).transposed();
        product(&mut self.weight[0], gradient, Matrix::new(&self.features, self.rows, self.shape.inputs));
    }
}

impl Hidden {
    fn forward(&mut self, input: Matrix<'_>, layer: Affine<'_>) {
        let channels = self.mean.len();
        let rows = self.values.len() / channels;
        let weight = Matrix::new(layer.weight, channels, layer.weight.len() / channels);
        product(&mut self.values, input, weight.transposed());
        self.mean.fill(0.0);
        for row in self.values.chunks_exact_mut(channels) {
            for ((value, bias), sum) in row.iter_mut().zip(layer.bias).zip(&mut self.mean) {
                *value = (*value + bias).max(0.0);
                *sum += *value;
            }
        }
        for sum in &mut self.mean {
            *sum /= rows as f32;
        }
        self.deviation.fill(0.0);
        for row in self.values.chunks_exact(channels) {
            for ((value, mean), sum) in row.iter().zip(&self.mean).zip(&mut self.deviation) {
                *sum += (value - mean) * (value - mean);
            }
        }
    }

    fn normalise(&mut self, norm: &Normalisation) {
        for row in self.values.chunks_exact_mut(norm.mean.len()) {
            for ((value, mean), inverse) in row.iter_mut().zip(&norm.mean).zip(&norm.inverse) {
                *value = (*value - mean) * inverse;
            }
        }
    }

    /// Carries the gradient with respect to the next layer's output, `outer`, through that layer (its weight has the
    /// norm's scale folded in), the batch norm and the ReLU; sums it by channel into `bias`.
    fn backward(&mut self, outer: Matrix<'_>, weight: &[f32], norm: &Normalisation, bias: &mut [f32]) {
        let channels = norm.mean.len();
        product(&mut self.gradient, outer, Matrix::new(weight, weight.len() / channels, channels));
        bias.fill(0.0);
        let rows = self.gradient.chunks_exact_mut(channels).zip(self.values.chunks_exact(channels));
        for (gradients, values) in rows {
            // Slices of one length, so that the loop needs no bounds checks.
            let (mean, inverse) = (&norm.mean[..channels], &norm.inverse[..channels]);
            let (offset, slope) = (&norm.gradient_mean[..channels], &norm.gradient_slope[..channels]);
            let (gradients, values, bias) =
                (&mut gradients[..channels], &values[..channels], &mut bias[..channels]);
            for channel in 0..channels {
                let value = values[channel];
                let through =
                    (gradients[channel] - offset[channel] - value * slope[channel]) * inverse[channel];
                // The normalised value of an activation of zero, computed as `normalise` does.
                let zero = (0.0 - mean[channel]) * inverse[channel];
                gradients[channel] = if value > zero { through } else { 0.0 };
                bias[channel] += gradients[channel];
            }
        }
    }
}

/// Adds `bias` to `logits` and turns them into probabilities; the logarithm of the sum of their exponentials.
pub(crate) fn softmax(logits: &mut [f32], bias: &[f32]) -> f32 {
    let mut largest = f32::NEG_INFINITY;
    for (logit, bias) in logits.iter_mut().zip(bias) {
        *logit += bias;
        largest = largest.max(*logit);
    }
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = (*logit - largest).exp();
        sum += *logit;
    }
    for logit in logits.iter_mut() {
        *logit /= sum;
    }
    largest + sum.ln()
}
