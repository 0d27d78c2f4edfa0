//! An ensemble of heads, fitted side by side.

use std::sync::Mutex;

use mdm::model::Head;
use mdm::{Control, Device, Error, Result};
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use super::gpu::GpuHeads;
use super::options::{FitOptions, RefineOptions};
use super::parameters::{Layout, Shape};
use super::place::{HeadDevice, Place};
use super::predictor::{PixelScores, score};
use super::random::Random;
use super::samples::{Parts, Samples};
use super::standardise::Standardisation;
use super::state::HeadState;
use super::trainer::{HeadTrainer, Trainer};

/// Samples on which a score or the features' scale is taken, at most; they are evenly spaced.
const SCORED: usize = 1 << 16;
/// The same for heads that are refined.
const REFINED_SCORED: usize = 1 << 13;
/// Smallest batch that is chosen where samples are few.
const SMALL_BATCH: usize = 64;
/// Batches that few samples are divided into.
const BATCHES: usize = 8;
/// How often a batch repeats a fresh sample, at most, when heads are refined.
const MOST_REPEATED: usize = 8;
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
    /// Where the heads were trained.
    pub device: HeadDevice,
}

/// Fits heads for `classes` classes on `device`: a GPU, or the host's processor, with as many threads of their own as the
/// device uses; their number does not change the result. Instead of a GPU that is software, or that has no memory for the
/// samples, the host is taken, and [`FittedHeads::device`] says why. The same seed gives the same heads on the same device.
///
/// # Errors
/// [`Error::Invalid`] for options out of range, for features that are not finite, for fewer than two classes with samples and for a sample of a class that
/// is not below `classes`; [`Error::Cancelled`]; [`Error::DeviceLost`] and other errors of a GPU.
pub fn fit_heads(
    samples: &Samples,
    classes: usize,
    options: &FitOptions,
    device: &Device,
    control: &Control<'_>,
) -> Result<FittedHeads> {
    fit_parts(&samples.into(), classes, options, &Place::of(device), control)
}

/// [`fit_heads`] on samples from several places.
pub(crate) fn fit_parts(
    samples: &Parts<'_>,
    classes: usize,
    options: &FitOptions,
    place: &Place<'_>,
    control: &Control<'_>,
) -> Result<FittedHeads> {
    options.validate()?;
    let all = check(samples, classes)?;
    let (kept, held): (Vec<u32>, Vec<u32>) =
        all.iter().partition(|&&index| !samples.is_held_out(index as usize));
    let probe = options.held_out
        && !held.is_empty()
        && present(samples, &kept) == present(samples, &all)
        && present(samples, &held).len() >= 2;

    // The probe comes first, so that it overlaps with the heads.
    let mut jobs = Vec::new();
    if probe {
        jobs.push(Job::new(samples, &kept, classes, options, options.ensemble as u64));
    }
    let job = Job::new(samples, &all, classes, options, 0);
    let random = |stream: usize| Random::new(options.seed, stream as u64);
    jobs.extend((0..options.ensemble).map(|stream| Job { random: random(stream), ..job.clone() }));
    run(&jobs, samples, place, control, |fitted| {
        let held_out = if probe {
            let probe = fitted.remove(0);
            Some(score(&[probe.head], samples, &spaced(&held, SCORED))?)
        } else {
            None
        };
        Ok((held_out, spaced(&all, SCORED)))
    })
}

/// Refines `heads` with a few steps on all samples, of which those numbered `fresh` are seen more often. `pass` tells
/// one refinement from the next.
///
/// # Errors
/// As [`fit_heads`], and [`Error::Invalid`] for heads of another shape.
pub(crate) fn refine_parts(
    heads: &[Head],
    samples: &Parts<'_>,
    fresh: &[u32],
    classes: usize,
    (options, refine, pass): (&FitOptions, &RefineOptions, u64),
    place: &Place<'_>,
    control: &Control<'_>,
) -> Result<FittedHeads> {
    options.validate()?;
    refine.validate()?;
    let all = check(samples, classes)?;
    let options = FitOptions {
        batch: refine.batch,
        learning_rate: refine.learning_rate,
        patience: 0,
        epochs: 0,
        min_steps: refine.steps,
        ..options.clone()
    };
    let job = Job { fresh, ..Job::new(samples, &all, classes, &options, 0) };
    let mut jobs = Vec::new();
    for (stream, head) in heads.iter().enumerate() {
        if !job.shape.is_of(head) {
            return Err(Error::invalid(
                "heads",
                "their layers have other sizes than are fitted; fit heads anew",
            ));
        }
        let random = Random::new(options.seed ^ pass.rotate_left(32), stream as u64);
        jobs.push(Job { start: Some(head), random, ..job.clone() });
    }
    run(&jobs, samples, place, control, |_| Ok((None, spaced(&all, REFINED_SCORED))))
}

