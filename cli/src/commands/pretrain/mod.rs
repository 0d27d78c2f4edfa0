//! `mdm pretrain`: a backbone from images without labels.

mod arguments;
mod run;

use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

pub(crate) use arguments::Arguments;
use mdm::model::Model;
use mdm_train::pretrain::{Checkpoint, FileImages, Images, Start, Trainer, examine};
#[cfg(feature = "mpi")]
use mdm_train::ranks::MpiRanks;
use mdm_train::ranks::{Alone, Ranks};
use run::Run;
use serde::Serialize;

use crate::device::UsedDevice;
use crate::error::{CliError, Result, failed, usage, warn};
use crate::intensities::IntensityWarnings;
use crate::output::{print, print_json, quoted};
use crate::planes::ImageNotes;
use crate::training::{CHECKPOINT, Notes, RunFolder};

#[derive(Serialize)]
struct Report<'a> {
    run: &'a Path,
    /// Steps that are done, of `steps`.
    step: u64,
    steps: u64,
    images: usize,
    /// Mean over about the last hundred steps.
    loss: Option<f64>,
    /// Spent in steps since the run began.
    seconds: f64,
    /// Since this command began.
    images_per_second: f64,
    /// Share of the time in which the device waited for images, since this command began.
    waited: f64,
    /// Images that could not be used.
    left_out: usize,
    interrupted: bool,
    /// What looks wrong about the first images that were looked at.
    intensity_warnings: IntensityWarnings,
    #[serde(flatten)]
    used: UsedDevice,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.mpi { with_others(arguments) } else { pretrain(arguments, &Alone) }
}

#[cfg(feature = "mpi")]
fn with_others(arguments: &Arguments) -> Result<()> {
    let ranks = MpiRanks::new()?;
    let outcome = pretrain(arguments, &ranks);
    if let Err(error) = &outcome
        && !matches!(error, CliError::Reported)
    {
        // The others may be waiting for this one.
        eprintln!("error: process {} of {}: {error}", ranks.rank(), ranks.count());
        ranks.abort(error.exit_code().into());
    }
    outcome
}

#[cfg(not(feature = "mpi"))]
fn with_others(_: &Arguments) -> Result<()> {
    Err(usage("--mpi: this mdm was built without MPI; build it with --features mpi"))
}

