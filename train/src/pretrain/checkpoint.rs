//! What a run leaves behind to go on from, and to make backbones of.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mdm::model::safetensors_file::{Entry, SafetensorsFile, write};
use mdm::model::{MapWeights, Metadata, Model, Precision, Tensor, WeightSource};
use mdm::{Error, Result};
use serde::{Deserialize, Serialize};

use super::recipe::Recipe;
use crate::learner::{Learner, LearnerState, StatePart, Weights};

/// Key of the JSON in the file's metadata.
const KEY: &str = "mdm_training";

/// Version of that JSON.
const VERSION: u32 = 1;

const PARAMETERS: &str = "parameters.";
const FIRST_MOMENT: &str = "first_moment.";
const SECOND_MOMENT: &str = "second_moment.";

fn ema(index: usize) -> String {
    format!("ema.{index}.")
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) version: u32,
    pub(crate) recipe: Recipe,
    /// Steps that are done; those that were skipped because a gradient overflowed are counted.
    pub(crate) step: u64,
    /// Steps that moved the parameters.
    pub(crate) applied: u64,
    pub(crate) loss_scale: f32,
    /// Seconds spent in steps.
    pub(crate) seconds: f64,
    /// Mean loss of the last steps.
    pub(crate) loss: Option<f64>,
    pub(crate) images: usize,
    pub(crate) image_identity: String,
    /// Whatever the program that trains wants to keep.
    pub(crate) notes: serde_json::Value,
}

impl Position {
    pub(crate) fn new(recipe: Recipe, images: usize, image_identity: String) -> Self {
        Self {
            version: VERSION,
            recipe,
            step: 0,
            applied: 0,
            loss_scale: 0.0,
            seconds: 0.0,
            loss: None,
            images,
            image_identity,
            notes: serde_json::Value::Null,
        }
    }
}

/// A checkpoint file. It must not be changed while this lives, but may be replaced by renaming another over it.
pub struct Checkpoint {
    pub(crate) position: Position,
    file: SafetensorsFile,
}

/// A part of a learner's state under longer names. It is fetched when the first of its tensors is asked for, and dropped with
/// the last, so that one part is in memory at a time.
struct Fetched<'a, 'l> {
    learner: &'a Mutex<&'l mut dyn Learner>,
    part: StatePart,
    prefix: String,
    values: Mutex<MapWeights>,
}

impl WeightSource for Fetched<'_, '_> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let name = name.strip_prefix(&*self.prefix).unwrap_or(name);
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.0.is_empty() {
            *values = self.learner.lock().unwrap_or_else(PoisonError::into_inner).state_part(self.part)?;
        }
        values.0.remove(name).ok_or_else(|| Error::tensor(name, "is missing"))
    }
}

/// Writes a checkpoint under a temporary name beside `path` and renames it.
pub(crate) fn save(path: &Path, position: &Position, learner: &mut dyn Learner) -> Result<()> {
    let averages = position.recipe.ema_rates.len();
    let learner = Mutex::new(learner);
    let part = |part, prefix: String| Fetched { learner: &learner, part, prefix, values: Mutex::default() };
    let mut parts = vec![
        part(StatePart::Parameters, PARAMETERS.into()),
        part(StatePart::FirstMoment, FIRST_MOMENT.into()),
        part(StatePart::SecondMoment, SECOND_MOMENT.into()),
    ];
    parts.extend((0..averages).map(|index| part(StatePart::Ema(index), ema(index))));
    let mut entries = Vec::new();
    for part in &parts {
        for (name, shape) in position.recipe.unet.parameters() {
            let name = format!("{}{name}", part.prefix);
            entries.push(Entry { name, shape, precision: Precision::F32, source: part });
        }
    }
    let json =
        serde_json::to_string(position).map_err(|error| Error::invalid("checkpoint", error.to_string()))?;
    write(path, entries, HashMap::from([(KEY.to_owned(), json)]))
}