/// The numbers of all samples, if heads can be fitted on them.
fn check(samples: &Parts<'_>, classes: usize) -> Result<Vec<u32>> {
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
    Ok(all)
}

/// Does the jobs. `finish` takes jobs that are no heads of the ensemble away from the front, and says on which
/// samples the ensemble is scored.
fn run(
    jobs: &[Job<'_>],
    samples: &Parts<'_>,
    place: &Place<'_>,
    control: &Control<'_>,
    finish: impl FnOnce(&mut Vec<Fitted>) -> Result<(Option<PixelScores>, Vec<u32>)> + Send,
) -> Result<FittedHeads> {
    let threads = place.threads();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("mdm-fit-{index}"))
        .start_handler(|_| mdm::threads::claim())
        .build()
        .map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?;
    let progress = Steps::new(control, jobs.iter().map(|job| job.steps as u64).sum());
    pool.install(|| {
        let (mut fitted, device) = train(jobs, samples, place, &progress)?;
        let (held_out, scored) = finish(&mut fitted)?;
        let steps = fitted.iter().map(|fitted| fitted.steps).collect();
        let losses = fitted.iter().map(|fitted| fitted.loss).collect();
        let heads: Vec<Head> = fitted.into_iter().map(|fitted| fitted.head).collect();
        let training = score(&heads, samples, &scored)?;
        Ok(FittedHeads { heads, training, held_out, steps, losses, device })
    })
}

/// Does the jobs one after another on a GPU, or side by side on the current thread pool.
fn train(
    jobs: &[Job<'_>],
    samples: &Parts<'_>,
    place: &Place<'_>,
    progress: &Steps<'_>,
) -> Result<(Vec<Fitted>, HeadDevice)> {
    #[cfg_attr(not(feature = "gpu"), expect(unused_mut, reason = "there is no device that may lack memory"))]
    let mut device = place.host();
    #[cfg(feature = "gpu")]
    if let (Some(engine), Some(first)) = (place.gpu(), jobs.first()) {
        let batches: Vec<usize> = jobs.iter().map(|job| job.batch).collect();
        match GpuHeads::new(engine, samples, first.shape, &batches) {
            Ok(mut heads) => {
                let on_gpu = |job: &Job<'_>| {
                    let (state, random) = job.start();
                    let trainer = heads.start(state, job.batch, job.class_weights.clone())?;
                    job.run(trainer, random, progress)
                };
                let fitted = jobs.iter().map(on_gpu).collect::<Result<_>>()?;
                return Ok((fitted, place.device()));
            }
            // Nothing was done so far.
            Err(Error::OutOfMemory(reason)) => device.fallback = Some(reason),
            Err(other) => return Err(other),
        }
    }
    let on_host = |job: &Job<'_>| {
        let (state, random) = job.start();
        let mut trainer = Trainer::new(samples, state, job.batch, job.class_weights.clone());
        job.run(&mut trainer, random, progress)
    };
    let fitted = jobs.par_iter().with_max_len(1).map(on_host).collect::<Result<_>>()?;
    Ok((fitted, device))
}

/// One head to be fitted.
#[derive(Clone)]
struct Job<'a> {
    shape: Shape,
    picked: &'a [u32],
    /// Those of `picked` that make up half of each batch, as far as there are enough.
    fresh: &'a [u32],
    /// The head to go on with.
    start: Option<&'a Head>,
    class_weights: Vec<f32>,
    standardisation: Standardisation,
    batch: usize,
    steps: usize,
    learning_rate: f64,
    patience: usize,
    random: Random,
}

/// A head, the steps it took and its smoothed loss at the end.
struct Fitted {
    head: Head,
    steps: usize,
    loss: f64,
}

