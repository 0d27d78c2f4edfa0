//! A run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdm::model::{MapWeights, Model, UnetConfig};
use mdm::{Control, Device, Error};

use super::checkpoint::{Checkpoint, Position, metadata, save};
use super::error::{PretrainError, Result};
use super::images::Images;
use super::initial::initial_parameters;
use super::loader::Loader;
use super::recipe::Recipe;
use super::sample::Sampler;
use crate::engine::learner;
use crate::learner::{Learner, LearnerOptions, LearnerState, Microbatch, StatePart};
use crate::ranks::{Alone, Ranks, Share};

/// Steps in a row whose gradient may be too large for the number format. Each one halves the scale of the loss.
const MOST_SKIPPED: u32 = 30;

/// Samples shown by [`Trainer::examples`] have numbers that no step comes to.
const EXAMPLES: u64 = 1 << 62;

/// Steps over which the reported mean loss is taken, about.
const SMOOTHING: f64 = 100.0;

/// Where a run begins.
pub enum Start<'a> {
    /// With random parameters.
    New(Recipe),
    /// With the parameters of a backbone.
    From(Recipe, &'a Model),
    /// Where a run was left.
    Resume(&'a Checkpoint),
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps that are done with this one.
    pub step: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// False where the gradient was too large for the device's number format and nothing was changed.
    pub applied: bool,
    /// Learning rate.
    pub learning_rate: f64,
    /// How long it took.
    pub time: Duration,
    /// How long of that samples were waited for.
    pub waited: Duration,
}

/// A sample to look at, each `[size, size, channels]` in about [-1, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Timestep of its corruption.
    pub timestep: u32,
    /// As it is.
    pub original: Vec<f32>,
    /// What the network sees.
    pub corrupted: Vec<f32>,
    /// What the network makes of it.
    pub restored: Vec<f32>,
}

/// A backbone that is trained. Any thread may use it, one at a time.
pub struct Trainer {
    learner: Box<dyn Learner>,
    sampler: Arc<Sampler>,
    loader: Loader,
    share: Share,
    images: Arc<dyn Images>,
    position: Position,
    skipped: u32,
    input: Vec<f32>,
    target: Vec<f32>,
    timesteps: Vec<f32>,
}

