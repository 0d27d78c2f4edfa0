//! The folder of a training run and what is kept in it.

mod folder;
mod log;
mod sheet;
mod tensorboard;
mod watching;

use std::path::{Path, PathBuf};

use mdm::model::{CorruptionKind, NoiseSchedule};
use mdm_train::pretrain::Checkpoint;
use serde::{Deserialize, Serialize};

use crate::error::{Result, failed, usage};
use crate::files::unusable_input;
use crate::planes::PlaneArguments;
use mdm_images::expand;

pub(crate) use folder::RunFolder;
pub(crate) use log::{Line, Log};
pub(crate) use sheet::Sheet;
pub(crate) use tensorboard::Events;
pub(crate) use watching::{Interval, Watching};

/// The file that a run goes on from.
pub(crate) const CHECKPOINT: &str = "checkpoint.safetensors";

/// What a checkpoint keeps of the command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Notes {
    /// Folders, files and patterns, absolute.
    pub(crate) inputs: Vec<PathBuf>,
    /// Text files that list images, absolute.
    pub(crate) lists: Vec<PathBuf>,
    pub(crate) recursive: bool,
    /// Size of all images' pixels in micrometres, whatever the files say.
    pub(crate) mpp: Option<f64>,
    /// What is read of files that hold several planes.
    pub(crate) planes: PlaneArguments,
    /// The backbone that the run started from.
    pub(crate) init: Option<PathBuf>,
    pub(crate) watching: Watching,
}

impl Notes {
    /// Those of a checkpoint; empty where another program wrote it.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        serde_json::from_value(checkpoint.notes().clone()).unwrap_or_default()
    }

    /// The image files that are meant.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut inputs = self.inputs.clone();
        for list in &self.lists {
            let text = std::fs::read_to_string(list)
                .map_err(|error| failed(list, format!("cannot be read as a list of images: {error}")))?;
            let folder = list.parent().unwrap_or(Path::new("."));
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            inputs.extend(lines.map(|line| folder.join(line)));
        }
        let (files, unusable) = expand(&inputs, self.recursive, None);
        match unusable.first() {
            Some(unusable) => Err(usage(unusable_input(unusable))),
            None if files.is_empty() => {
                Err(usage("there are no images: name folders, files, patterns or a --list"))
            }
            None => Ok(files.into_iter().map(|file| file.path).collect()),
        }
    }

    /// A sentence about the run.
    pub(crate) fn description(&self, checkpoint: &Checkpoint) -> String {
        let recipe = checkpoint.recipe();
        let names: Vec<String> = self
            .inputs
            .iter()
            .chain(&self.lists)
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .collect();
        let corruption = match recipe.corruption.kind {
            CorruptionKind::Mask { patch, .. } => format!("masked patches of {patch} pixels"),
            CorruptionKind::Gaussian { schedule } => format!(
                "Gaussian noise ({} schedule)",
                match schedule {
                    NoiseSchedule::Linear => "linear",
                    NoiseSchedule::Cosine => "cosine",
                }
            ),
        };
        let fixed = recipe.fixed_timestep.map_or_else(String::new, |t| format!(" at t = {t}"));
        let loss = checkpoint.loss().map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
        format!(
            "Pre-trained with mdm {} on {} images ({}): {} of {} steps of {} crops of {} pixels, {corruption}{fixed}{loss}, seed {}",
            env!("CARGO_PKG_VERSION"),
            checkpoint.images(),
            names.join(", "),
            checkpoint.step(),
            recipe.steps,
            recipe.batch,
            recipe.size(),
            recipe.seed
        )
    }
}