fn pretrain(arguments: &Arguments, ranks: &dyn Ranks) -> Result<()> {
    arguments.check()?;
    let path = arguments.resume.as_ref().or(arguments.output.as_ref());
    let path = path.ok_or_else(|| usage("name the run's folder with -o, or with --resume"))?;
    if arguments.resume.is_some() && !path.is_dir() {
        return Err(usage(format!("{}: there is no such folder to resume a run in", path.display())));
    }
    let mut notes = Notes {
        inputs: absolutes(&arguments.images)?,
        lists: absolutes(&arguments.list)?,
        recursive: arguments.recursive,
        mpp: arguments.crops.mpp,
        planes: arguments.planes.clone(),
        init: arguments.network.init.clone(),
        watching: arguments.watching,
    };
    if arguments.resume.is_none() {
        // Before a folder is made for nothing.
        notes.files()?;
    }
    let folder = if ranks.rank() == 0 { Some(RunFolder::open(path)?) } else { None };
    let checkpoint_path = path.join(CHECKPOINT);
    let checkpoint = if arguments.resume.is_some() {
        if !checkpoint_path.exists() {
            return Err(usage(format!("{}: there is no checkpoint of a run to resume", path.display())));
        }
        let checkpoint = Checkpoint::open(&checkpoint_path)?;
        let before = Notes::of(&checkpoint);
        if notes.inputs.is_empty() && notes.lists.is_empty() {
            (notes.inputs, notes.lists, notes.recursive) =
                (before.inputs, before.lists, before.recursive || notes.recursive);
        }
        notes.mpp = notes.mpp.or(before.mpp);
        notes.planes = notes.planes.or(before.planes);
        notes.init = before.init;
        notes.watching = notes.watching.or(before.watching);
        let recipe = arguments.change(checkpoint.recipe().clone(), ranks.count());
        Some(checkpoint.with_recipe(recipe)?)
    } else if checkpoint_path.exists() {
        return Err(usage(format!(
            "{}: holds a run already; go on with it (--resume {}), or choose another folder",
            path.display(),
            quoted(path)
        )));
    } else {
        None
    };
    let files = notes.files()?;
    let scale = match &checkpoint {
        Some(checkpoint) => checkpoint.recipe().crops.microns_per_pixel,
        None => arguments.crops.train_mpp.or(arguments.crops.mpp),
    };
    let said = ImageNotes::for_training(scale);
    let images = Arc::new(
        FileImages::new(files)
            .with_options(notes.planes.options(notes.mpp))
            .with_observer(move |path, image| said.look(path, image))
            .with_capacity(usize::try_from(arguments.image_memory).unwrap_or(usize::MAX)),
    );
    if let Some(checkpoint) = &checkpoint
        && checkpoint.image_identity() != images.identity()
    {
        warn("the images are not those that the run had; it goes on with these");
    }
    let device = arguments.device.open()?;
    let init = arguments.network.init.as_deref().map(Model::open).transpose()?;
    let start = match (&checkpoint, &init) {
        (Some(checkpoint), _) => Start::Resume(checkpoint),
        (None, Some(model)) => {
            Start::From(arguments.change(arguments.recipe(Some(model)), ranks.count()), model)
        }
        (None, None) => Start::New(arguments.change(arguments.recipe(None), ranks.count())),
    };
    let inputs = match &start {
        Start::Resume(checkpoint) => checkpoint.recipe().unet.in_channels,
        Start::From(recipe, _) | Start::New(recipe) => recipe.unet.in_channels,
    };
    notes.planes.check(inputs)?;
    let count = images.count();
    let (examined, mut intensity_warnings) = (images.clone(), IntensityWarnings::default());
    let mut trainer = Trainer::among(ranks, &device, start, images)?;
    if ranks.rank() == 0 {
        for (image, warning) in examine(&*examined, &trainer.recipe().crops.range) {
            intensity_warnings.add(&image, &warning);
        }
        intensity_warnings.say(false);
    }
    let resumed = checkpoint.is_some();
    drop(checkpoint);
    trainer.set_notes(serde_json::to_value(&notes).unwrap_or_default());
    let outcome = Run::new(notes.watching, resumed, ranks, folder.as_ref(), &mut trainer)?.all_steps()?;
    let report = Report {
        run: path,
        step: trainer.steps_done(),
        steps: trainer.recipe().steps,
        images: count,
        loss: trainer.mean_loss(),
        seconds: trainer.seconds(),
        images_per_second: outcome.images_per_second,
        waited: outcome.waited,
        left_out: outcome.left_out,
        interrupted: outcome.interrupted,
        intensity_warnings,
        used: UsedDevice::of(&device),
    };
    if ranks.rank() == 0 {
        if arguments.json { print_json(&report) } else { print(&in_words(&report)) }?;
    }
    if outcome.interrupted { Err(CliError::Reported) } else { Ok(()) }
}

fn absolutes(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    paths.iter().map(|path| absolute(path).map_err(|error| failed(path, error))).collect()
}

fn in_words(report: &Report<'_>) -> String {
    let run = quoted(report.run);
    let loss = report.loss.map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
    let next = if report.step < report.steps {
        format!("go on with: mdm pretrain --resume {run}")
    } else {
        format!("make a backbone of it with: mdm export {run} -o backbone.safetensors")
    };
    format!(
        "{} of {} steps on {} images{loss}; {:.1} images/s, {:.1} % of the time waited for images\n{next}",
        report.step,
        report.steps,
        report.images - report.left_out,
        report.images_per_second,
        100.0 * report.waited
    )
}
