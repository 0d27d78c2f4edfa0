//! `mdm demo`: the main job on material that needs no download.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mdm::model::{Model, Save, StoredType};
use mdm::segment::{FeatureOptions, SegmentOptions, Segmenter};
use mdm::{CancelToken, Control};
use mdm_train::fit::FitOptions;
use mdm_train::metrics::Scores;
use serde::Serialize;

use crate::commands::fit::{Job, classes};
use crate::demo::{Field, draw_nuclei, scribble};
use crate::device::{CACHE_HELP, DeviceArguments, UsedDevice};
use crate::error::Result;
use crate::files::{stage, writable_folder, write_file};
use crate::labelled::{LabelArguments, Pair};
use crate::output::{print, print_json, quoted};
use mdm_images::{ReadOptions, UNLABELLED, read_image, write_coloured_labels, write_grey, write_overlay};

const EXAMPLES: &str = "\
Draws a microscope image of fluorescent nuclei and labels a few spots and strokes on it, fits a model to them with the backbone that comes with mdm, and segments a second image, whose truth is known. It leaves in DIR

  labelled.png           the image that is labelled
  labels.png             its labels: 0 background (black), 1 nucleus (white), 255 none (grey)
  backbone.safetensors   the backbone, for your own images of fluorescent nuclei
  model.safetensors      the fitted model
  image.png              the image that is segmented
  truth.png              what truly is on it
  mask.png               its segmentation, nuclei in white
  overlay.png            the same, outlined on the image

Example:
  mdm demo -o demo/";

/// The backbone trained on the Data Science Bowl 2018's images, which are in the public domain (CC0).
const BACKBONE: &[u8] = include_bytes!("../../../assets/mdm_nuclei_32.safetensors");

/// Sides of the two images and numbers of nuclei on them.
const LABELLED: (usize, usize) = (320, 32);
const SEGMENTED: (usize, usize) = (512, 78);

/// Size of the ensemble.
const HEADS: usize = 3;

/// Spots that are painted exactly.
const SPOTS: usize = 6;

/// Strokes of each class.
const STROKES: usize = 12;

#[derive(Args, Debug)]
#[command(after_help = format!("{EXAMPLES}\n\n{CACHE_HELP}"))]
pub(crate) struct Arguments {
    /// Folder for the files; created if need be
    #[arg(short, long = "output", value_name = "DIR")]
    output: PathBuf,

    /// Draws other images
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArguments,
}

#[derive(Serialize)]
struct Report {
    dice: f64,
    iou: f64,
    object_dice: f64,
    aji: f64,
    labelled_pixels: usize,
    fit_seconds: f64,
    segment_seconds: f64,
    seconds: f64,
    #[serde(flatten)]
    used: UsedDevice,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let folder = arguments.output.as_path();
    writable_folder(folder)?;
    let device = arguments.device.open()?;

    let labelled = draw_nuclei(2 * arguments.seed, LABELLED.0, LABELLED.0, LABELLED.1);
    let labels = scribble(&labelled, arguments.seed, SPOTS, STROKES);
    let pair = Pair {
        image: folder.join("labelled.png"),
        labels: folder.join("labels.png"),
        reading: LabelArguments::default(),
    };
    write_field(&pair.image, &labelled)?;
    write_classes(&pair.labels, &labelled, &labels)?;
    let unknown = draw_nuclei(2 * arguments.seed + 1, SEGMENTED.0, SEGMENTED.0, SEGMENTED.1);
    let image_file = folder.join("image.png");
    write_field(&image_file, &unknown)?;
    write_classes(&folder.join("truth.png"), &unknown, &unknown.truth)?;

    let fit_began = Instant::now();
    let backbone_file = folder.join("backbone.safetensors");
    write_file(&backbone_file, BACKBONE)?;
    let model = Job {
        backbone: &Model::open(&backbone_file)?,
        device: &device,
        pairs: &[pair],
        classes: classes(&["background".to_owned(), "nucleus".to_owned()], 2),
        features: FeatureOptions::default(),
        options: FitOptions { ensemble: HEADS, held_out: false, ..FitOptions::default() },
        reading: ReadOptions::default(),
        token: &CancelToken::new(),
    }
    .run()?
    .model;
    model.save(&folder.join("model.safetensors"), Save { backbone: Some(StoredType::AsIs), heads: true })?;
    let fit_seconds = fit_began.elapsed().as_secs_f64();

    let image = read_image(&image_file, &ReadOptions::default())?;
    let mut segmenter = Segmenter::new(&model, &device, SegmentOptions::default())?;
    let result = segmenter.segment(&image.view()?, &Control::none())?;
    write_classes(&folder.join("mask.png"), &unknown, &result.labels)?;
    let colours: Vec<[u8; 3]> = model.metadata().classes.iter().map(|class| class.colour).collect();
    stage(&folder.join("overlay.png"), |out| write_overlay(out, &image, &result.labels, &colours))?
        .commit()?;
    let scores = Scores::of_classes(&result.labels, &unknown.truth, unknown.width)?;
    let report = Report {
        dice: scores.dice,
        iou: scores.iou,
        object_dice: scores.object_dice,
        aji: scores.aji,
        labelled_pixels: labels.iter().filter(|label| **label != UNLABELLED).count(),
        fit_seconds,
        segment_seconds: result.report.seconds,
        seconds: began.elapsed().as_secs_f64(),
        used: UsedDevice::of(&device),
    };
    if arguments.json { print_json(&report) } else { print(&in_words(&report, folder)) }
}

fn in_words(report: &Report, folder: &Path) -> String {
    let share = 100.0 * report.labelled_pixels as f64 / (LABELLED.0 * LABELLED.0) as f64;
    let shown = folder.display();
    let file = |name: &str| quoted(&folder.join(name));
    let (backbone, labelled, labels) =
        (file("backbone.safetensors"), file("labelled.png"), file("labels.png"));
    let (image, truth) = (file("image.png"), file("truth.png"));
    format!(
        "Fitted {HEADS} heads on {} labelled pixels ({share:.1} % of one image) in {:.1} s,\n\
         segmented another image of {} x {} pixels in {:.1} s: Dice {:.4} against the known truth.\n\
         {:.1} s in all, on {}. The result is in {shown}; look at overlay.png.\n\
         \n\
         The same by hand:\n  \
         mdm fit --backbone {backbone} --images {labelled} --labels {labels} \
         -o my-model.safetensors\n  \
         mdm segment --model my-model.safetensors {image} -o out/\n  \
         mdm eval --prediction out/image.png --truth {truth}",
        report.labelled_pixels,
        report.fit_seconds,
        SEGMENTED.0,
        SEGMENTED.0,
        report.segment_seconds,
        report.dice,
        report.seconds,
        report.used.device.name
    )
}

fn write_field(path: &Path, field: &Field) -> Result<()> {
    stage(path, |out| write_grey(out, field.width, field.height, &field.pixels))?.commit()
}

/// Writes class indices that are visible in any viewer.
fn write_classes(path: &Path, field: &Field, labels: &[u8]) -> Result<()> {
    let colour = |index| match index {
        0 => [0, 0, 0],
        UNLABELLED => [90, 90, 90],
        _ => [255, 255, 255],
    };
    stage(path, |out| write_coloured_labels(out, field.width, field.height, labels, colour))?.commit()
}
