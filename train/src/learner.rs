//! What pre-training asks of an engine.

use std::sync::Arc;

use mdm::control::Control;
use mdm::model::{MapWeights, UnetConfig, WeightSource};

use crate::differentiate::Program;
use crate::loss::Loss;

/// What the network of a [`Learner`] looks like and how much of it is in memory at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnerOptions {
    /// The network; it has as many output channels as input channels.
    pub unet: UnetConfig,
    /// Samples of a micro-batch.
    pub microbatch: usize,
    /// Side of the square images, in pixels; a multiple of [`UnetConfig::deepest_downsampling`].
    pub size: usize,
    /// What is minimised.
    pub loss: Loss,
    /// Whether activations are computed again for the backward pass instead of kept: about a third slower, in a fraction of
    /// the memory.
    pub recompute: bool,
    /// Decay rates of the exponential moving averages of the parameters that are kept; the first is the one exported.
    pub ema_rates: Vec<f64>,
    /// Decoder blocks whose activations are the answer, ascending: a loss that the caller computes from these is minimised then,
    /// and what comes after the last one is not trained. None of them: images are restored, and `loss` is minimised.
    pub blocks: Vec<usize>,
}

impl LearnerOptions {
    /// The step that an engine runs.
    pub(crate) fn program(&self) -> mdm::Result<Program> {
        if self.blocks.is_empty() {
            return Program::new(&self.unet, self.microbatch, self.size, self.loss, self.recompute);
        }
        Program::of_blocks(&self.unet, self.microbatch, self.size, &self.blocks, self.recompute)
    }
}

/// One micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Microbatch<'a> {
    /// What the network sees, `[microbatch, size, size, channels]`, values in about [-1, 1].
    pub input: &'a [f32],
    /// What it is to answer: the image itself, or the noise that was added to it. Shaped as `input`.
    pub target: &'a [f32],
    /// One timestep a sample.
    pub timesteps: &'a [f32],
}

/// How one step of AdamW (Loshchilov and Hutter 2019) moves the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
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

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Euclidean norm of the gradient of all parameters, before clipping.
    pub gradient_norm: f64,
    /// False where the gradient was not finite: nothing was changed then. Where gradients are scaled for f16, the next step
    /// uses a smaller scale.
    pub applied: bool,
}

/// A value for each number of the network, each tensor under its checkpoint name: in memory, or in a file that is read when
/// it is asked for.
pub type Weights = Arc<dyn WeightSource + Send + Sync>;

/// Parameters and what the optimiser knows of them.
#[derive(Clone)]
pub struct LearnerState {
    /// Steps that were applied.
    pub step: u64,
    /// The parameters.
    pub parameters: Weights,
    /// Mean of gradients, where there were any.
    pub first_moment: Option<Weights>,
    /// Mean of squared gradients, where there were any.
    pub second_moment: Option<Weights>,
    /// Exponential moving averages, in the order of [`LearnerOptions::ema_rates`].
    pub ema: Vec<Weights>,
    /// The scale of the loss where gradients are f16; 1 where they are not.
    pub loss_scale: f32,
}

impl LearnerState {
    /// Before the first step, with so many moving averages.
    pub fn fresh(parameters: Weights, averages: usize) -> Self {
        Self {
            step: 0,
            first_moment: None,
            second_moment: None,
            ema: vec![parameters.clone(); averages],
            parameters,
            loss_scale: 1.0,
        }
    }
}

/// One of the things that a [`LearnerState`] has for each parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatePart {
    /// The parameters.
    Parameters,
    /// Mean of gradients.
    FirstMoment,
    /// Mean of squared gradients.
    SecondMoment,
    /// The moving average of this number.
    Ema(usize),
}

/// A network that learns, with its optimiser, on some device.
pub trait Learner: Send {
    /// What it was made for.
    fn options(&self) -> &LearnerOptions;

    /// Runs the network forward and back. `share` of the gradient of the micro-batch's mean loss is added to the gradients
    /// gathered since the last update.
    ///
    /// Returns the mean loss, which may be anything but finite.
    ///
    /// # Errors
    /// [`Error::Invalid`](mdm::Error::Invalid) for lengths that are not the options'; `Cancelled` between two operations;
    /// `OutOfMemory`, `DeviceLost`. After an error the gathered gradients are unspecified until they are
    /// [dropped](Self::drop_gradients).
    fn accumulate(&mut self, batch: &Microbatch<'_>, share: f32, control: &Control<'_>) -> mdm::Result<f64>;

    /// Runs the network forward, for learners of [`blocks`](LearnerOptions::blocks): their activations, each
    /// `[microbatch, height, width, channels]`. `input` and `timesteps` are as in [`Microbatch`].
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate).
    fn activations(
        &mut self,
        input: &[f32],
        timesteps: &[f32],
        control: &Control<'_>,
    ) -> mdm::Result<Vec<Vec<f32>>>;

    /// Runs the network back from the gradients of a loss with respect to the last [`activations`](Self::activations), and adds
    /// the parameters' gradients to those gathered since the last update.
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate).
    fn propagate(&mut self, gradients: &[Vec<f32>], control: &Control<'_>) -> mdm::Result<()>;

    /// What the network answered to the last micro-batch.
    fn last_answer(&mut self) -> mdm::Result<Vec<f32>>;

    /// The parameters' names, in the order in which [`gradients`](Self::gradients) lie.
    fn parameters(&self) -> &[String];

    /// Lets `change` read and change all gathered gradients, for example to add those of other machines.
    fn gradients(&mut self, change: &mut dyn FnMut(&mut [f32]) -> mdm::Result<()>) -> mdm::Result<()>;

    /// Forgets the gathered gradients.
    fn drop_gradients(&mut self);

    /// Moves parameters by the gathered gradients, then averages, then forgets the gradients.
    fn update(&mut self, update: &Update) -> mdm::Result<UpdateReport>;

    /// Steps that were applied, and the scale of the loss.
    fn position(&self) -> (u64, f32);

    /// A copy of everything that has to be kept to go on later.
    fn state(&mut self) -> mdm::Result<LearnerState> {
        let (step, loss_scale) = self.position();
        let averages = self.options().ema_rates.len();
        let mut part = |part| Ok::<Weights, mdm::Error>(Arc::new(self.state_part(part)?));
        Ok(LearnerState {
            step,
            parameters: part(StatePart::Parameters)?,
            first_moment: Some(part(StatePart::FirstMoment)?),
            second_moment: Some(part(StatePart::SecondMoment)?),
            ema: (0..averages).map(|index| part(StatePart::Ema(index))).collect::<mdm::Result<_>>()?,
            loss_scale,
        })
    }

    /// A copy of one part of the state, for those who keep one after another. An average that is not kept is empty.
    fn state_part(&mut self, part: StatePart) -> mdm::Result<MapWeights>;

    /// Goes on from `state`.
    ///
    /// # Errors
    /// [`Error::Tensor`](mdm::Error::Tensor) where a parameter is missing or has another shape; nothing is changed then.
    fn restore(&mut self, state: &LearnerState) -> mdm::Result<()>;
}
