//! The `mdm` command: segments microscopy images from a few labels.

mod arguments;
mod commands;
mod demo;
mod device;
mod error;
mod files;
mod intensities;
mod interruption;
mod labelled;
mod model;
mod operations;
mod output;
mod outputs;
mod planes;
mod progress;
mod provenance;
mod training;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::CliError;

/// Segments microscopy images from a handful of labels.
#[derive(Parser, Debug)]
#[command(name = "mdm", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Label a few images (PNG files of class indices, 255 where nothing is labelled), then:

  mdm fit     --backbone nuclei.safetensors --images images/ --labels labels/ -o cells.safetensors
  mdm segment --model cells.safetensors more/images -o out/
  mdm eval    --prediction out/ --truth more/labels

`mdm demo -o demo/` shows all of it on an image it draws itself. `mdm COMMAND --help` explains a command. Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 130 interrupted.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Fit a model to a few labelled images
    Fit(Box<commands::fit::Arguments>),
    /// Segment images with a fitted model
    Segment(Box<commands::segment::Arguments>),
    /// Measure how well predicted labels agree with true ones
    Eval(commands::eval::Arguments),
    /// Train a backbone on images without labels
    Pretrain(Box<commands::pretrain::Arguments>),
    /// Turn a training run into a backbone that `mdm fit` takes
    Export(commands::export::Arguments),
    /// See all of it work on images that are drawn for it
    Demo(commands::demo::Arguments),
    /// Tell what a model file is
    Info(Box<commands::info::Arguments>),
    /// Turn PyTorch checkpoints into a model file
    Import(Box<commands::import::Arguments>),
    /// List what this machine can compute on
    Devices(commands::devices::Arguments),
    /// Measure how fast this machine is
    Bench(commands::bench::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Fit(arguments) => commands::fit::run(&arguments),
        Command::Segment(arguments) => commands::segment::run(&arguments),
        Command::Eval(arguments) => commands::eval::run(&arguments),
        Command::Pretrain(arguments) => commands::pretrain::run(&arguments),
        Command::Export(arguments) => commands::export::run(&arguments),
        Command::Demo(arguments) => commands::demo::run(&arguments),
        Command::Info(arguments) => commands::info::run(&arguments),
        Command::Import(arguments) => commands::import::run(&arguments),
        Command::Devices(arguments) => commands::devices::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CliError::Reported) {
                eprintln!("error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
