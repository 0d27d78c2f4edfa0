//! `mdm import`: checkpoints of other programs as model files.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mdm::model::{Save, StoredType, import};

use crate::arguments::ConfigurationArguments;
use crate::error::Result;
use crate::files::writable_file;
use crate::output::print;

const EXAMPLES: &str = "\
Reads PyTorch checkpoints (.pt, .pth) without Python and without running what is in them, and .safetensors files.
Given together, a UNet's state dict and MLP heads fitted on it become one model file.

Names and shapes tell most of a UNet's configuration; --preset, --config or the flags below tell the rest.

Examples:
  mdm import mdm_nuclei.pt -o nuclei.safetensors --preset mdm-paper
  mdm import 256x256_diffusion_uncond.pt -o imagenet.safetensors --preset guided-diffusion-256 --type f16
  mdm import unet.pth model_0.pth model_1.pth -o cells.safetensors";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Checkpoints: one UNet, and heads fitted on it
    #[arg(value_name = "FILE", required = true)]
    inputs: Vec<PathBuf>,

    /// Model file to write
    #[arg(short, long = "output", value_name = "FILE")]
    output: PathBuf,

    /// How numbers are stored: f16 halves the file and changes results by about a thousandth
    #[arg(long = "type", value_enum, value_name = "TYPE", default_value = "as-is")]
    stored: TypeArgument,

    #[command(flatten)]
    configuration: ConfigurationArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TypeArgument {
    /// As in the input
    AsIs,
    F32,
    F16,
    Bf16,
}
