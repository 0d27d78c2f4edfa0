//! `mdm segment`: label images of many images.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mdm::IntensityRange;
use mdm::intensity::{IntensityWarning, Limits};
use mdm::plan::Combine;
use mdm::segment::{Scaling, SegmentOptions, Segmenter};
use mdm::{CancelToken, Control, Error};
use serde::Serialize;

use crate::arguments::{ConfigurationArguments, microns, part, positive};
use crate::device::{CACHE_HELP, DeviceArguments, UsedDevice};
use crate::error::{CliError, Result, usage, warn};
use crate::files::unusable_input;
use crate::intensities::{IntensityWarnings, RANGE_HELP};
use crate::interruption::interruption;
use crate::model::open_model;
use crate::output::{lossy, print, print_json};
use crate::outputs::{Classes, Outputs, Present, Wanted, distinct};
use crate::planes::{ImageNotes, PlaneArguments, stated_by_file};
use crate::progress::ItemProgress;
use crate::provenance::{Maker, Provenance};
use mdm_images::{ImageFile, ReadOptions, expand, read_image, same_place};

const EXAMPLES: &str = "\
Reads PNG, JPEG, TIFF and BMP files, grey or colour, of all types of numbers. For each image NAME.* it writes

  DIR/NAME.png                  labels: the index of the class of each pixel (looks black)
  DIR/overlays/NAME.png         the image with the classes outlined, to look at
  DIR/probabilities/NAME.tif    with --probabilities: one 32-bit page a class (OME-TIFF, named channels)
  DIR/uncertainty/NAME.tif      with --uncertainty: how much the heads disagree (0: not at all)

With --recursive, the subfolders of the images are kept below each of these.

Images that have all their files are skipped; those whose files are of another model or image, were made with other settings or are cut short are segmented again (labels that do not say what made them, for example corrected ones, are kept). A file that cannot be read is reported and the others are segmented; the exit code is 1 then.

If the model knows its pixel size, images are brought to it: their own pixel size is --mpp, or what the file says (OME-TIFF, ImageJ, Aperio, resolution tags; screen and print resolutions of 20 um per pixel or coarser are ignored).

Examples:
  mdm segment --model my-cells.safetensors images/ -o out/
  mdm segment --model my-cells.safetensors --mpp 0.32 \"plate 3/*.tif\" -o out/ --uncertainty";

#[derive(Args, Debug)]
#[command(after_help = format!("{EXAMPLES}\n\n{RANGE_HELP}\n\n{CACHE_HELP}"))]
pub(crate) struct Arguments {
    /// Images: files, folders, or patterns such as "plate*/*.tif"
    #[arg(value_name = "INPUT", required = true)]
    inputs: Vec<PathBuf>,

    /// Model file with fitted heads, from `mdm fit`
    #[arg(long, value_name = "FILE")]
    model: PathBuf,

    /// Folder for the results; created if need be
    #[arg(short, long = "output", value_name = "DIR")]
    output: PathBuf,

    /// Backbone that the heads were fitted on, if the model file does not hold it
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,

    /// Size of an image pixel in micrometres, whatever the files say
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    mpp: Option<f64>,

    /// Stored values that are black and white: LOW,HIGH, "percentile", "declared" or "type", as explained below [default: the
    /// model's]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    range: Option<IntensityRange>,

    /// Search the subfolders of folders too
    #[arg(long)]
    recursive: bool,

    /// Segment again whatever is there
    #[arg(long)]
    force: bool,

    /// Leave out the overlays
    #[arg(long)]
    no_overlay: bool,

    /// Write each class's probability too
    #[arg(long)]
    probabilities: bool,

    /// Write the heads' disagreement too
    #[arg(long)]
    uncertainty: bool,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    /// Let the heads vote instead of averaging their probabilities
    #[arg(long, help_heading = "Method")]
    vote: bool,

    /// Side of the sliding window in pixels at the model's scale [default: the model's]
    #[arg(long, value_name = "PIXELS", value_parser = positive, help_heading = "Method")]
    window: Option<usize>,