impl Checkpoint {
    /// Opens a file that [`Trainer::save`](super::Trainer::save) wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ModelFile`] where it is damaged or no checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let wrong = |reason: String| Error::ModelFile { path: path.to_owned(), reason };
        let json = file.string(KEY).ok_or_else(|| {
            wrong("is not a checkpoint of a training run; models are used by `mdm fit` as they are".into())
        })?;
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| wrong(format!("has a damaged description: {error}"));
        let Version { version } = serde_json::from_str(json).map_err(damaged)?;
        if version > VERSION {
            return Err(wrong(format!("was written by a newer libmdm (version {version}); update libmdm")));
        }
        let position: Position = serde_json::from_str(json).map_err(damaged)?;
        position.recipe.validate()?;
        Ok(Self { position, file })
    }

    /// What the run was started with.
    pub fn recipe(&self) -> &Recipe {
        &self.position.recipe
    }

    /// The same with other steps to come: longer, on another schedule, in other micro-batches.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the recipe makes no sense, or its network or number of moving averages is another.
    pub fn with_recipe(mut self, recipe: Recipe) -> Result<Self> {
        recipe.validate()?;
        if recipe.unet != self.position.recipe.unet {
            return Err(Error::invalid("unet", "a run goes on with the network that it began with"));
        }
        if recipe.ema_rates.len() != self.position.recipe.ema_rates.len() {
            return Err(Error::invalid("moving averages", "a run goes on with as many as it began with"));
        }
        self.position.recipe = recipe;
        Ok(self)
    }

    /// Steps that are done.
    pub fn step(&self) -> u64 {
        self.position.step
    }

    /// Seconds that these took.
    pub fn seconds(&self) -> f64 {
        self.position.seconds
    }

    /// Mean loss of the last steps, where there were any.
    pub fn loss(&self) -> Option<f64> {
        self.position.loss
    }

    /// How many images there are to learn from.
    pub fn images(&self) -> usize {
        self.position.images
    }

    /// [`Images::identity`](super::Images::identity) of those images.
    pub fn image_identity(&self) -> &str {
        &self.position.image_identity
    }

    /// What the program that trains noted: see [`Trainer::set_notes`](super::Trainer::set_notes).
    pub fn notes(&self) -> &serde_json::Value {
        &self.position.notes
    }

    /// Everything a learner needs to go on; numbers stay in the file until they are asked for.
    pub(crate) fn state(&self) -> LearnerState {
        let position = &self.position;
        let part = |prefix: &str| -> Weights { Arc::new(self.file.below(prefix)) };
        LearnerState {
            step: position.applied,
            parameters: part(PARAMETERS),
            first_moment: Some(part(FIRST_MOMENT)),
            second_moment: Some(part(SECOND_MOMENT)),
            ema: (0..position.recipe.ema_rates.len()).map(|index| part(&ema(index))).collect(),
            loss_scale: position.loss_scale,
        }
    }

    /// The backbone that a moving average is (number `average` of [`Recipe::ema_rates`]), or that the parameters themselves are.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such average.
    pub fn backbone(&self, average: Option<usize>, description: &str) -> Result<Model> {
        let recipe = &self.position.recipe;
        let prefix = match average {
            None => PARAMETERS.to_owned(),
            Some(index) if index < recipe.ema_rates.len() => ema(index),
            Some(index) => {
                let reason = format!("there is no number {index}; the run kept {:?}", recipe.ema_rates);
                return Err(Error::invalid("moving average", reason));
            }
        };
        Model::from_parts(metadata(recipe, description), Arc::new(self.file.below(&prefix)), Vec::new())
    }
}

/// What is to be said of a backbone that was trained by `recipe`.
pub(crate) fn metadata(recipe: &Recipe, description: &str) -> Metadata {
    let mut metadata = Metadata::new(recipe.unet.clone());
    metadata.corruption = recipe.corruption.clone();
    metadata.microns_per_pixel = recipe.crops.microns_per_pixel;
    metadata.intensity_range = recipe.crops.range.clone();
    metadata.description = description.to_owned();
    let last = metadata.corruption.last_timestep();
    // A network that knows one timestep, or few, is asked at one that it knows.
    metadata.features.timesteps = vec![recipe.fixed_timestep.unwrap_or(50.min(last))];
    metadata
}
