//! `mdm import`: checkpoints of other programs as model files.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mdm::model::import::read_checkpoint;
use mdm::model::{Head, Model, Save, StoredType};
use mdm_images::same_place;

use crate::arguments::{ConfigurationArguments, FeatureArguments, microns};
use crate::commands::fit::{check_names, classes};
use crate::commands::info::describe;
use crate::error::{CliError, Result, usage};
use crate::files::writable_file;
use crate::model::{options, tell_assumptions};
use crate::output::{print, print_json};

const EXAMPLES: &str = "\
Reads PyTorch checkpoints (.pt, .pth) without Python and without running what is in them, and .safetensors files. Given together, a UNet's state dict and MLP heads fitted on it become one model file.

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

    /// Start of the tensors' names of the UNet, where a checkpoint holds several, for example "ema."
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,

    /// Size of a pixel of the images it was trained on, in micrometres
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    mpp: Option<f64>,

    /// Names of the classes of imported heads, in the order of their index
    #[arg(long, value_name = "NAME,NAME...", value_delimiter = ',')]
    classes: Vec<String>,

    /// A sentence on where the weights come from, kept in the file
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    features: FeatureArguments,

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

impl TypeArgument {
    fn stored(self) -> StoredType {
        match self {
            Self::AsIs => StoredType::AsIs,
            Self::F32 => StoredType::F32,
            Self::F16 => StoredType::F16,
            Self::Bf16 => StoredType::Bf16,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(input) = arguments.inputs.iter().find(|input| same_place(input, &arguments.output)) {
        return Err(usage(format!("{}: is input and output; choose another name with -o", input.display())));
    }
    check_names(&arguments.classes)?;
    writable_file(&arguments.output)?;
    let model = with_settings(assembled(arguments)?, arguments)?;
    tell_assumptions(&model);
    let save = Save { backbone: Some(arguments.stored.stored()), heads: !model.heads().is_empty() };
    model.save(&arguments.output, save)?;
    let written = Model::open(&arguments.output)?;
    let report = describe(&written, &arguments.output)?;
    if arguments.json { print_json(&report) } else { print(&report.in_words()) }
}

/// One model from all inputs.
fn assembled(arguments: &Arguments) -> Result<Model> {
    let mut options = options(&arguments.configuration)?;
    options.prefix.clone_from(&arguments.prefix);
    options.microns_per_pixel = arguments.mpp;
    let (mut backbones, mut heads): (Vec<&Path>, Vec<Head>) = (Vec::new(), Vec::new());
    for input in &arguments.inputs {
        let checkpoint = read_checkpoint(input)?;
        let (is_backbone, has_heads) = (!checkpoint.backbones().is_empty(), !checkpoint.heads().is_empty());
        if is_backbone {
            backbones.push(input);
        }
        // A file with neither is told so.
        if has_heads || !is_backbone {
            heads.extend(checkpoint.into_heads()?);
        }
    }
    let [backbone] = backbones.as_slice() else {
        return Err(match backbones.as_slice() {
            [first, second, ..] => usage(format!(
                "{} and {} both hold a UNet; import them one by one",
                first.display(),
                second.display()
            )),
            _ => CliError::Failed(
                "there are heads, but no UNet: name the file of the UNet that they were fitted on as well"
                    .to_owned(),
            ),
        });
    };
    // A model file knows what its heads are.
    if let ([only], Ok(model)) = (arguments.inputs.as_slice(), Model::open(backbone))
        && !model.heads().is_empty()
        && only == backbone
    {
        return Ok(model);
    }
    let model = read_checkpoint(backbone)?.into_backbone(&options)?;
    if heads.is_empty() {
        return Ok(model);
    }
    let mut metadata = model.metadata().clone();
    metadata.features = arguments.features.config(&metadata);
    metadata.classes = classes(&arguments.classes, heads[0].classes());
    Ok(model.with_heads(metadata, heads)?)
}

/// The model with what the command line says about it.
fn with_settings(model: Model, arguments: &Arguments) -> Result<Model> {
    let mut metadata = model.metadata().clone();
    let features = &arguments.features;
    metadata.features = features.config(&metadata);
    metadata.window = features.window.unwrap_or(metadata.window);
    metadata.overlap = features.overlap.unwrap_or(metadata.overlap);
    metadata.microns_per_pixel = arguments.mpp.or(metadata.microns_per_pixel);
    if let Some(corrupt) = features.corrupt() {
        metadata.corruption.corrupt_features = corrupt;
    }
    if let Some(description) = &arguments.description {
        metadata.description.clone_from(description);
    }
    if metadata == *model.metadata() {
        return Ok(model);
    }
    let heads = model.heads().to_vec();
    Ok(model.with_heads(metadata, heads)?)
}
