//! How heads are fitted.

use mdm::{Error, Result};

/// Settings of a fit.
///
/// The defaults keep the method's head, Adam and learning rate. Batches are smaller than the usual 4096 and epochs fewer:
/// on held-out images it is the number of steps that counts, and these are had at half the work.
#[derive(Clone, Debug, PartialEq)]
pub struct FitOptions {
    /// Heads, each with its own initial weights and order of samples; at least 1.
    pub ensemble: usize,
    /// Everything random follows from it: the same seed on the same device gives the same heads.
    pub seed: u64,
    /// Weighs each class by the inverse of its frequency.
    pub balance: bool,
    /// Times that each sample is seen, at least 1, before [`min_steps`](Self::min_steps).
    pub epochs: usize,
    /// Steps that are taken even where few samples would be seen more often than `epochs` times.
    pub min_steps: usize,
    /// Steps without improvement of the smoothed loss after which a head is finished early; 0 never stops early.
    /// A GPU hands losses over every 16 steps and may take up to 15 more.
    pub patience: usize,
    /// Samples a step, at least 2; fewer are taken where there are few.
    pub batch: usize,
    /// Adam's learning rate at the start, in (0, 1]. It falls linearly to 0, so that a head does not depend on which
    /// samples it happened to see last.
    pub learning_rate: f64,
    /// Whether heads are fitted on features of mean 0 and standard deviation 1 by channel. The fitted head takes features
    /// as they come either way.
    pub standardise: bool,
    /// Part of each window's labelled pixels that are sampled, in (0, 1]. Neighbours are nearly the same sample.
    pub fraction: f64,
    /// Windows with few labelled pixels, as scribbles have, are sampled more densely: up to this many pixels a window.
    pub few: usize,
    /// Bound on samples in all, and so on memory; the fraction is lowered to stay below it.
    pub max_samples: usize,
    /// Whether another head is fitted without part of the labels and scored on that part.
    pub held_out: bool,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            ensemble: 10,
            seed: 0,
            balance: false,
            epochs: 4,
            min_steps: 400,
            patience: 200,
            batch: 1024,
            learning_rate: 1e-3,
            standardise: true,
            fraction: 0.25,
            few: 1024,
            max_samples: 500_000,
            held_out: true,
        }
    }
}

impl FitOptions {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and its range.
    pub fn validate(&self) -> Result<()> {
        let range = |what, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(what, format!("{value} is not in {least}..={most}")))
            }
        };
        range("ensemble", self.ensemble, 1, 1000)?;
        range("epochs", self.epochs, 1, 1_000_000)?;
        range("min_steps", self.min_steps, 0, 1_000_000_000)?;
        range("batch", self.batch, 2, 1 << 20)?;
        range("max_samples", self.max_samples, 2, u32::MAX as usize)?;
        if !(self.fraction > 0.0 && self.fraction <= 1.0) {
            return Err(Error::invalid("fraction", format!("{} is not in (0, 1]", self.fraction)));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(Error::invalid("learning_rate", format!("{} is not in (0, 1]", self.learning_rate)));
        }
        Ok(())
    }
}

/// How heads are refined: few steps from where they are, so that whoever draws labels need not wait.
#[derive(Clone, Debug, PartialEq)]
pub struct RefineOptions {
    /// Steps of each head, at least 1.
    pub steps: usize,
    /// Samples a step, at least 2; half of them are new ones, as far as there are enough.
    pub batch: usize,
    /// Adam's learning rate at the start, in (0, 1]. It falls linearly to 0.
    pub learning_rate: f64,
}

impl Default for RefineOptions {
    fn default() -> Self {
        Self { steps: 60, batch: 512, learning_rate: 1e-3 }
    }
}

impl RefineOptions {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and its range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=1_000_000).contains(&self.steps) {
            return Err(Error::invalid("steps", format!("{} is not in 1..=1000000", self.steps)));
        }
        if !(2..=1 << 20).contains(&self.batch) {
            return Err(Error::invalid("batch", format!("{} is not in 2..={}", self.batch, 1 << 20)));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(Error::invalid("learning_rate", format!("{} is not in (0, 1]", self.learning_rate)));
        }
        Ok(())
    }
}