    /// Part of a window shared with its neighbour [default: the model's]
    #[arg(long, value_name = "PART", value_parser = part, help_heading = "Method")]
    overlap: Option<f64>,

    /// Decides which patches of a window are hidden, where the model hides any
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Method")]
    seed: u64,

    /// Windows at a time: more may be faster and take more memory, results are the same [default: 1 on the host, up to 16 on
    /// a GPU]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Computing")]
    batch: Option<usize>,

    #[command(flatten)]
    planes: PlaneArguments,

    #[command(flatten)]
    device: DeviceArguments,

    #[command(flatten)]
    configuration: ConfigurationArguments,
}

/// What became of an input.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Outcome {
    Done {
        #[serde(flatten)]
        files: Outputs,
        /// Whether it replaces files of another model, image or settings, or damaged ones.
        replaced: bool,
        width: usize,
        height: usize,
        /// Micrometres, where they are known.
        microns_per_pixel: Option<f64>,
        /// Pixels that the network saw per pixel of the image, along a side.
        scale: f64,
        windows: usize,
        /// Stored values that the network saw as black and white, in each channel.
        intensity_limits: Vec<Limits>,
        seconds: f64,
        /// Part of the image that each class covers.
        cover: Vec<f64>,
    },
    Skipped {
        #[serde(flatten)]
        files: Outputs,
    },
    Failed {
        error: String,
    },
}

#[derive(Serialize)]
struct ImageReport {
    #[serde(serialize_with = "lossy")]
    input: PathBuf,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
struct Summary {
    done: usize,
    skipped: usize,
    /// Of those done, the ones that replace files of another model, image or settings, or damaged ones.
    replaced: usize,
    failed: usize,
    windows: usize,
    seconds: f64,
    windows_per_second: f64,
    #[serde(flatten)]
    used: UsedDevice,
    classes: Vec<String>,
    intensity_warnings: IntensityWarnings,
    images: Vec<ImageReport>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let output = arguments.output.as_path();
    let (files, unusable) = expand(&arguments.inputs, arguments.recursive, Some(output));
    let mut images: Vec<ImageReport> = Vec::new();
    for unusable in unusable {
        eprintln!("error: {}", unusable_input(&unusable));
        images
            .push(ImageReport { input: unusable.input, outcome: Outcome::Failed { error: unusable.reason } });
    }
    if files.is_empty() {
        return Err(CliError::Failed("there is nothing to segment".to_owned()));
    }
    let wanted = Wanted {
        overlay: !arguments.no_overlay,
        probabilities: arguments.probabilities,
        uncertainty: arguments.uncertainty,
    };
    let targets: Vec<Outputs> = files.iter().map(|file| Outputs::of(file, output, wanted)).collect();
    distinct(&files, &targets)?;
    check_apart(&files, output)?;
    let model = open_model(&arguments.model, arguments.backbone.as_deref(), &arguments.configuration)?;
    let device = arguments.device.open()?;
    let options = options(arguments);
    arguments.planes.check(model.metadata().unet.in_channels)?;
    let range = arguments.range.as_ref().map_or_else(|| "model".to_owned(), ToString::to_string);
    let settings = format!(", range {range}{}", arguments.planes.settings());
    let maker = Maker::new(&model, &options, &settings)?;
    let classes = &model.metadata().classes;
    let mut work = Work {
        segmenter: Segmenter::new(&model, &device, options)?,
        classes: Classes {
            names: classes.iter().map(|class| class.name.clone()).collect(),
            colours: classes.iter().map(|class| class.colour).collect(),
        },
        reading: arguments.planes.options(arguments.mpp),
        notes: ImageNotes::for_segmenting(),
        token: interruption("stopping after what was begun"),
        progress: ItemProgress::new(files.len()),
        unknown_scale: 0,
        intensities: IntensityWarnings::default(),
    };
    if arguments.mpp.is_some() && model.metadata().microns_per_pixel.is_none() {
        warn("the model does not know at what pixel size it was fitted: --mpp changes nothing");
    }
    Outputs::prepare(output, wanted)?;

