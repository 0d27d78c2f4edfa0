//! `mdm fit`: heads from a few labelled images.

use std::path::{Path, PathBuf};

use clap::Args;
use mdm::IntensityRange;
use mdm::model::{Class, Model, Save, StoredType};
use mdm::segment::FeatureOptions;
use mdm::segment::rescale::scale_between;
use mdm::{CancelToken, Control, Device, Error};
use mdm_train::fit::{
    FitOptions, FitReport, HeadDevice, HeldOutPart, LabelledImage, LabelledImages, PixelScores, collect,
    fit_collected,
};
use serde::Serialize;

use super::tune::{self, TuneArguments};
use crate::arguments::{ConfigurationArguments, FeatureArguments, microns, positive};
use crate::device::{CACHE_HELP, DeviceArguments, UsedDevice};
use crate::error::{CliError, Result, usage};
use crate::files::writable_file;
use crate::intensities::{IntensityWarnings, RANGE_HELP};
use crate::interruption::interruption;
use crate::labelled::{Census, LabelArguments, Pair, pairs};
use crate::model::open_model;
use crate::output::{lossy, print, print_json};
use crate::planes::{ImageNotes, PlaneArguments, stated_by_file};
use crate::progress::StepProgress;
use mdm_images::{Image, ReadOptions};

const EXAMPLES: &str = "\
Labels are PNG or TIFF files named like their image (cells-1.tif: cells-1.png, or cells-1_mask.png, _label, _seg and the like), whose pixels are class indices: 0 (usually background), 1, 2 ... and 255 or transparent where nothing is labelled. A few strokes in each class are enough to begin with. Masks that number objects take --objects, drawings in colours --label-colours.

The backbone describes the pixels and stays as it is; what is fitted are small networks, the heads, that tell the classes apart. The model file holds both (heads alone with --heads-only) and is what `mdm segment --model` takes.

Examples:
  mdm fit --backbone nuclei.safetensors --images images/ --labels labels/ -o my-cells.safetensors
  mdm fit --backbone nuclei.safetensors --images images/ --labels scribbles/ --mpp 0.32 \\
          --classes background,nucleus,debris --ensemble 10 -o my-cells.safetensors
  mdm fit --backbone nuclei.safetensors --images images/ --labels instances/ --objects=rim -o nuclei-apart.safetensors";

#[derive(Args, Debug)]
#[command(after_help = format!("{EXAMPLES}\n\n{RANGE_HELP}\n\n{CACHE_HELP}"))]
pub(crate) struct Arguments {
    /// Backbone: a model file or a guided-diffusion state dict (.safetensors)
    #[arg(long, value_name = "FILE")]
    backbone: PathBuf,

    /// Images: a folder, a file, or a pattern such as "plate*/*.tif"
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    images: Vec<PathBuf>,

    /// Label files: a folder, or the file for a single image
    #[arg(long, value_name = "PATH")]
    labels: PathBuf,

    #[command(flatten)]
    reading: LabelArguments,

    /// Model file to write
    #[arg(short, long = "output", value_name = "FILE")]
    output: PathBuf,

    /// Size of an image pixel in micrometres, whatever the files say
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    mpp: Option<f64>,

    /// Stored values that are black and white: LOW,HIGH, "percentile", "declared" or "type", as explained below [default: the
    /// backbone's if it is one of the first two, or else declared]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    range: Option<IntensityRange>,

    /// Names of the classes in the order of their index
    #[arg(long, value_name = "NAME,NAME...", value_delimiter = ',')]
    classes: Vec<String>,

    /// Write the heads without the backbone: a small file; `mdm segment` then needs --backbone
    #[arg(long)]
    heads_only: bool,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    /// Heads to fit: more are steadier and slower, and their disagreement shows uncertainty (the paper's 10)
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive, help_heading = "Method")]
    ensemble: usize,

    /// Weigh rare classes as much as frequent ones
    #[arg(long, help_heading = "Method")]
    balance: bool,

    /// Everything random follows from it: the same seed gives the same model
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Method")]
    seed: u64,

    /// Fit on all labels at once, without the trial that measures the score on labels held out
    #[arg(long, help_heading = "Method")]
    no_held_out: bool,

    #[command(flatten)]
    tune: TuneArguments,

    #[command(flatten)]
    planes: PlaneArguments,

    #[command(flatten)]
    features: FeatureArguments,

    /// Windows at a time: more may be faster and take more memory [default: 1 on the host, up to 16 on a GPU]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Computing")]
    batch: Option<usize>,

    #[command(flatten)]
    device: DeviceArguments,

    #[command(flatten)]
    configuration: ConfigurationArguments,
}

/// What is fitted to what, and how.
pub(crate) struct Job<'a> {
    pub(crate) backbone: &'a Model,
    pub(crate) device: &'a Device,
    pub(crate) pairs: &'a [Pair],
    pub(crate) classes: Vec<Class>,
    pub(crate) features: FeatureOptions,
    pub(crate) options: FitOptions,
    /// What is read of the images.
    pub(crate) reading: ReadOptions,
    /// Stops it.
    pub(crate) token: &'a CancelToken,
}

