//! What a run is a function of, besides its images.

use mdm::intensity::IntensityRange;
use mdm::model::{Corruption, CorruptionKind, Metadata, UnetConfig};
use mdm::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::learner::Update;
use crate::loss::Loss;

/// Everything that is decided before a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The network; its `image_size` is the side of the crops that it is trained on.
    pub unet: UnetConfig,
    /// How crops are corrupted.
    pub corruption: Corruption,
    /// The one timestep that is used, instead of all alike: a plain masked, or denoising, autoencoder.
    pub fixed_timestep: Option<u32>,
    /// What is minimised: how far the answer is from the crop, or, where noise was added, from the noise.
    pub loss: Loss,
    /// Steps of the whole run.
    pub steps: u64,
    /// Samples a step.
    pub batch: usize,
    /// Samples that are computed at once; gradients of a batch's micro-batches are added. Divides the batch.
    pub microbatch: usize,
    /// How parameters are moved.
    pub optimiser: Optimiser,
    /// Decay rates of the moving averages of the parameters that are kept, at least one; the first is the one exported.
    pub ema_rates: Vec<f64>,
    /// How crops are taken.
    pub crops: Crops,
    /// Everything random follows from it.
    pub seed: u64,
    /// Whether activations are computed again for the backward pass instead of kept: slower, in a fraction of the memory.
    pub recompute: bool,
}

/// AdamW and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimiser {
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from nothing.
    pub warmup: u64,
    /// What it does after that.
    pub schedule: Schedule,
    /// Decay rate of the mean of gradients.
    pub beta1: f64,
    /// Decay rate of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub epsilon: f64,
    /// Share of each parameter that is taken away, times the learning rate.
    pub weight_decay: f64,
    /// Gradients whose norm is larger are scaled down to it.
    pub clip: Option<f64>,
}

/// The learning rate between the warm-up and the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls to zero along a line.
    Linear,
    /// Falls to zero along half a period of a cosine (Loshchilov and Hutter 2017).
    Cosine,
}

/// How crops are taken from images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crops {
    /// Half of the crops are mirrored.
    pub flip: bool,
    /// Crops are turned by 0, 90, 180 or 270 degrees.
    pub turn: bool,
    /// Scale that images are brought to, where they say theirs, in micrometres a pixel.
    pub microns_per_pixel: Option<f64>,
    /// How stored values become what the network sees. Checkpoints that do not say it mean the type's range.
    #[serde(default = "type_range")]
    pub range: IntensityRange,
    /// Crops are taken elsewhere if more than this share of their pixels is white, as a slide without tissue is.
    pub skip_background: Option<f64>,
}

fn type_range() -> IntensityRange {
    IntensityRange::Type
}

impl Default for Recipe {
    /// The paper's for histology, with all flips and quarter turns.
    fn default() -> Self {
        Self {
            unet: UnetConfig::mdm_paper(),
            corruption: Corruption::default(),
            fixed_timestep: None,
            loss: Loss::default(),
            steps: 10_000,
            batch: 128,
            microbatch: 8,
            optimiser: Optimiser::default(),
            ema_rates: vec![0.9999],
            crops: Crops::default(),
            seed: 0,
            recompute: false,
        }
    }
}

impl Default for Optimiser {
    /// The paper's.
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            warmup: 0,
            schedule: Schedule::Constant,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: None,
        }
    }
}

impl Default for Crops {
    fn default() -> Self {
        Self {
            flip: true,
            turn: true,
            microns_per_pixel: None,
            range: IntensityRange::Declared,
            skip_background: None,
        }
    }
}

impl Optimiser {
    /// The update of step `step` of `steps`, from 0 on.
    pub fn update(&self, step: u64, steps: u64) -> Update {
        let factor = if step < self.warmup {
            (step + 1) as f64 / self.warmup as f64
        } else {
            let part = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
            let part = part.min(1.0);
            match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Linear => 1.0 - part,
                Schedule::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * part).cos()),
            }
        };
        Update {
            learning_rate: self.learning_rate * factor,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            clip: self.clip,
        }
    }
}

impl Recipe {
    /// Side of a crop in pixels.
    pub fn size(&self) -> usize {
        self.unet.image_size
    }