impl Trainer {
    /// Prepares a run on `device` and starts to load images.
    ///
    /// A run that is resumed with the images it had goes on exactly where it was left; with others
    /// ([`Checkpoint::image_identity`] tells) it goes on, but differently.
    ///
    /// # Errors
    /// [`Error::Invalid`] for recipes that make no sense and backbones of another configuration; [`Error::Tensor`] for damaged
    /// parameters; [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, start: Start<'_>, images: Arc<dyn Images>) -> Result<Self> {
        Self::among(&Alone, device, start, images)
    }

    /// As [`new`](Self::new), for a run that `ranks` share: each of them is given the same start and the same images.
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] where the batch cannot be divided among the ranks.
    pub fn among(
        ranks: &dyn Ranks,
        device: &Device,
        start: Start<'_>,
        images: Arc<dyn Images>,
    ) -> Result<Self> {
        let (position, state) = match start {
            Start::New(recipe) => {
                recipe.validate()?;
                let parameters = initial_parameters(&recipe.unet, recipe.seed);
                let state = fresh(&recipe, parameters);
                (Position::new(recipe, images.count(), images.identity()), state)
            }
            Start::From(recipe, model) => {
                recipe.validate()?;
                let state = fresh(&recipe, parameters_of(model, &recipe)?);
                (Position::new(recipe, images.count(), images.identity()), state)
            }
            Start::Resume(checkpoint) => {
                let position = Position {
                    images: images.count(),
                    image_identity: images.identity(),
                    ..checkpoint.position.clone()
                };
                (position, checkpoint.state())
            }
        };
        let recipe = &position.recipe;
        let share = Share::of(ranks, recipe.batch, recipe.microbatch)?;
        let options = LearnerOptions {
            unet: recipe.unet.clone(),
            microbatch: recipe.microbatch,
            size: recipe.size(),
            loss: recipe.loss,
            recompute: recipe.recompute,
            ema_rates: recipe.ema_rates.clone(),
            blocks: Vec::new(),
        };
        let learner = learner(device, &options, &state)?;
        drop(state);
        let sampler = Arc::new(Sampler::new(recipe.clone(), images.clone())?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let first = share.begin(position.step);
        let ahead = (2 * recipe.microbatch).max(8);
        let loader = Loader::new(sampler.clone(), share, (cores / 2).clamp(1, 8), ahead, first)?;
        let len = recipe.microbatch * sampler.len();
        Ok(Self {
            learner,
            loader,
            share,
            images,
            skipped: 0,
            input: vec![0.0; len],
            target: vec![0.0; len],
            timesteps: vec![0.0; recipe.microbatch],
            sampler,
            position,
        })
    }

    /// What the run is a function of.
    pub fn recipe(&self) -> &Recipe {
        &self.position.recipe
    }

    /// Steps that are done.
    pub fn steps_done(&self) -> u64 {
        self.position.step
    }

    /// Whether all steps are done.
    pub fn finished(&self) -> bool {
        self.position.step >= self.position.recipe.steps
    }

    /// Seconds spent in steps, in the runs before this one too.
    pub fn seconds(&self) -> f64 {
        self.position.seconds
    }

    /// Mean loss of about the last hundred steps; none before the first.
    pub fn mean_loss(&self) -> Option<f64> {
        self.position.loss
    }

    /// Keeps `notes` in checkpoints from now on.
    pub fn set_notes(&mut self, notes: serde_json::Value) {
        self.position.notes = notes;
    }

    /// Runs the next step, whether or not all of them are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::DeviceLost`], [`Error::OutOfMemory`]; [`Error::Image`] where no image can be used;
    /// [`PretrainError::Diverged`]. The step is not done then and can be repeated, except where it diverged.
    pub fn step(&mut self, control: &Control<'_>) -> Result<StepReport> {
        self.step_among(&Alone, control)
    }

    /// As [`step`](Self::step), together with the ranks that the trainer was made [among](Self::among). All of them do the step
    /// or none does: cancelling one, between two steps, cancels all, and what fails in one is an error in all.
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] for other ranks; [`Error::DeviceLost`] where another rank failed.
    pub fn step_among(&mut self, ranks: &dyn Ranks, control: &Control<'_>) -> Result<StepReport> {
        let start = Instant::now();
        let Recipe { batch, microbatch, .. } = self.position.recipe;
        if Share::of(ranks, batch, microbatch)? != self.share {
            return Err(Error::invalid("ranks", "are not those that the trainer was made for").into());
        }
        let mut waited = Duration::ZERO;
        let loss = match self.gather(ranks, control, &mut waited) {
            Ok(loss) => loss,
            Err(error) => {
                self.learner.drop_gradients();
                self.loader.seek(self.share.begin(self.position.step));
                return Err(error.into());
            }
        };
        let diverged = |reason: String| PretrainError::Diverged { step: self.position.step + 1, reason };
        if !loss.is_finite() {
            return Err(diverged(format!("the loss is {loss}")));
        }
        let recipe = &self.position.recipe;
        let update = recipe.optimiser.update(self.position.step, recipe.steps);
        let report = self.learner.update(&update)?;
        self.skipped = if report.applied { 0 } else { self.skipped + 1 };
        if self.skipped > MOST_SKIPPED {
            return Err(diverged(format!("the gradient was not finite in {} steps in a row", self.skipped)));
        }
        let position = &mut self.position;
        position.step += 1;
        let time = start.elapsed();
        position.seconds += time.as_secs_f64();
        let weight = 1.0 / (position.step as f64).min(SMOOTHING);
        position.loss = Some(position.loss.map_or(loss, |mean| mean + weight * (loss - mean)));
        Ok(StepReport {
            step: position.step,
            loss,
            gradient_norm: report.gradient_norm,
            applied: report.applied,
            learning_rate: update.learning_rate,
            time,
            waited,
        })
    }

    /// Gathers the gradients of a step from all ranks; returns the mean loss.
    fn gather(
        &mut self,
        ranks: &dyn Ranks,
        control: &Control<'_>,
        waited: &mut Duration,
    ) -> mdm::Result<f64> {
        if ranks.count() == 1 {
            return self.accumulate(control, waited);
        }
        let mut cancelled = [f64::from(u8::from(control.check().is_err()))];
        ranks.sum_exactly(&mut cancelled)?;
        if cancelled != [0.0] {
            return Err(Error::Cancelled);
        }
        let own = self.accumulate(&Control::none(), waited);
        let mut totals = [*own.as_ref().unwrap_or(&0.0), f64::from(u8::from(own.is_err()))];
        ranks.sum_exactly(&mut totals)?;
        own?;
        let [loss, failed] = totals;
        if failed != 0.0 {
            return Err(Error::DeviceLost("another of the processes that train together failed".into()));
        }
        self.learner.gradients(&mut |gradients| ranks.sum(gradients))?;
        Ok(loss)
    }

    /// Gathers the gradients of this rank's samples of a step; returns its share of the mean loss.
    fn accumulate(&mut self, control: &Control<'_>, waited: &mut Duration) -> mdm::Result<f64> {
        let Recipe { batch, microbatch, .. } = self.position.recipe;
        let microbatches = batch / microbatch;
        let len = self.sampler.len();
        let mut loss = 0.0;
        for _ in 0..self.share.own as usize / microbatch {
            for i in 0..microbatch {
                let (sample, time) = self.loader.next(control)?;
                *waited += time;
                self.input[i * len..][..len].copy_from_slice(&sample.input);
                self.target[i * len..][..len].copy_from_slice(&sample.target);
                self.timesteps[i] = sample.timestep as f32;
            }
            let batch = Microbatch { input: &self.input, target: &self.target, timesteps: &self.timesteps };
            loss += self.learner.accumulate(&batch, 1.0 / microbatches as f32, &control.quiet())?;
        }
        Ok(loss / microbatches as f64)
    }

    /// Runs up to `steps` steps, not beyond the last of the run, and reports progress in steps. Returns how many were run.
    ///
    /// # Errors
    /// As [`step`](Self::step). What was done before stays done.
    pub fn run(&mut self, steps: u64, control: &Control<'_>) -> Result<u64> {
        let total = steps.min(self.position.recipe.steps.saturating_sub(self.position.step));
        for done in 0..total {
            self.step(control)?;
            control.report(done + 1, total);
        }
        Ok(total)
    }

    /// Images that turned out to be unusable since the last call: their names, and why.
    pub fn left_out(&self) -> Vec<(String, String)> {
        let left_out = self.loader.left_out();
        left_out.into_iter().map(|image| (self.images.name(image.index), image.reason)).collect()
    }

    /// `count` samples, the same ones whenever it is called, at timesteps that are spread over all, restored by the parameters
    /// as they are now. Not to be called within a step; nothing changes by it.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn examples(&mut self, count: usize, control: &Control<'_>) -> Result<Vec<Example>> {
        let (first, last) = self.position.recipe.timesteps();
        let microbatch = self.position.recipe.microbatch;
        let len = self.sampler.len();
        let mut examples = Vec::with_capacity(count);
        for start in (0..count).step_by(microbatch) {
            let mut samples = Vec::new();
            for i in 0..microbatch {
                // Those beyond the count fill the micro-batch.
                let at = (start + i).min(count - 1);
                let spread = first + (f64::from(last - first) * (at as f64 + 0.5) / count as f64) as u32;
                let timestep = self.position.recipe.fixed_timestep.unwrap_or(spread);
                let sample = self.sampler.sample_at(EXAMPLES + at as u64, timestep)?;
                self.input[i * len..][..len].copy_from_slice(&sample.input);
                self.target[i * len..][..len].copy_from_slice(&sample.target);
                self.timesteps[i] = timestep as f32;
                samples.push(sample);
            }
            let batch = Microbatch { input: &self.input, target: &self.target, timesteps: &self.timesteps };
            let ran = self.learner.accumulate(&batch, 0.0, &control.quiet());
            let answer = ran.and_then(|_| self.learner.last_answer());
            self.learner.drop_gradients();
            let answer = answer?;
            for (sample, answer) in samples.iter().zip(answer.chunks_exact(len)).take(count - start) {
                examples.push(Example {
                    timestep: sample.timestep,
                    original: self.sampler.original(sample),
                    corrupted: sample.input.clone(),
                    restored: self.sampler.restored(sample, answer),
                });
            }
        }
        Ok(examples)
    }

    /// Writes a checkpoint under a temporary name beside `path` and renames it, so that `path` holds the whole of it or what it
    /// held before.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written to or is full; what the device says.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        (self.position.applied, self.position.loss_scale) = self.learner.position();
        Ok(save(path, &self.position, &mut *self.learner)?)
    }

    /// The backbone as it is now: a moving average (number `average` of [`Recipe::ema_rates`]), or the parameters themselves.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such average; what the device says.
    pub fn backbone(&mut self, average: Option<usize>, description: &str) -> Result<Model> {
        let rates = &self.recipe().ema_rates;
        let part = match average {
            None => StatePart::Parameters,
            Some(index) if index < rates.len() => StatePart::Ema(index),
            Some(index) => {
                let reason = format!("there is no number {index}; the run keeps {rates:?}");
                return Err(Error::invalid("moving average", reason).into());
            }
        };
        let weights = self.learner.state_part(part)?;
        Ok(Model::from_parts(metadata(self.recipe(), description), Arc::new(weights), Vec::new())?)
    }
}

/// The state of a learner before its first step.
fn fresh(recipe: &Recipe, parameters: MapWeights) -> LearnerState {
    let state = LearnerState::fresh(Arc::new(parameters), recipe.ema_rates.len());
    LearnerState { loss_scale: FIRST_LOSS_SCALE, ..state }
}

/// Gradients of a mean over an image are small: where they are f16 they need a scale. It falls by itself where it is too large.
const FIRST_LOSS_SCALE: f32 = 65_536.0;

fn parameters_of(model: &Model, recipe: &Recipe) -> mdm::Result<MapWeights> {
    let (has, wanted) = (&model.metadata().unet, &recipe.unet);
    // Only the size of crops may be another.
    let resized = UnetConfig { image_size: wanted.image_size, ..has.clone() };
    if resized != *wanted {
        return Err(Error::invalid(
            "backbone",
            "the one to start from is another network than the one to train",
        ));
    }
    let source = model.backbone()?;
    let mut map = MapWeights::default();
    for (name, shape) in wanted.parameters() {
        let data = source.tensor(&name)?.data.into_owned();
        map.insert(&name, &shape, data);
    }
    Ok(map)
}