impl Job<'_> {
    /// Takes the features of the labelled pixels, then fits heads on them.
    pub(crate) fn run(self) -> Result<FitReport> {
        let Self { backbone, device, pairs, classes, features, options, reading, token } = self;
        let progress = StepProgress::new("windows");
        let notes = ImageNotes::for_fitting(backbone.metadata().microns_per_pixel);
        let mut images =
            Pairs { pairs, backbone, reading: &reading, notes, progress: &progress, current: None };
        let report = |step| progress.report(step);
        let control = Control::none().with_progress(&report).with_cancel(token);
        let collected =
            collect(backbone, device, &mut images, Some(classes.len()), &features, &options, &control);
        progress.finish();
        let collected = collected?;
        let progress = StepProgress::new("steps");
        let report = |step| progress.report(step);
        let control = Control::none().with_progress(&report).with_cancel(token);
        let fitted = fit_collected(backbone, device, &collected, classes, &features, &options, &control);
        progress.finish();
        Ok(fitted?)
    }
}

/// Labelled images, of which one is in memory.
struct Pairs<'a> {
    pairs: &'a [Pair],
    backbone: &'a Model,
    reading: &'a ReadOptions,
    notes: ImageNotes,
    progress: &'a StepProgress,
    current: Option<(Image, Vec<u8>)>,
}

impl LabelledImages for Pairs<'_> {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn load(&mut self, index: usize) -> mdm::Result<LabelledImage<'_>> {
        let pair = self
            .pairs
            .get(index)
            .ok_or_else(|| Error::invalid("images", format!("there is no image {index}")))?;
        self.current = None;
        let read = pair.read(self.reading).map_err(|error| match error {
            CliError::Library(error) => error,
            other => Error::Image(other.to_string()),
        })?;
        let (image, labels) = self.current.insert(read);
        self.progress.suspend(|| self.notes.look(&pair.image, image));
        scale_between(image.microns_per_pixel, self.backbone.metadata().microns_per_pixel).map_err(
            |error| match stated_by_file(error, image, self.reading.microns_per_pixel) {
                Error::Image(reason) => Error::Image(format!("{}: {reason}", pair.image.display())),
                other => other,
            },
        )?;
        Ok(LabelledImage {
            name: pair.image.to_string_lossy(),
            image: image.view()?,
            labels,
            label_height: image.height,
            label_width: image.width,
        })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(serialize_with = "lossy")]
    model: &'a Path,
    images: usize,
    classes: Vec<ClassReport>,
    heads: usize,
    /// Pixels that the heads were fitted on.
    samples: usize,
    /// The ensemble on those pixels.
    training: PixelScores,
    /// A head that was fitted without part of the labels, on that part; absent if not wanted or not possible.
    held_out: Option<PixelScores>,
    /// Names of the images that were held out; absent where parts of each image were.
    held_out_images: Option<&'a [String]>,
    microns_per_pixel: Option<f64>,
    /// How stored values become what the network sees, as for --range.
    range: String,
    intensity_warnings: IntensityWarnings,
    feature_seconds: f64,
    head_seconds: f64,
    /// Where the heads were trained.
    head_device: &'a HeadDevice,
    #[serde(flatten)]
    used: UsedDevice,
}

