//! `mdm fit --tune`: backbone and head together.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mdm::model::{Class, FeatureConfig, Model, Save, StoredType};
use mdm::{Control, Device, IntensityRange};
use mdm_train::fit::LabelledImages;
use mdm_train::metrics::Scores;
use mdm_train::tune::{Augmentation, Length, PixelLoss, TuneOptions, TuneProgress, TuneReport, tune};
use serde::Serialize;

use super::fit::without_model;
use crate::arguments::positive;
use crate::device::UsedDevice;
use crate::error::Result;
use crate::intensities::IntensityWarnings;
use crate::interruption::interruption;
use crate::output::{lossy, print, print_json};
use crate::progress::TrainingProgress;
use crate::training::Interval;

/// Options that only mean something with `--tune`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tuning")]
pub(crate) struct TuneArguments {
    /// Train the backbone along with the head: slower (minutes instead of seconds), and much more accurate where a few images are
    /// labelled
    #[arg(long, conflicts_with_all = ["heads_only", "ensemble", "normalise", "hide"])]
    pub(crate) tune: bool,

    /// Steps of the tuning [default: 1000]
    #[arg(long, value_name = "N", value_parser = positive, requires = "tune", conflicts_with = "time")]
    steps: Option<usize>,

    /// Tune for so long, such as 90s, 10m or 1h, instead of a number of steps
    #[arg(long, value_name = "TIME", requires = "tune")]
    time: Option<TimeArgument>,

    /// Side of the crops that are learnt from, in pixels at the model's scale; the model's windows become twice as large [default:
    /// that of the backbone's windows]
    #[arg(long, value_name = "PIXELS", value_parser = positive, requires = "tune")]
    crop: Option<usize>,

    /// Crops a step [default: 8]
    #[arg(long, value_name = "N", value_parser = positive, requires = "tune")]
    crops: Option<usize>,

    /// Largest learning rate of the backbone; the head's is five times as large [default: 2e-4]
    #[arg(long, value_name = "RATE", requires = "tune")]
    learning_rate: Option<f64>,

    /// What is minimised [default: ce-dice]
    #[arg(long, value_enum, value_name = "LOSS", requires = "tune")]
    pixel_loss: Option<LossArgument>,

    /// How much crops are magnified or reduced at most, as the logarithm of the factor; 0 for not at all [default: 0.25]
    #[arg(long, value_name = "AMOUNT", requires = "tune")]
    jitter_scale: Option<f64>,

    /// How much brightness and contrast are changed at most, as a part of the intensity range; 0 for not at all [default: 0.3]
    #[arg(long, value_name = "AMOUNT", requires = "tune")]
    jitter_intensity: Option<f64>,

    /// How much the amounts of the stains in colour images are changed at most, as a part of each; 0 for not at all [default: 0.3]
    #[arg(long, value_name = "AMOUNT", requires = "tune")]
    jitter_stain: Option<f64>,

    /// Turn crops by quarter turns only, where images have a direction
    #[arg(long, requires = "tune")]
    quarter_turns: bool,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LossArgument {
    /// Cross entropy
    Ce,
    /// Cross entropy and soft Dice
    CeDice,
    /// Cross entropy that weighs pixels near another class three times
    Boundary,
}

/// A length of time.
#[derive(Clone, Copy, Debug)]
struct TimeArgument(Duration);

impl FromStr for TimeArgument {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.parse() {
            Ok(Interval::Time(time)) => Ok(Self(time)),
            _ => Err("must be seconds (90s), minutes (10m) or hours (1h)".to_owned()),
        }
    }
}

/// What every fit is told.
pub(crate) struct Job<'a> {
    pub(crate) backbone: &'a Model,
    pub(crate) device: &'a Device,
    pub(crate) images: &'a mut dyn LabelledImages,
    pub(crate) classes: Vec<Class>,
    pub(crate) mpp: Option<f64>,
    pub(crate) range: Option<IntensityRange>,
    pub(crate) features: FeatureConfig,
    pub(crate) seed: u64,
    pub(crate) balance: bool,
    pub(crate) held_out: bool,
    pub(crate) output: &'a Path,
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(serialize_with = "lossy")]
    model: &'a Path,
    images: usize,
    classes: Vec<ClassReport>,
    steps: u64,
    seconds: f64,
    /// Mean over the last steps.
    loss: f64,
    /// Part of the labelled pixels of the last crops that got their class.
    accuracy: f64,
    /// Of a network that was tuned in the same way without them.
    held_out: Option<Scores>,
    held_out_images: Option<&'a [String]>,
    microns_per_pixel: Option<f64>,
    /// How stored values become what the network sees, as for --range.
    range: String,
    intensity_warnings: IntensityWarnings,
    #[serde(flatten)]
    used: UsedDevice,
}

#[derive(Serialize)]
struct ClassReport {
    name: String,
    /// At the model's scale.
    labelled_pixels: u64,
}

