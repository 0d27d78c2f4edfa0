//! What is done to a window before the network sees it: patches are hidden or noise is added.

use std::f64::consts::FRAC_PI_2;

use super::noise::WindowNoise;
use crate::memory::reserve;
use crate::model::{Corruption, CorruptionKind, MaskRule, NoiseSchedule};
use crate::{Error, Result};

/// Corrupts windows as a model saw its images in training.
#[derive(Clone, Debug)]
pub struct Corruptor {
    kind: CorruptionKind,
    timesteps: u32,
    last: u32,
    /// Cumulative products of alpha where noise is added.
    alphas_cumprod: Vec<f64>,
    noise: Vec<f32>,
}

impl Corruptor {
    /// Prepares a corruption.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are no timesteps, more than a million, or a patch has no pixels.
    pub fn new(corruption: &Corruption) -> Result<Self> {
        const MOST_TIMESTEPS: u32 = 1_000_000;
        if !(1..=MOST_TIMESTEPS).contains(&corruption.timesteps) {
            return Err(Error::invalid(
                "timesteps of the corruption",
                format!("{}; 1 to {MOST_TIMESTEPS} are possible", corruption.timesteps),
            ));
        }
        let alphas_cumprod = match corruption.kind {
            CorruptionKind::Mask { patch: 0, .. } => {
                return Err(Error::invalid("patch", "must have at least one pixel"));
            }
            CorruptionKind::Mask { .. } => Vec::new(),
            CorruptionKind::Gaussian { schedule } => alphas_cumprod(schedule, corruption.timesteps),
        };
        Ok(Self {
            kind: corruption.kind,
            timesteps: corruption.timesteps,
            last: corruption.last_timestep(),
            alphas_cumprod,
            noise: Vec::new(),
        })
    }

    /// Checks a timestep: 0 to T by the paper's masking rule, 0 to T - 1 otherwise.
    pub fn check_timestep(&self, timestep: u32) -> Result<()> {
        if timestep > self.last {
            return Err(Error::invalid("timestep", format!("{timestep} is not in 0..={}", self.last)));
        }
        Ok(())
    }

    /// Corrupts `pixels`, a window `[height, width, channels]` with values in [-1, 1].
    ///
    /// Where the window is no multiple of the patch, patches at its lower and right borders are cut off and count like whole ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a timestep out of range; [`Error::OutOfMemory`].
    pub fn apply(
        &mut self,
        pixels: &mut [f32],
        size: (usize, usize),
        channels: usize,
        noise: &WindowNoise,
    ) -> Result<()> {
        self.check_timestep(noise.timestep)?;
        match self.kind {
            CorruptionKind::Mask { patch, rule } => {
                let (rows, columns) = (size.0.div_ceil(patch), size.1.div_ceil(patch));
                resize(&mut self.noise, rows * columns)?;
                noise.uniform(&mut self.noise);
                let hidden =
                    hide(&self.noise, hidden_patches(rule, noise.timestep, self.timesteps, self.noise.len()));
                for (y, row) in pixels.chunks_exact_mut(size.1 * channels).enumerate() {
                    let hidden = &hidden[y / patch * columns..][..columns];
                    for (run, _) in
                        row.chunks_mut(patch * channels).zip(hidden).filter(|(_, hidden)| **hidden)
                    {
                        run.fill(0.0);
                    }
                }
            }
            CorruptionKind::Gaussian { .. } => {
                resize(&mut self.noise, pixels.len())?;
                noise.normal(&mut self.noise);
                q_sample(pixels, &self.noise, self.alphas_cumprod[noise.timestep as usize]);
            }
        }
        Ok(())
    }
}

fn resize(values: &mut Vec<f32>, len: usize) -> Result<()> {
    values.clear();
    reserve(values, len, "random numbers for a window")?;
    values.resize(len, 0.0);
    Ok(())
}

/// How many of `patches` patches are hidden at `timestep` of `timesteps`.
pub fn hidden_patches(rule: MaskRule, timestep: u32, timesteps: u32, patches: usize) -> usize {
    // The rules are stated, and were run in training, as these very expressions in f64, whose roundings matter.
    let (t, all, n) = (f64::from(timestep), f64::from(timesteps), patches as f64);
    let hidden = match rule {
        MaskRule::Paper => (t / (all + 1.0) * n) as usize,
        MaskRule::Official => patches - ((n * (1.0 - t / all)) as usize).min(patches),
    };
    hidden.min(patches)
}

