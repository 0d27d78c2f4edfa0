//! An ensemble of heads, fitted side by side.

use std::sync::Mutex;

use mdm::model::Head;
use mdm::{Control, Error, Result};
use rayon::prelude::*;

use super::options::FitOptions;
use super::parameters::{Layout, Shape};
use super::predictor::{PixelScores, score};
use super::random::Random;
use super::samples::Samples;
use super::standardise::Standardisation;
use super::trainer::Trainer;

/// Samples on which a score or the features' scale is taken, at most; they are evenly spaced.
const SCORED: usize = 1 << 16;
/// Smallest batch that is chosen where samples are few.
const SMALL_BATCH: usize = 64;
/// Batches that few samples are divided into.
const BATCHES: usize = 8;
/// Part of the smoothed loss that a step renews.
const SMOOTHING: f64 = 0.02;
/// Relative change of the smoothed loss that counts as an improvement.
const IMPROVEMENT: f64 = 1e-3;

/// Heads fitted on the same samples.
#[derive(Clone, Debug)]
pub struct FittedHeads {
    /// In the order of their seeds.
    pub heads: Vec<Head>,
    /// The ensemble's mean probability on samples it was fitted on.
    pub training: PixelScores,
    /// A single further head, fitted without the held-out samples and scored on them; `None` if that was not asked for,
    /// or if held-out or remaining samples lack a class.
    pub held_out: Option<PixelScores>,
    /// Steps that each head took.
    pub steps: Vec<usize>,
    /// Smoothed loss of each head at its end.
    pub losses: Vec<f64>,
}

/// Fits heads for `classes` classes on `threads` threads of its own; their number does not change the result.
///
/// # Errors
/// [`Error::Invalid`] for options out of range, for features that are not finite, for fewer than two classes with samples and for a sample of a class that
/// is not below `classes`; [`Error::Cancelled`].
pub fn fit_heads(
    samples: &Samples,
    classes: usize,
    options: &FitOptions,
    threads: usize,
    control: &Control<'_>,
) -> Result<FittedHeads> {
    options.validate()?;
    if !(2..=255).contains(&classes) {
        return Err(Error::invalid("classes", format!("{classes}; 2 to 255 can be told apart")));
    }
    let all: Vec<u32> = (0..samples.len() as u32).collect();
    if let Some(&index) = all.iter().find(|&&index| usize::from(samples.label(index as usize)) >= classes) {
        let label = samples.label(index as usize);
        return Err(Error::invalid("labels", format!("class {label} is not below {classes}")));
    }
    if present(samples, &all).len() < 2 {
        return Err(Error::invalid("labels", "at least two classes must be labelled"));
    }
    if all.iter().any(|&index| samples.features(index as usize).iter().any(|value| !value.is_finite())) {
        return Err(Error::invalid("features", "some are not finite; are the backbone's weights intact?"));
    }
    let (kept, held): (Vec<u32>, Vec<u32>) =
        all.iter().partition(|&&index| !samples.is_held_out(index as usize));
    let probe = options.held_out
        && !held.is_empty()
        && present(samples, &kept) == present(samples, &all)
        && present(samples, &held).len() >= 2;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("mdm-fit-{index}"))
        .build()
        .map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?;

    // The probe comes first, so that it overlaps with the heads.
    let mut jobs: Vec<Job<'_>> = Vec::new();
    if probe {
        jobs.push(Job::new(samples, &kept, classes, options, options.ensemble as u64));
    }
    jobs.extend((0..options.ensemble as u64).map(|stream| Job::new(samples, &all, classes, options, stream)));
    let progress = Steps::new(control, jobs.iter().map(|job| job.steps as u64).sum());
    pool.install(|| {
        let mut fitted = jobs
            .par_iter()
            .with_max_len(1)
            .map(|job| job.run(samples, options, &progress))
            .collect::<Result<Vec<_>>>()?;
        let held_out = if probe {
            let probe = fitted.remove(0);
            Some(score(&[probe.0], samples, &spaced(&held))?)
        } else {
            None
        };
        let steps = fitted.iter().map(|(_, steps, _)| *steps).collect();
        let losses = fitted.iter().map(|(_, _, loss)| *loss).collect();
        let heads: Vec<Head> = fitted.into_iter().map(|(head, _, _)| head).collect();
        let training = score(&heads, samples, &spaced(&all))?;
        Ok(FittedHeads { heads, training, held_out, steps, losses })
    })
}

/// One head to be fitted.
struct Job<'a> {
    shape: Shape,
    picked: &'a [u32],
    class_weights: Vec<f32>,
    standardisation: Standardisation,
    batch: usize,
    steps: usize,
    random: Random,
}