#[derive(Serialize)]
struct ClassReport {
    name: String,
    /// Over all images, as they are.
    labelled_pixels: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    check_names(&arguments.classes)?;
    let pairs = pairs(&arguments.images, &arguments.labels, &arguments.reading)?;
    let census = Census::of(&pairs)?;
    let count = census.classes(&arguments.classes)?;
    let names = match arguments.reading.objects {
        Some(objects) if arguments.classes.is_empty() => {
            objects.names().iter().map(|name| (*name).to_owned()).collect()
        }
        _ => arguments.classes.clone(),
    };
    writable_file(&arguments.output)?;
    let backbone = open_model(&arguments.backbone, None, &arguments.configuration)?;
    arguments.planes.check(backbone.metadata().unet.in_channels)?;
    let device = arguments.device.open()?;
    if arguments.tune.tune {
        let reading = arguments.planes.options(arguments.mpp);
        let progress = StepProgress::new("images");
        let notes = ImageNotes::for_fitting(backbone.metadata().microns_per_pixel);
        return arguments.tune.run(tune::Job {
            backbone: &backbone,
            device: &device,
            images: &mut Pairs {
                pairs: &pairs,
                backbone: &backbone,
                reading: &reading,
                notes,
                progress: &progress,
                current: None,
            },
            classes: classes(&names, count),
            mpp: arguments.mpp,
            range: arguments.range.clone(),
            features: arguments.features.config(backbone.metadata()),
            seed: arguments.seed,
            balance: arguments.balance,
            held_out: !arguments.no_held_out,
            output: &arguments.output,
            json: arguments.json,
        });
    }
    let fitted = Job {
        backbone: &backbone,
        device: &device,
        pairs: &pairs,
        classes: classes(&names, count),
        features: feature_options(arguments, &backbone),
        options: FitOptions {
            ensemble: arguments.ensemble,
            seed: arguments.seed,
            balance: arguments.balance,
            held_out: !arguments.no_held_out,
            ..FitOptions::default()
        },
        reading: arguments.planes.options(arguments.mpp),
        token: &interruption("stopping"),
    }
    .run()
    .map_err(without_model)?;
    let warnings = IntensityWarnings::of(&fitted.warnings);
    warnings.say(false);
    let stored = (!arguments.heads_only).then_some(StoredType::AsIs);
    fitted.model.save(&arguments.output, Save { backbone: stored, heads: true })?;
    let report = Report {
        model: &arguments.output,
        images: pairs.len() - fitted.unlabelled_images.len(),
        classes: fitted
            .model
            .metadata()
            .classes
            .iter()
            .enumerate()
            .map(|(class, Class { name, .. })| ClassReport {
                name: name.clone(),
                labelled_pixels: census.pixels(class),
            })
            .collect(),
        heads: fitted.model.heads().len(),
        samples: fitted.samples,
        training: fitted.training,
        held_out: fitted.held_out,
        held_out_images: match &fitted.held_out_part {
            HeldOutPart::Images(names) => Some(names),
            HeldOutPart::Squares => None,
        },
        microns_per_pixel: fitted.model.metadata().microns_per_pixel,
        range: fitted.model.metadata().intensity_range.to_string(),
        intensity_warnings: warnings,
        feature_seconds: fitted.feature_seconds,
        head_seconds: fitted.head_seconds,
        head_device: &fitted.head_device,
        used: UsedDevice::of(&device),
    };
    if arguments.json { print_json(&report) } else { print(&in_words(&report)) }
}

/// What ended a fit, before a model was written.
pub(crate) fn without_model(error: CliError) -> CliError {
    match error {
        CliError::Library(Error::Cancelled) => {
            CliError::Interrupted("interrupted; no model was written".to_owned())
        }
        error => error,
    }
}

/// Refuses names of classes that are empty or the same.
pub(crate) fn check_names(names: &[String]) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        if name.trim().is_empty() {
            return Err(usage(format!(
                "--classes: the name of class {index} is empty; write for example cell,debris"
            )));
        }
        if names[..index].contains(name) {
            return Err(usage(format!("--classes: {name} is named twice; classes need names of their own")));
        }
    }
    Ok(())
}

/// Classes by their names, or by default ones.
pub(crate) fn classes(names: &[String], count: usize) -> Vec<Class> {
    let mut classes = Class::numbered(count.max(names.len()));
    for (index, class) in classes.iter_mut().enumerate() {
        if let Some(name) = names.get(index) {
            class.name.clone_from(name);
        } else if index == 0 {
            class.name = "background".to_owned();
        } else if count == 2 {
            class.name = "foreground".to_owned();
        }
    }
    classes
}

fn feature_options(arguments: &Arguments, backbone: &Model) -> FeatureOptions {
    let defaults = FeatureOptions::default();
    FeatureOptions {
        microns_per_pixel: arguments.mpp,
        range: arguments.range.clone(),
        batch: arguments.batch,
        window: arguments.features.window,
        overlap: arguments.features.overlap,
        seed: arguments.seed,
        corrupt: arguments.features.corrupt(),
        features: Some(arguments.features.config(backbone.metadata())),
        ..defaults
    }
}

fn in_words(report: &Report<'_>) -> String {
    let mut lines = vec![format!(
        "{} heads fitted on {} images in {:.1} s (features {:.1} s, heads {:.1} s)",
        report.heads,
        report.images,
        report.feature_seconds + report.head_seconds,
        report.feature_seconds,
        report.head_seconds
    )];
    if let Some(reason) = &report.head_device.fallback {
        lines.push(format!("  heads on the CPU: {reason}"));
    }
    for (index, class) in report.classes.iter().enumerate() {
        lines.push(format!("  class {index} {}: {} labelled pixels", class.name, class.labelled_pixels));
    }
    let scores = |scores: &PixelScores| {
        format!("Dice {:.4}, mean IoU {:.4}, accuracy {:.4}", scores.dice, scores.mean_iou, scores.accuracy)
    };
    lines.push(format!("  on the labels fitted: {}", scores(&report.training)));
    if let Some(held_out) = &report.held_out {
        let part = match report.held_out_images {
            Some(images) => format!("{} images held out from a trial", images.len()),
            None => "parts of the images held out from a trial".to_owned(),
        };
        lines.push(format!("  on {part}: {}", scores(held_out)));
    }
    lines.push(format!("written to {}", report.model.display()));
    lines.join("\n")
}