    let began = Instant::now();
    let (mut unsaid, mut left) = (0, files.len());
    for (index, (ImageFile { path: input, .. }, targets)) in files.into_iter().zip(targets).enumerate() {
        work.progress.begin(index);
        let outcome = work.outcome(&input, targets, &maker, arguments.force, &mut unsaid);
        if matches!(outcome, Err(CliError::Library(Error::Cancelled))) {
            break;
        }
        images.push(ImageReport { input, outcome: outcome? });
        left -= 1;
        if work.token.is_cancelled() {
            break;
        }
    }
    work.progress.finish();
    if unsaid > 0 {
        warn(format!(
            "{unsaid} label files in {} do not say what made them and were kept (--force replaces them)",
            output.display()
        ));
    }
    if work.unknown_scale > 0
        && let Some(microns) = model.metadata().microns_per_pixel
    {
        warn(format!(
            "{} images do not say how large their pixels are and were taken as they are; the model's are {microns} um: give --mpp if theirs differ",
            work.unknown_scale
        ));
    }
    work.intensities.say(true);
    let mut summary = Summary::of(images, began.elapsed().as_secs_f64(), &device, &model);
    summary.intensity_warnings = work.intensities;
    if arguments.json {
        print_json(&summary)?;
    } else {
        print(&summary.in_words(output))?;
    }
    if left > 0 {
        return Err(CliError::Interrupted(
            "interrupted; the same command goes on where it stopped".to_owned(),
        ));
    }
    if summary.failed == 0 { Ok(()) } else { Err(summary.failures()) }
}

fn options(arguments: &Arguments) -> SegmentOptions {
    let defaults = SegmentOptions::default();
    SegmentOptions {
        microns_per_pixel: arguments.mpp,
        range: arguments.range.clone(),
        batch: arguments.batch,
        window: arguments.window,
        overlap: arguments.overlap,
        combine: if arguments.vote { Combine::Vote } else { Combine::Mean },
        probabilities: arguments.probabilities,
        uncertainty: arguments.uncertainty,
        seed: arguments.seed,
        ..defaults
    }
}

/// Labels are named like their images: in one folder they would replace them, or be taken for images later.
fn check_apart(files: &[ImageFile], output: &Path) -> Result<()> {
    let in_output = |file: &&ImageFile| {
        let folder =
            file.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        same_place(folder, output)
    };
    match files.iter().find(in_output) {
        Some(file) => Err(usage(format!(
            "{}: lies in the output folder, where its labels would get in its way; choose another folder with -o",
            file.path.display()
        ))),
        None => Ok(()),
    }
}

struct Work {
    segmenter: Segmenter,
    classes: Classes,
    /// With the size of all images' pixels, if the command line says so.
    reading: ReadOptions,
    notes: ImageNotes,
    token: CancelToken,
    progress: ItemProgress,
    /// Images whose pixel size nobody knows.
    unknown_scale: usize,
    intensities: IntensityWarnings,
}

impl Work {
    /// Segments one image unless that was done. What is wrong with the image is an outcome; an error ends the whole command.
    fn outcome(
        &mut self,
        input: &Path,
        files: Outputs,
        maker: &Maker,
        force: bool,
        unsaid: &mut usize,
    ) -> Result<Outcome> {
        let provenance = match maker.of(input) {
            Ok(provenance) => provenance,
            Err(error) => return Ok(self.failed(error.to_string())),
        };
        let present = files.present(&provenance);
        if !force && matches!(present, Present::Done | Present::Unsaid) {
            *unsaid += usize::from(present == Present::Unsaid);
            return Ok(Outcome::Skipped { files });
        }
        self.segment(input, files, &provenance, matches!(present, Present::Stale | Present::Damaged))
    }

    fn failed(&self, error: String) -> Outcome {
        self.progress.suspend(|| eprintln!("error: {error}"));
        Outcome::Failed { error }
    }

