//! `mdm export`: a backbone from a training run.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mdm::model::{Model, Save, StoredType};
use mdm_train::pretrain::Checkpoint;

use crate::arguments::microns;
use crate::commands::info::describe;
use crate::error::{Result, usage};
use crate::files::writable_file;
use crate::output::{print, print_json};
use crate::training::{CHECKPOINT, Notes};

const EXAMPLES: &str = "\
Takes the moving average of the parameters that a run keeps, which makes better features than the parameters of its last step. A run may be exported while it trains.

Examples:
  mdm export run/ -o backbone.safetensors
  mdm export run/ -o small.safetensors --type f16 --description \"nuclei, 2018 Data Science Bowl (CC0)\"
  mdm fit --backbone backbone.safetensors --images images/ --labels labels/ -o cells.safetensors";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A run's folder, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Backbone file to write
    #[arg(short, long = "output", value_name = "FILE")]
    output: PathBuf,

    /// How numbers are stored: f16 halves the file and changes results by about a thousandth
    #[arg(long = "type", value_enum, value_name = "TYPE", default_value = "f32")]
    stored: TypeArgument,

    /// Which of the run's moving averages, by its rate as given to --ema, or "none" for the parameters themselves [default: the
    /// first]
    #[arg(long, value_name = "RATE")]
    ema: Option<String>,

    /// Size of a pixel of the images it was trained on, in micrometres [default: the run's --mpp]
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    mpp: Option<f64>,

    /// A sentence on where the weights come from, kept in the file [default: what is known of the run]
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TypeArgument {
    F32,
    F16,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let path = if arguments.run.is_dir() { arguments.run.join(CHECKPOINT) } else { arguments.run.clone() };
    if !path.exists() {
        return Err(usage(format!("{}: there is no such checkpoint; name a run's folder", path.display())));
    }
    let checkpoint = Checkpoint::open(&path)?;
    writable_file(&arguments.output)?;
    let rates = &checkpoint.recipe().ema_rates;
    let average = match arguments.ema.as_deref() {
        None => Some(0),
        Some("none") => None,
        Some(text) => {
            let rate = text.parse::<f64>().ok();
            let known = rates.iter().position(|known| Some(*known) == rate);
            Some(known.ok_or_else(|| {
                usage(format!(
                    "--ema {text}: the run keeps averages with rates {rates:?}, and \"none\" is possible"
                ))
            })?)
        }
    };
    let description =
        arguments.description.clone().unwrap_or_else(|| Notes::of(&checkpoint).description(&checkpoint));
    let mut model = checkpoint.backbone(average, &description)?;
    if arguments.mpp.is_some() {
        let metadata = mdm::model::Metadata { microns_per_pixel: arguments.mpp, ..model.metadata().clone() };
        model = model.with_heads(metadata, Vec::new())?;
    }
    let stored = match arguments.stored {
        TypeArgument::F32 => StoredType::F32,
        TypeArgument::F16 => StoredType::F16,
    };
    model.save(&arguments.output, Save { backbone: Some(stored), heads: false })?;
    let report = describe(&Model::open(&arguments.output)?, &arguments.output)?;
    if arguments.json { print_json(&report) } else { print(&report.in_words()) }
}
