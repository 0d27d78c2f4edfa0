//! `mdm fit`: heads from a few labelled images.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mdm::Control;
use mdm::model::{Class, FeatureConfig, Model, Save, StoredType};
use mdm::segment::FeatureOptions;
use mdm_train::metrics::Scores;
use mdm_train::{FitOptions, FitReport, LabelledImage, LabelledImages, fit};
use serde::Serialize;

use crate::arguments::{ConfigurationArguments, DeviceArguments, Numbers, microns, part, positive};
use crate::error::{CliError, Result, usage, warn};
use crate::files::writable_file;
use crate::labelled::{Census, Pair, pairs};
use crate::model::open_model;
use crate::output::{Table, print, print_json};
use crate::progress::StepProgress;

const EXAMPLES: &str = "\
Labels are PNG files named like their image (cells-1.tif: cells-1.png), whose pixels are class indices: 0 (usually
background), 1, 2 ... and 255 where nothing is labelled. A few strokes in each class are enough to begin with.

The backbone describes the pixels and stays as it is; what is fitted are small networks, the heads, that tell the
classes apart. The model file holds both (heads alone with --heads-only) and is what `mdm segment --model` takes.

Examples:
  mdm fit --backbone nuclei.safetensors --images images/ --labels labels/ -o my-cells.safetensors
  mdm fit --backbone nuclei.safetensors --images images/ --labels scribbles/ --mpp 0.32 \\
          --classes background,nucleus,debris --ensemble 10 -o my-cells.safetensors";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Backbone: a model file or a guided-diffusion state dict (.safetensors)
    #[arg(long, value_name = "FILE")]
    backbone: PathBuf,

    /// Images: a folder, a file, or a pattern such as "plate*/*.tif"
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    images: Vec<PathBuf>,

    /// Label PNGs: a folder, or the file for a single image
    #[arg(long, value_name = "PATH")]
    labels: PathBuf,

    /// Model file to write
    #[arg(short, long = "output", value_name = "FILE")]
    output: PathBuf,

    /// Size of an image pixel in micrometres, whatever the files say
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    mpp: Option<f64>,

    /// Names of the classes in the order of their index
    #[arg(long, value_name = "NAME,NAME...", value_delimiter = ',')]
    classes: Vec<String>,

    /// Write the heads without the backbone: a small file; `mdm segment` then needs --backbone
    #[arg(long)]
    heads_only: bool,

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

    /// Decoder blocks whose activations describe a pixel, such as 8..12 or 5,8,12 [default: the backbone's]
    #[arg(long, value_name = "BLOCKS", help_heading = "Method")]
    blocks: Option<Numbers>,

    /// Diffusion timesteps at which they are taken, such as 50,150,250 [default: the backbone's]
    #[arg(long, value_name = "STEPS", help_heading = "Method")]
    timesteps: Option<Numbers>,

    /// Divide a window's features by their norm
    #[arg(long, help_heading = "Method")]
    normalise: bool,

    /// Hide part of the image from the network, as in its training [default: the backbone's]
    #[arg(long, overrides_with = "no_hide", help_heading = "Method")]
    hide: bool,

    /// Hide nothing; the network is only told the timestep
    #[arg(long, help_heading = "Method")]
    no_hide: bool,

    /// Side of the sliding window in pixels at the model's scale [default: the backbone's]
    #[arg(long, value_name = "PIXELS", value_parser = positive, help_heading = "Method")]
    window: Option<usize>,

    /// Part of a window shared with its neighbour [default: the backbone's]
    #[arg(long, value_name = "PART", value_parser = part, help_heading = "Method")]
    overlap: Option<f64>,

    /// Windows at a time: more may be faster and take more memory
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Computing")]
    batch: Option<usize>,

    #[command(flatten)]
    device: DeviceArguments,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    configuration: ConfigurationArguments,
}

#[derive(Serialize)]
struct Report {
    model: PathBuf,
    images: usize,
    classes: Vec<ClassReport>,
    heads: usize,
    /// On the pixels that were fitted.
    training: ScoresReport,
    /// Of a trial without these labels; absent where there were too few or it was not wanted.
    held_out: Option<ScoresReport>,
    seconds: f64,
}

#[derive(Serialize)]
struct ClassReport {
    name: String,
    /// Over all images.
    labelled_pixels: u64,
}