    fn segment(
        &mut self,
        input: &Path,
        files: Outputs,
        provenance: &Provenance,
        replaced: bool,
    ) -> Result<Outcome> {
        let image = match read_image(input, &self.reading) {
            Ok(image) => image,
            Err(error) => return Ok(self.failed(error.to_string())),
        };
        self.progress.suspend(|| self.notes.look(input, &image));
        let report = |progress: mdm::Progress| self.progress.windows(progress.done, progress.total);
        let control = Control::none().with_progress(&report).with_cancel(&self.token);
        let result = match image.view().and_then(|view| self.segmenter.segment(&view, &control)) {
            Ok(result) => result,
            // The command line's fault, and every image's.
            Err(error @ Error::Invalid { what: "microns per pixel", .. })
                if self.reading.microns_per_pixel.is_some() =>
            {
                return Err(error.into());
            }
            Err(error @ (Error::Image(_) | Error::Invalid { .. } | Error::OutOfMemory(_))) => {
                let error = stated_by_file(error, &image, self.reading.microns_per_pixel);
                return Ok(self.failed(format!("{}: {error}", input.display())));
            }
            Err(error) => return Err(error.into()),
        };
        self.unknown_scale += usize::from(result.report.scaling == Scaling::ImageUnknown);
        for warning in &result.report.intensities.warnings {
            // An empty field of view is nothing unusual.
            if !matches!(warning, IntensityWarning::NoContrast { .. }) {
                self.intensities.add(&input.to_string_lossy(), warning);
            }
        }
        let microns = image.microns_per_pixel;
        files.write(&image, &result, &self.classes, microns, provenance)?;
        Ok(Outcome::Done {
            files,
            replaced,
            width: result.width,
            height: result.height,
            microns_per_pixel: microns,
            scale: result.report.scale,
            windows: result.report.windows,
            intensity_limits: result.report.intensities.limits,
            seconds: result.report.seconds,
            cover: cover(&result.labels, self.segmenter.classes()),
        })
    }
}

fn cover(labels: &[u8], classes: usize) -> Vec<f64> {
    let mut counts = [0u64; 256];
    for label in labels {
        counts[usize::from(*label)] += 1;
    }
    counts[..classes].iter().map(|count| *count as f64 / labels.len() as f64).collect()
}

impl Summary {
    fn of(images: Vec<ImageReport>, seconds: f64, device: &mdm::Device, model: &mdm::model::Model) -> Self {
        let mut summary = Self {
            done: 0,
            skipped: 0,
            replaced: 0,
            failed: 0,
            windows: 0,
            seconds,
            windows_per_second: 0.0,
            used: UsedDevice::of(device),
            classes: model.metadata().classes.iter().map(|class| class.name.clone()).collect(),
            intensity_warnings: IntensityWarnings::default(),
            images: Vec::new(),
        };
        for image in &images {
            match &image.outcome {
                Outcome::Done { windows, replaced, .. } => {
                    summary.done += 1;
                    summary.replaced += usize::from(*replaced);
                    summary.windows += windows;
                }
                Outcome::Skipped { .. } => summary.skipped += 1,
                Outcome::Failed { .. } => summary.failed += 1,
            }
        }
        summary.windows_per_second = summary.windows as f64 / seconds.max(1e-9);
        summary.images = images;
        summary
    }

    fn in_words(&self, output: &Path) -> String {
        let mut text = format!("{} images segmented into {}", self.done, output.display());
        if self.done > 0 {
            text += &format!(" in {:.1} s, {:.2} windows/s", self.seconds, self.windows_per_second);
        }
        if self.replaced > 0 {
            text += &format!(
                "; {} of them had results of another model, image or settings, or damaged ones, which were replaced",
                self.replaced
            );
        }
        if self.skipped > 0 {
            text += &format!("; {} were done before and skipped (--force segments them again)", self.skipped);
        }
        text
    }

    fn failures(&self) -> CliError {
        let failed: Vec<String> = self
            .images
            .iter()
            .filter(|image| matches!(image.outcome, Outcome::Failed { .. }))
            .map(|image| format!("\n  {}", image.input.display()))
            .collect();
        CliError::Failed(format!(
            "{} of {} inputs failed:{}",
            failed.len(),
            self.images.len(),
            failed.concat()
        ))
    }
}