/// Which patches are hidden (true) when `hidden` of them are: those with the largest `noise`, the later of equals first.
pub fn hide(noise: &[f32], hidden: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..noise.len()).collect();
    order.sort_by(|&a, &b| noise[a].total_cmp(&noise[b]));
    let mut mask = vec![false; noise.len()];
    for &patch in order.iter().rev().take(hidden) {
        mask[patch] = true;
    }
    mask
}

/// The cumulative products of alpha of a DDPM with `timesteps` steps.
pub fn alphas_cumprod(schedule: NoiseSchedule, timesteps: u32) -> Vec<f64> {
    let count = f64::from(timesteps);
    let beta = |step: u32| {
        let step = f64::from(step);
        match schedule {
            NoiseSchedule::Linear => {
                // Stated for a thousand steps and stretched for any other number.
                let scale = 1000.0 / count;
                let (first, last) = (scale * 1e-4, scale * 0.02);
                (first + (last - first) * step / (count - 1.0).max(1.0)).min(0.999)
            }
            NoiseSchedule::Cosine => {
                let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                (1.0 - alpha_bar((step + 1.0) / count) / alpha_bar(step / count)).min(0.999)
            }
        }
    };
    (0..timesteps)
        .scan(1.0, |product, step| {
            *product *= 1.0 - beta(step);
            Some(*product)
        })
        .collect()
}

/// `sqrt(alpha_cumprod) * x + sqrt(1 - alpha_cumprod) * noise`, in place.
pub fn q_sample(x: &mut [f32], noise: &[f32], alpha_cumprod: f64) {
    let (signal, spread) = (alpha_cumprod.sqrt() as f32, (1.0 - alpha_cumprod).sqrt() as f32);
    for (x, noise) in x.iter_mut().zip(noise) {
        *x = signal * *x + spread * noise;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn corruption(kind: CorruptionKind) -> Corruption {
        Corruption { kind, timesteps: 1000, corrupt_features: true }
    }

    proptest! {
        #[test]
        fn whole_patches_are_hidden_and_as_many_as_the_rule_says(
            height in 1usize..50, width in 1usize..50, patch in 1usize..20, timestep in 0u32..1000, official: bool
        ) {
            let rule = if official { MaskRule::Official } else { MaskRule::Paper };
            let mut corruptor = Corruptor::new(&corruption(CorruptionKind::Mask { patch, rule })).unwrap();
            let mut pixels = vec![0.5; height * width * 3];
            let noise = WindowNoise { seed: 1, timestep, top: 0, left: 0 };
            corruptor.apply(&mut pixels, (height, width), 3, &noise).unwrap();
            let (rows, columns) = (height.div_ceil(patch), width.div_ceil(patch));
            let mut hidden = 0;
            for row in 0..rows {
                for column in 0..columns {
                    let values: Vec<f32> = (row * patch..height.min((row + 1) * patch))
                        .flat_map(|y| (column * patch..width.min((column + 1) * patch)).map(move |x| (y, x)))
                        .flat_map(|(y, x)| pixels[(y * width + x) * 3..][..3].to_vec())
                        .collect();
                    prop_assert!(values.iter().all(|value| *value == values[0]));
                    hidden += usize::from(values[0] == 0.0);
                }
            }
            prop_assert_eq!(hidden, hidden_patches(rule, timestep, 1000, rows * columns));
        }
    }

    #[test]
    fn timesteps_out_of_range_are_errors() {
        let paper = Corruptor::new(&Corruption::default()).unwrap();
        assert!(paper.check_timestep(1000).is_ok());
        assert!(paper.check_timestep(1001).is_err());
        let gaussian = CorruptionKind::Gaussian { schedule: NoiseSchedule::Cosine };
        let mut gaussian = Corruptor::new(&corruption(gaussian)).unwrap();
        let noise = WindowNoise { seed: 1, timestep: 1000, top: 0, left: 0 };
        assert!(gaussian.apply(&mut [0.0; 4], (2, 2), 1, &noise).is_err());
        let none = Corruption { timesteps: 0, ..Corruption::default() };
        assert!(Corruptor::new(&none).is_err());
        let patch = CorruptionKind::Mask { patch: 0, rule: MaskRule::Paper };
        assert!(Corruptor::new(&corruption(patch)).is_err());
    }
}
