//! `mdm demo`: the main job on material that needs no download.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mdm::Control;
use mdm::model::{Model, Save, StoredType};
use mdm::segment::{SegmentOptions, Segmenter};
use mdm_train::metrics::Scores;
use serde::Serialize;

use crate::arguments::DeviceArguments;
use crate::commands::fit::{fit_pairs, named_classes};
use crate::demo::{Field, draw_nuclei, scribble};
use crate::error::Result;
use crate::files::{stage, write_file, writable_folder};
use crate::images::{read_image, write_grey, write_labels, write_overlay};
use crate::labelled::Pair;
use crate::output::{print, print_json};

const EXAMPLES: &str = "\
Draws a microscope image of fluorescent nuclei and scribbles a few labels on it, fits a model to them with the backbone
that comes with mdm, and segments a second image, whose truth is known. It leaves in DIR

  labelled.png           the image that is labelled
  labels.png             its labels: 0 background, 1 nucleus, 255 not labelled
  backbone.safetensors   the backbone, for your own images of fluorescent nuclei
  model.safetensors      the fitted model
  image.png              the image that is segmented
  mask.png               its segmentation, nuclei in white
  overlay.png            the same, outlined on the image

Example:
  mdm demo -o demo/";

/// The backbone trained on the Data Science Bowl 2018's images, which are in the public domain (CC0).
const BACKBONE: &[u8] = include_bytes!("../../../assets/mdm_nuclei_32.safetensors");

/// Sides of the two images and numbers of nuclei on them.
const LABELLED: (usize, usize) = (320, 32);
const SEGMENTED: (usize, usize) = (512, 78);

/// Strokes of each class.
const STROKES: usize = 16;

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
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