    /// Samples of a micro-batch where nobody says: the largest number up to 8 that divides the batch.
    pub fn default_microbatch(batch: usize) -> usize {
        (1..=batch.min(8)).rev().find(|microbatch| batch.is_multiple_of(*microbatch)).unwrap_or(1)
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and its range.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what, reason: String| Err(Error::invalid(what, reason));
        self.unet.validate()?;
        self.corruption.validate()?;
        if self.unet.out_channels != self.unet.in_channels || self.unet.num_classes.is_some() {
            return wrong(
                "unet",
                "a network that is trained has as many outputs as inputs and no classes".into(),
            );
        }
        let deepest = self.unet.deepest_downsampling();
        if !self.size().is_multiple_of(deepest) || self.size() > Metadata::LARGEST_WINDOW {
            let largest = Metadata::LARGEST_WINDOW;
            return wrong("size", format!("{} is not a multiple of {deepest} up to {largest}", self.size()));
        }
        let (first, last) = self.timesteps();
        if let Some(fixed) = self.fixed_timestep
            && !(first..=last).contains(&fixed)
        {
            return wrong("fixed timestep", format!("{fixed} is not in {first}..={last}"));
        }
        if matches!(self.corruption.kind, CorruptionKind::Gaussian { .. })
            && matches!(self.loss, Loss::Ssim { .. })
        {
            return wrong("loss", "noise has no structure to be similar to; choose mse or l1 for it".into());
        }
        if self.steps == 0 || self.steps > 1 << 40 {
            return wrong("steps", format!("{} is not in 1..=2^40", self.steps));
        }
        if self.batch == 0 || self.batch > 1 << 20 {
            return wrong("batch", format!("{} is not in 1..=1048576", self.batch));
        }
        if self.microbatch == 0 || !self.batch.is_multiple_of(self.microbatch) {
            return wrong(
                "microbatch",
                format!("{} does not divide the batch of {}", self.microbatch, self.batch),
            );
        }
        let Optimiser { learning_rate, beta1, beta2, epsilon, weight_decay, clip, .. } = self.optimiser;
        if !(learning_rate > 0.0 && learning_rate <= 1.0) {
            return wrong("learning rate", format!("{learning_rate} is not in (0, 1]"));
        }
        for (what, rate) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&rate) {
                return wrong(what, format!("{rate} is not in [0, 1)"));
            }
        }
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return wrong("epsilon", format!("{epsilon} is not a small positive number"));
        }
        if !(0.0..=1e3).contains(&weight_decay) {
            return wrong("weight decay", format!("{weight_decay} is not in [0, 1000]"));
        }
        if let Some(clip) = clip
            && !(clip > 0.0 && clip.is_finite())
        {
            return wrong("clip", format!("{clip} is not a positive norm"));
        }
        if self.ema_rates.is_empty() || self.ema_rates.len() > 16 {
            return wrong(
                "moving averages",
                format!("{} of them; 1 to 16 are possible", self.ema_rates.len()),
            );
        }
        if let Some(rate) = self.ema_rates.iter().find(|rate| !(0.0..1.0).contains(*rate)) {
            return wrong("moving averages", format!("a rate of {rate} is not in [0, 1)"));
        }
        self.crops.range.validate()?;
        let Crops { microns_per_pixel, skip_background, .. } = self.crops;
        if let Some(microns) = microns_per_pixel
            && !(microns > 0.0 && microns.is_finite())
        {
            return wrong("microns per pixel", format!("{microns} is not a size"));
        }
        if let Some(share) = skip_background
            && !(0.0..=1.0).contains(&share)
        {
            return wrong("background", format!("a share of {share} is not in [0, 1]"));
        }
        Ok(())
    }

    /// The first and the last timestep that are trained.
    pub(crate) fn timesteps(&self) -> (u32, u32) {
        let last = self.corruption.last_timestep();
        // By the paper's rule, timesteps start at 1.
        (u32::from(last == self.corruption.timesteps), last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_divide_the_batch() {
        assert_eq!([1, 7, 8, 12, 32, 34, 11].map(Recipe::default_microbatch), [1, 7, 8, 6, 8, 2, 1]);
    }

    #[test]
    fn the_learning_rate_rises_and_then_follows_its_schedule() {
        let rates = |schedule| {
            let optimiser = Optimiser { learning_rate: 1.0, warmup: 4, schedule, ..Optimiser::default() };
            (0..12).map(|step| optimiser.update(step, 12).learning_rate).collect::<Vec<_>>()
        };
        let constant = rates(Schedule::Constant);
        assert_eq!(constant[..4], [0.25, 0.5, 0.75, 1.0]);
        assert!(constant[4..].iter().all(|rate| *rate == 1.0));
        assert_eq!(rates(Schedule::Linear)[4..], [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]);
        let cosine = rates(Schedule::Cosine);
        assert_eq!(cosine[4], 1.0);
        assert!((cosine[8] - 0.5).abs() < 1e-12 && cosine[11] < 0.05 && cosine[11] > 0.0);
    }

    #[test]
    fn impossible_recipes_are_named() {
        let refused = |change: &dyn Fn(&mut Recipe)| {
            let mut recipe = Recipe::default();
            recipe.validate().unwrap();
            change(&mut recipe);
            recipe.validate().unwrap_err().to_string()
        };
        assert!(refused(&|recipe| recipe.microbatch = 3).contains("microbatch"));
        assert!(refused(&|recipe| recipe.unet.image_size = 100).contains("multiple of 32"));
        assert!(refused(&|recipe| recipe.fixed_timestep = Some(0)).contains("1..=1000"));
        assert!(refused(&|recipe| recipe.optimiser.learning_rate = f64::NAN).contains("learning rate"));
        assert!(refused(&|recipe| recipe.ema_rates.clear()).contains("moving averages"));
        let schedule = mdm::model::NoiseSchedule::Linear;
        assert!(
            refused(&|recipe| recipe.corruption.kind = CorruptionKind::Gaussian { schedule })
                .contains("loss")
        );
    }
}
