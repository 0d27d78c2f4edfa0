//! The `mdm` command: segments microscopy images from a few labels.

mod arguments;
mod commands;
mod demo;
mod error;
mod files;
mod images;
mod operations;
mod output;
mod progress;

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

  mdm fit     --backbone nuclei.safetensors --images some/images --labels some/labels -o my-cells.safetensors
  mdm segment --model my-cells.safetensors more/images -o out/
  mdm eval    --prediction out/ --truth more/labels

`mdm demo -o demo/` shows all of it on an image it draws itself. `mdm COMMAND --help` explains a command.
Exit codes: 0 all went well, 1 something failed, 2 wrong usage.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Measure how well predicted labels agree with true ones
    Eval(commands::eval::Arguments),
    /// List what this machine can compute on
    Devices(commands::devices::Arguments),
    /// Measure how fast this machine is
    Bench(commands::bench::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Eval(arguments) => commands::eval::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
        Command::Devices(arguments) => commands::devices::run(&arguments),
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