impl<'a> Job<'a> {
    fn new(samples: &Samples, picked: &'a [u32], classes: usize, options: &FitOptions, stream: u64) -> Self {
        let batch = options.batch.min((picked.len() / BATCHES).max(SMALL_BATCH)).min(picked.len());
        let epochs = (options.epochs as u64 * picked.len() as u64).div_ceil(batch as u64);
        let mut class_weights = vec![1.0; classes];
        if options.balance {
            let mut counts = vec![0_usize; classes];
            for &index in picked {
                counts[usize::from(samples.label(index as usize))] += 1;
            }
            for (weight, count) in class_weights.iter_mut().zip(counts) {
                *weight = picked.len() as f32 / (classes * count.max(1)) as f32;
            }
        }
        let standardisation = if options.standardise {
            Standardisation::of(samples, &spaced(picked))
        } else {
            Standardisation::none(samples.channels())
        };
        Self {
            shape: Shape::new(samples.channels(), classes),
            picked,
            class_weights,
            standardisation,
            batch,
            steps: usize::try_from(epochs).unwrap_or(usize::MAX).max(options.min_steps),
            random: Random::new(options.seed, stream),
        }
    }

    /// The head, the steps it took and its smoothed loss at the end.
    fn run(
        &self,
        samples: &Samples,
        options: &FitOptions,
        progress: &Steps<'_>,
    ) -> Result<(Head, usize, f64)> {
        let mut random = self.random.clone();
        let parameters = Layout::new(&self.shape).initial(&mut random);
        let mut trainer = Trainer::new(
            self.shape,
            self.standardisation.clone(),
            parameters,
            self.batch,
            self.class_weights.clone(),
        );
        let mut order = self.picked.to_vec();
        let mut next = order.len();
        let mut stop = EarlyStop::new(options.patience);
        let mut taken = 0;
        while taken < self.steps {
            if next + self.batch > order.len() {
                // What is left of a pass over the samples comes first in the next one.
                order.rotate_left(next);
                let left = order.len() - next;
                random.shuffle(&mut order[left..]);
                next = 0;
            }
            let rate = options.learning_rate * (1.0 - taken as f64 / self.steps as f64);
            let loss = trainer.step(samples, &order[next..next + self.batch], rate);
            if !loss.is_finite() {
                return Err(Error::invalid(
                    "features",
                    "the loss grew beyond all numbers; they may be too large, or the learning rate too high",
                ));
            }
            next += self.batch;
            taken += 1;
            progress.advance(1)?;
            if stop.after(loss) {
                break;
            }
        }
        progress.advance((self.steps - taken) as u64)?;
        Ok((trainer.head(), taken, stop.smoothed()))
    }
}

/// Watches the smoothed loss of one head.
struct EarlyStop {
    patience: usize,
    sum: f64,
    weight: f64,
    best: f64,
    waited: usize,
}

impl EarlyStop {
    fn new(patience: usize) -> Self {
        Self { patience, sum: 0.0, weight: 0.0, best: f64::INFINITY, waited: 0 }
    }

    fn smoothed(&self) -> f64 {
        self.sum / self.weight
    }

    /// Takes a step's loss; whether to stop.
    fn after(&mut self, loss: f64) -> bool {
        self.sum += SMOOTHING * (loss - self.sum);
        self.weight += SMOOTHING * (1.0 - self.weight);
        if self.smoothed() < self.best * (1.0 - IMPROVEMENT) {
            self.best = self.smoothed();
            self.waited = 0;
        } else {
            self.waited += 1;
        }
        self.patience > 0 && self.waited >= self.patience
    }
}

/// Counts the steps of all heads.
struct Steps<'a> {
    control: &'a Control<'a>,
    done: Mutex<u64>,
    total: u64,
}

impl<'a> Steps<'a> {
    fn new(control: &'a Control<'a>, total: u64) -> Self {
        Self { control, done: Mutex::new(0), total }
    }

    fn advance(&self, steps: u64) -> Result<()> {
        self.control.check()?;
        let mut done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *done += steps;
        self.control.report(*done, self.total);
        Ok(())
    }
}

/// The classes of the samples numbered `picked`, ascending.
fn present(samples: &Samples, picked: &[u32]) -> Vec<u8> {
    let mut seen = [false; 256];
    for &index in picked {
        seen[usize::from(samples.label(index as usize))] = true;
    }
    (0..=255).filter(|&class| seen[usize::from(class)]).collect()
}

/// At most [`SCORED`] of `picked`, evenly spaced.
fn spaced(picked: &[u32]) -> Vec<u32> {
    picked.iter().step_by(picked.len().div_ceil(SCORED).max(1)).copied().collect()
}