impl<'a> Job<'a> {
    fn new(
        samples: &Parts<'_>,
        picked: &'a [u32],
        classes: usize,
        options: &FitOptions,
        stream: u64,
    ) -> Self {
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
            Standardisation::of(samples, &spaced(picked, SCORED))
        } else {
            Standardisation::none(samples.channels())
        };
        Self {
            shape: Shape::new(samples.channels(), classes),
            picked,
            fresh: &[],
            start: None,
            class_weights,
            standardisation,
            batch,
            steps: usize::try_from(epochs).unwrap_or(usize::MAX).max(options.min_steps),
            learning_rate: options.learning_rate,
            patience: options.patience,
            random: Random::new(options.seed, stream),
        }
    }

    /// The head before its first step, and the random numbers that are left for its batches.
    fn start(&self) -> (HeadState, Random) {
        let (scale, mut random) = (self.standardisation.clone(), self.random.clone());
        let state = match self.start {
            Some(head) => HeadState::of(head, self.shape, scale),
            None => HeadState::new(self.shape, scale, Layout::new(&self.shape).initial(&mut random)),
        };
        (state, random)
    }

    fn run(
        &self,
        trainer: &mut impl HeadTrainer,
        mut random: Random,
        progress: &Steps<'_>,
    ) -> Result<Fitted> {
        let mut order = Order::new(self.picked);
        let mut fresh = Order::new(self.fresh);
        let fresh_share = (self.batch / 2).min(self.fresh.len() * MOST_REPEATED);
        let (mut picked, mut rates) = (Vec::new(), Vec::new());
        let mut stop = EarlyStop::new(self.patience);
        let (mut taken, mut stopped) = (0, false);
        while taken < self.steps && !stopped {
            picked.clear();
            rates.clear();
            for step in taken..self.steps.min(taken + trainer.most_steps()) {
                fresh.take(fresh_share, &mut random, &mut picked);
                order.take(self.batch - fresh_share, &mut random, &mut picked);
                rates.push(self.learning_rate * (1.0 - step as f64 / self.steps as f64));
            }
            // What is known late ends a head late: all steps that were taken count.
            for loss in trainer.steps(&picked, &rates, progress.control)? {
                if !loss.is_finite() {
                    return Err(diverged());
                }
                taken += 1;
                progress.advance(1)?;
                stopped |= stop.after(loss);
            }
        }
        progress.advance((self.steps - taken) as u64)?;
        let head = trainer.head()?;
        if !is_finite(&head) {
            return Err(diverged());
        }
        Ok(Fitted { head, steps: taken, loss: stop.smoothed() })
    }
}

fn diverged() -> Error {
    let reason = "the loss grew beyond all numbers; they may be too large, or the learning rate too high";
    Error::invalid("features", reason)
}

/// Whether all of a head's values are numbers.
fn is_finite(head: &Head) -> bool {
    let linear = head.linear.iter().flat_map(|layer| [&layer.weight, &layer.bias]);
    let norm =
        head.norm.iter().flat_map(|norm| [&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var]);
    linear.chain(norm).all(|values| values.iter().all(|value| value.is_finite()))
}

/// Samples in random order, again and again.
struct Order {
    order: Vec<u32>,
    next: usize,
}

impl Order {
    fn new(picked: &[u32]) -> Self {
        Self { order: picked.to_vec(), next: picked.len() }
    }

    /// Adds the next `count` to `picked`.
    fn take(&mut self, mut count: usize, random: &mut Random, picked: &mut Vec<u32>) {
        while count > 0 && !self.order.is_empty() {
            let now = count.min(self.order.len());
            if self.next + now > self.order.len() {
                // What is left of a pass over the samples comes first in the next one.
                self.order.rotate_left(self.next);
                let left = self.order.len() - self.next;
                random.shuffle(&mut self.order[left..]);
                self.next = 0;
            }
            picked.extend_from_slice(&self.order[self.next..self.next + now]);
            self.next += now;
            count -= now;
        }
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
        let mut done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *done += steps;
        self.control.report(*done, self.total);
        self.control.check()
    }
}

/// The classes of the samples numbered `picked`, ascending.
fn present(samples: &Parts<'_>, picked: &[u32]) -> Vec<u8> {
    let mut seen = [false; 256];
    for &index in picked {
        seen[usize::from(samples.label(index as usize))] = true;
    }
    (0..=255).filter(|&class| seen[usize::from(class)]).collect()
}

/// At most `most` of `picked`, evenly spaced.
fn spaced(picked: &[u32], most: usize) -> Vec<u32> {
    picked.iter().step_by(picked.len().div_ceil(most).max(1)).copied().collect()
}
