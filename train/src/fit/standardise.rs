//! Features brought to a common scale.

use mdm::model::Linear;

use super::samples::Parts;

/// Subtracts each channel's mean and divides by its standard deviation.
///
/// Decoder blocks differ in scale by orders of magnitude, and with raw features a step of Adam means something else for
/// each of them: heads of one ensemble scatter and need more steps. The map is affine, so a fitted head takes it into
/// its first layer and the model file knows nothing of it.
#[derive(Clone, Debug)]
pub(crate) struct Standardisation {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Standardisation {
    /// The identity.
    pub(crate) fn none(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], inverse: vec![1.0; channels] }
    }

    /// That of the samples numbered `picked`. A channel that is constant on them says nothing and is dropped.
    pub(crate) fn of(samples: &Parts<'_>, picked: &[u32]) -> Self {
        let channels = samples.channels();
        let count = picked.len().max(1) as f64;
        let rows = || picked.iter().map(|&index| samples.features(index as usize));
        let mut mean = vec![0.0_f64; channels];
        for row in rows() {
            for (sum, &value) in mean.iter_mut().zip(row) {
                *sum += f64::from(value);
            }
        }
        for sum in &mut mean {
            *sum /= count;
        }
        let mut variance = vec![0.0_f64; channels];
        for row in rows() {
            for ((sum, &value), mean) in variance.iter_mut().zip(row).zip(&mean) {
                *sum += (f64::from(value) - mean).powi(2);
            }
        }
        variance.iter_mut().for_each(|sum| *sum /= count);
        Self::from_moments(&mean, &variance)
    }

    /// That of channels of these means and variances.
    pub(crate) fn from_moments(mean: &[f64], variance: &[f64]) -> Self {
        let inverse = variance.iter().zip(mean).map(|(variance, mean)| {
            let deviation = variance.sqrt();
            // Below this, what varies is rounding.
            let constant = deviation <= 1e-6 * mean.abs() || deviation < 1e-30;
            if constant { 0.0 } else { (1.0 / deviation) as f32 }
        });
        Self { inverse: inverse.collect(), mean: mean.iter().map(|&mean| mean as f32).collect() }
    }

    /// What is subtracted from each channel, and what it is multiplied by then.
    pub(crate) fn channels(&self) -> [&[f32]; 2] {
        [&self.mean, &self.inverse]
    }

    /// Standardises one sample.
    pub(crate) fn apply(&self, from: &[f32], to: &mut [f32]) {
        for ((to, from), (mean, inverse)) in to.iter_mut().zip(from).zip(self.mean.iter().zip(&self.inverse))
        {
            *to = (from - mean) * inverse;
        }
    }

    /// Turns a layer that takes standardised features into the same layer of raw ones.
    pub(crate) fn fold(&self, layer: &mut Linear) {
        let rows = layer.weight.chunks_exact_mut(self.mean.len());
        for (row, bias) in rows.zip(&mut layer.bias) {
            let mut sum = f64::from(*bias);
            for (weight, (mean, inverse)) in row.iter_mut().zip(self.mean.iter().zip(&self.inverse)) {
                *weight *= inverse;
                sum -= f64::from(*weight) * f64::from(*mean);
            }
            *bias = sum as f32;
        }
    }

    /// Turns a layer that takes raw features into the same layer of standardised ones; dropped channels are left out.
    pub(crate) fn unfold(&self, layer: &mut Linear) {
        let rows = layer.weight.chunks_exact_mut(self.mean.len());
        for (row, bias) in rows.zip(&mut layer.bias) {
            let mut sum = f64::from(*bias);
            for (weight, (mean, inverse)) in row.iter_mut().zip(self.mean.iter().zip(&self.inverse)) {
                // A dropped channel is constant: what it adds goes into the bias.
                sum += f64::from(*weight) * f64::from(*mean);
                *weight = if *inverse == 0.0 { 0.0 } else { *weight / inverse };
            }
            *bias = sum as f32;
        }
    }
}
