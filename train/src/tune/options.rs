//! How a network is tuned.

use std::time::Duration;

use mdm::intensity::IntensityRange;
use mdm::model::{FeatureConfig, Model};
use mdm::{Error, Result};

use super::augment::Augmentation;

/// How long a network is tuned. Learning rates rise over the first steps and fall to zero along a cosine over the whole of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// So many steps, at least 1.
    Steps(u64),
    /// As many steps as fit into that time on the device; how many depends on the machine, and so does the result.
    Time(Duration),
}

/// What is minimised over the labelled pixels of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelLoss {
    /// Mean cross entropy.
    CrossEntropy,
    /// Mean cross entropy, and 1 - soft Dice, the mean over a crop's classes (Milletari et al. 2016).
    CrossEntropyAndDice,
    /// Mean cross entropy in which pixels within two of another class count three times.
    BoundaryWeighted,
}

/// Settings of [`tune`](super::tune).
#[derive(Clone, Debug, PartialEq)]
pub struct TuneOptions {
    /// Size of the images' pixels in micrometres; `None` believes the images.
    pub microns_per_pixel: Option<f64>,
    /// Which stored values are black and white; `None` takes the model's range.
    pub range: Option<IntensityRange>,
    /// Which activations are the features, those of the first timestep; `None` takes the model's.
    pub features: Option<FeatureConfig>,
    /// How long.
    pub length: Length,
    /// Crops a step, at least 1.
    pub batch: usize,
    /// Side of a crop in pixels at the model's scale, a multiple of the network's deepest downsampling. The resulting model's
    /// windows are twice as large.
    pub size: usize,
    /// AdamW's largest learning rate for the backbone, in (0, 1].
    pub learning_rate: f64,
    /// The same for the head.
    pub head_learning_rate: f64,
    /// Weight decay of both, in [0, 1].
    pub weight_decay: f64,
    /// Gradients whose norm is larger are scaled down to it.
    pub clip: Option<f64>,
    /// What is minimised.
    pub loss: PixelLoss,
    /// Weighs each class by the inverse of its frequency among the labels.
    pub balance: bool,
    /// How crops are varied.
    pub augmentation: Augmentation,
    /// Everything random follows from it.
    pub seed: u64,
    /// Whether another network is tuned first without every fourth image, and scored on these. Takes as long again.
    pub held_out: bool,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            microns_per_pixel: None,
            range: None,
            features: None,
            length: Length::Steps(1000),
            batch: 8,
            size: 128,
            learning_rate: 2e-4,
            head_learning_rate: 1e-3,
            weight_decay: 1e-2,
            clip: Some(1.0),
            loss: PixelLoss::CrossEntropyAndDice,
            balance: false,
            augmentation: Augmentation::default(),
            seed: 0,
            held_out: false,
        }
    }
}

impl TuneOptions {
    /// The defaults, with crops as large as the windows of `model`.
    pub fn for_model(model: &Model) -> Self {
        let metadata = model.metadata();
        let size = metadata.window.next_multiple_of(metadata.unet.deepest_downsampling());
        Self { size, ..Self::default() }
    }

    /// With this learning rate of the backbone, and one of the head that is five times as large, as by default.
    #[must_use]
    pub fn with_learning_rate(self, rate: f64) -> Self {
        Self { learning_rate: rate, head_learning_rate: 5.0 * rate, ..self }
    }

    /// Checks every number; `multiple` is the network's deepest downsampling.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and its range.
    pub fn validate(&self, multiple: usize) -> Result<()> {
        let wrong = |what, reason: String| Err(Error::invalid(what, reason));
        match self.length {
            Length::Steps(0) => return wrong("steps", "0; at least one is needed".into()),
            Length::Time(time) if time.is_zero() => {
                return wrong("time", "0; at least a second is needed".into());
            }
            _ => {}
        }
        if self.batch == 0 || self.batch > 1 << 16 {
            return wrong("batch", format!("{} is not in 1..=65536", self.batch));
        }
        if self.size == 0 || !self.size.is_multiple_of(multiple) || self.size > 8192 {
            return wrong("size", format!("{} is not a multiple of {multiple} up to 8192", self.size));
        }
        for (what, rate) in
            [("learning rate", self.learning_rate), ("head's learning rate", self.head_learning_rate)]
        {
            if !(rate > 0.0 && rate <= 1.0) {
                return wrong(what, format!("{rate} is not in (0, 1]"));
            }
        }
        if !(0.0..=1.0).contains(&self.weight_decay) {
            return wrong("weight decay", format!("{} is not in 0..=1", self.weight_decay));
        }
        if let Some(clip) = self.clip
            && !(clip > 0.0 && clip.is_finite())
        {
            return wrong("clip", format!("{clip} is not a positive number"));
        }
        self.augmentation.validate()
    }
}
