//! The `mdm` command.

mod demo;
mod error;
mod files;
mod images;
mod output;
mod progress;

fn main() {}