impl TuneArguments {
    fn options(&self, backbone: &Model, job: &Job<'_>) -> TuneOptions {
        let defaults = TuneOptions::for_model(backbone);
        let augmentation = Augmentation::default();
        let multiple = backbone.metadata().unet.deepest_downsampling();
        let defaults = match self.learning_rate {
            Some(rate) => defaults.with_learning_rate(rate),
            None => defaults,
        };
        TuneOptions {
            microns_per_pixel: job.mpp,
            range: job.range.clone(),
            features: Some(job.features.clone()),
            length: match (self.time, self.steps) {
                (Some(TimeArgument(time)), _) => Length::Time(time),
                (_, Some(steps)) => Length::Steps(steps as u64),
                _ => defaults.length,
            },
            batch: self.crops.unwrap_or(defaults.batch),
            size: self
                .crop
                .map_or(defaults.size, |size| size.checked_next_multiple_of(multiple).unwrap_or(size)),
            loss: match self.pixel_loss {
                Some(LossArgument::CeDice) => PixelLoss::CrossEntropyAndDice,
                Some(LossArgument::Boundary) => PixelLoss::BoundaryWeighted,
                Some(LossArgument::Ce) => PixelLoss::CrossEntropy,
                None => defaults.loss,
            },
            balance: job.balance,
            augmentation: Augmentation {
                rotate: augmentation.rotate && !self.quarter_turns,
                scale: self.jitter_scale.unwrap_or(augmentation.scale),
                intensity: self.jitter_intensity.unwrap_or(augmentation.intensity),
                stain: self.jitter_stain.unwrap_or(augmentation.stain),
                ..augmentation
            },
            seed: job.seed,
            held_out: job.held_out,
            ..defaults
        }
    }

    /// Tunes and writes the model.
    pub(crate) fn run(&self, job: Job<'_>) -> Result<()> {
        let options = self.options(job.backbone, &job);
        let images = job.images.len();
        let steps = match options.length {
            Length::Steps(steps) => Some(steps),
            Length::Time(_) => None,
        };
        let progress = TrainingProgress::new(0, steps.unwrap_or(1000));
        let mut report = |now: TuneProgress| {
            let trial = if now.trial { "trial without held-out images, " } else { "" };
            let scores = format!("loss {:.4}, accuracy {:.4}", now.loss, now.accuracy);
            match steps {
                Some(steps) => progress.report(now.step, steps, format!("{trial}{scores}")),
                // In thousandths of the time.
                None => progress.report_part(now.done, format!("{trial}step {}, {scores}", now.step)),
            }
        };
        let Job { backbone, device, images: labelled, classes, .. } = job;
        let control = Control::none().with_cancel(&interruption("stopping"));
        let tuned = tune(backbone, device, labelled, classes, &options, &mut report, &control);
        progress.finish();
        let tuned = tuned.map_err(|error| without_model(error.into()))?;
        let warnings = IntensityWarnings::of(&tuned.warnings);
        warnings.say(false);
        tuned.model.save(job.output, Save { backbone: Some(StoredType::F16), heads: true })?;
        let report = described(&tuned, warnings, images, job.output, UsedDevice::of(device));
        if job.json { print_json(&report) } else { print(&in_words(&report)) }
    }
}

fn described<'a>(
    tuned: &'a TuneReport,
    intensity_warnings: IntensityWarnings,
    images: usize,
    output: &'a Path,
    used: UsedDevice,
) -> Report<'a> {
    let metadata = tuned.model.metadata();
    let held_out = tuned.held_out.as_ref();
    Report {
        model: output,
        images: images - tuned.unlabelled_images.len(),
        classes: metadata
            .classes
            .iter()
            .zip(&tuned.class_pixels)
            .map(|(class, &labelled_pixels)| ClassReport { name: class.name.clone(), labelled_pixels })
            .collect(),
        steps: tuned.last.step,
        seconds: tuned.seconds,
        loss: tuned.last.loss,
        accuracy: tuned.last.accuracy,
        held_out: held_out.map(|(scores, _)| *scores),
        held_out_images: held_out.map(|(_, names)| &names[..]),
        microns_per_pixel: metadata.microns_per_pixel,
        range: metadata.intensity_range.to_string(),
        intensity_warnings,
        used,
    }
}

fn in_words(report: &Report<'_>) -> String {
    let mut lines = vec![format!(
        "backbone and head tuned on {} images in {} steps, {:.0} s",
        report.images, report.steps, report.seconds
    )];
    for (index, class) in report.classes.iter().enumerate() {
        lines.push(format!("  class {index} {}: {} labelled pixels", class.name, class.labelled_pixels));
    }
    lines.push(format!("  on varied crops: loss {:.4}, accuracy {:.4}", report.loss, report.accuracy));
    if let (Some(scores), Some(images)) = (&report.held_out, report.held_out_images) {
        lines.push(format!(
            "  on {} images held out from a trial: Dice {:.4}, mean IoU {:.4}, object Dice {:.4}",
            images.len(),
            scores.dice,
            scores.mean_iou,
            scores.object_dice
        ));
    }
    lines.push(format!("written to {}", report.model.display()));
    lines.join("\n")
}
