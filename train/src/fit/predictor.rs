//! Scores of fitted heads on samples.

use mdm::Result;
use mdm::model::Head;
use rayon::prelude::*;
use serde::Serialize;

use super::chunk::{CHUNK, softmax};
use super::folded::{Affine, Folded};
use super::matrix::{Matrix, product};
use super::samples::Parts;
use super::state::EPS;
use crate::metrics::{Foreground, class_iou};

/// How well heads classify labelled pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PixelScores {
    /// Pixels that were scored.
    pub pixels: usize,
    /// Part of them whose class is right.
    pub accuracy: f64,
    /// Dice of the foreground, all classes but 0.
    pub dice: f64,
    /// Mean intersection over union of the classes that occur.
    pub mean_iou: f64,
}

/// A head in use, batch norms folded into the layers after them.
struct Predictor<'a> {
    head: &'a Head,
    folded: [Folded; 2],
}

impl<'a> Predictor<'a> {
    fn new(head: &'a Head) -> Self {
        let fold = |layer: usize| {
            let (norm, next) = (&head.norm[layer], &head.linear[layer + 1]);
            let variance = norm.running_var.iter().map(|&variance| (f64::from(variance) + EPS).sqrt() as f32);
            let scale: Vec<f32> =
                norm.weight.iter().zip(variance).map(|(weight, root)| weight / root).collect();
            let moved = norm.running_mean.iter().zip(&scale).map(|(mean, scale)| mean * scale);
            let shift: Vec<f32> = norm.bias.iter().zip(moved).map(|(bias, moved)| bias - moved).collect();
            let mut folded = Folded::new(next.inputs, next.outputs);
            folded.set(Affine { weight: &next.weight, bias: &next.bias }, &scale, &shift);
            folded
        };
        Self { head, folded: [fold(0), fold(1)] }
    }

    /// Adds the classes' probabilities of `rows` samples to `sum`.
    fn add(&self, features: &[f32], rows: usize, sum: &mut [f32]) {
        let first = &self.head.linear[0];
        let input = Matrix::new(features, rows, first.inputs);
        let hidden = layer(input, Affine { weight: &first.weight, bias: &first.bias });
        let hidden = layer(Matrix::new(&hidden, rows, first.outputs), self.folded[0].affine());
        let (weight, bias) = (&self.folded[1].weight, &self.folded[1].bias);
        let mut logits = vec![0.0; rows * bias.len()];
        let inputs = self.head.linear[2].inputs;
        let input = Matrix::new(&hidden, rows, inputs);
        product(&mut logits, input, Matrix::new(weight, bias.len(), inputs).transposed());
        for (row, sum) in logits.chunks_exact_mut(bias.len()).zip(sum.chunks_exact_mut(bias.len())) {
            softmax(row, bias);
            for (probability, sum) in row.iter().zip(sum) {
                *sum += probability;
            }
        }
    }
}

/// Linear layer and ReLU.
fn layer(input: Matrix<'_>, layer: Affine<'_>) -> Vec<f32> {
    let outputs = layer.bias.len();
    let mut values = vec![0.0; input.rows() * outputs];
    product(&mut values, input, Matrix::new(layer.weight, outputs, input.columns()).transposed());
    for row in values.chunks_exact_mut(outputs) {
        for (value, bias) in row.iter_mut().zip(layer.bias) {
            *value = (*value + bias).max(0.0);
        }
    }
    values
}

/// Scores the mean probability of `heads` on the samples numbered `picked`, on the current thread pool.
pub(crate) fn score(heads: &[Head], samples: &Parts<'_>, picked: &[u32]) -> Result<PixelScores> {
    let predictors: Vec<_> = heads.iter().map(Predictor::new).collect();
    let classes = heads.first().map_or(1, Head::classes);
    let predicted: Vec<u8> = picked
        .par_chunks(CHUNK)
        .flat_map_iter(|picked| {
            let features: Vec<f32> =
                picked.iter().flat_map(|&index| samples.features(index as usize)).copied().collect();
            let mut sum = vec![0.0; picked.len() * classes];
            for predictor in &predictors {
                predictor.add(&features, picked.len(), &mut sum);
            }
            sum.chunks_exact(classes).map(largest).collect::<Vec<_>>()
        })
        .collect();
    let truth: Vec<u8> = picked.iter().map(|&index| samples.label(index as usize)).collect();
    let mask = |labels: &[u8]| labels.iter().map(|&label| label > 0).collect::<Vec<_>>();
    let counts = Foreground::new(&mask(&predicted), &mask(&truth))?;
    let classes = class_iou(&predicted, &truth, None)?;
    Ok(PixelScores {
        pixels: picked.len(),
        accuracy: classes.accuracy,
        dice: counts.dice(),
        mean_iou: classes.mean,
    })
}

/// Index of the largest value, the first of equals.
fn largest(values: &[f32]) -> u8 {
    let best = values.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (class, &value)| {
        if value > best.1 { (class, value) } else { best }
    });
    best.0 as u8
}
