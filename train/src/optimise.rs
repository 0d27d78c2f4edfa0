//! AdamW, moving averages and the gradient's norm, over flat parameters.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::learner::Update;

/// Values of a task. Sums of tasks are added in order, so that the bits do not depend on the number of threads.
const TASK: usize = 1 << 16;

/// Parameters and what the optimiser knows of each.
pub struct Parameters<'a, 'b> {
    /// The parameters.
    pub values: &'a mut [f32],
    /// Mean of gradients.
    pub first_moment: &'a mut [f32],
    /// Mean of squared gradients.
    pub second_moment: &'a mut [f32],
    /// Moving averages and their decay rates.
    pub ema: &'a mut [(f64, &'b mut [f32])],
}

/// Euclidean norm.
pub fn norm(gradients: &[f32]) -> f64 {
    let sums: Vec<f64> = gradients
        .par_chunks(TASK)
        .map(|chunk| {
            let mut lanes = [0.0f64; 8];
            for values in chunk.chunks(8) {
                for (lane, &value) in lanes.iter_mut().zip(values) {
                    *lane += f64::from(value) * f64::from(value);
                }
            }
            lanes.iter().sum()
        })
        .collect();
    sums.iter().sum::<f64>().sqrt()
}

/// One step, the `step`th from 1 on, by `scale` times the gradients.
///
/// # Panics
/// Where lengths differ.
pub fn adamw(update: &Update, step: u64, scale: f64, gradients: &[f32], parameters: &mut Parameters<'_, '_>) {
    let Update { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *update;
    let power = i32::try_from(step).unwrap_or(i32::MAX);
    let (beta1_f, beta2_f) = (beta1 as f32, beta2 as f32);
    let (rest1, rest2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
    let rate = (learning_rate / (1.0 - beta1.powi(power))) as f32;
    let root = ((1.0 - beta2.powi(power)).sqrt()) as f32;
    let kept = (1.0 - learning_rate * weight_decay) as f32;
    let (scale, epsilon) = (scale as f32, epsilon as f32);
    parameters
        .values
        .par_chunks_mut(TASK)
        .zip(parameters.first_moment.par_chunks_mut(TASK))
        .zip(parameters.second_moment.par_chunks_mut(TASK))
        .zip(gradients.par_chunks(TASK))
        .for_each(|(((values, first), second), gradients)| {
            for (((value, first), second), gradient) in
                values.iter_mut().zip(first).zip(second).zip(gradients)
            {
                let gradient = gradient * scale;
                *first = beta1_f * *first + rest1 * gradient;
                *second = beta2_f * *second + rest2 * gradient * gradient;
                *value = *value * kept - rate * *first / (second.sqrt() / root + epsilon);
            }
        });
    for (decay, average) in parameters.ema.iter_mut() {
        let rest = (1.0 - *decay) as f32;
        average.par_chunks_mut(TASK).zip(parameters.values.par_chunks(TASK)).for_each(|(average, values)| {
            for (average, value) in average.iter_mut().zip(values) {
                *average += rest * (value - *average);
            }
        });
    }
}
