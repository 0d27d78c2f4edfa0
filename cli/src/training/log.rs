//! A line of JSON for each step.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, failed};
use crate::files::write_file;

/// What is written of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) gradient_norm: f64,
    pub(crate) learning_rate: f64,
    /// Of this step.
    pub(crate) images_per_second: f64,
    /// Spent in steps since the run began.
    pub(crate) seconds: f64,
    /// Of this step's seconds, those in which the device waited for images.
    pub(crate) waited: f64,
    /// False where a gradient was too large for the number format and the step changed nothing.
    pub(crate) applied: bool,
}

pub(crate) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens `log.jsonl` in `folder` without the lines that come after step `step`, which are going to be written again.
    pub(crate) fn open(folder: &Path, step: u64) -> Result<Self> {
        #[derive(Deserialize)]
        struct Numbered {
            step: u64,
        }
        let path = folder.join("log.jsonl");
        if let Ok(text) = fs::read_to_string(&path) {
            let kept: Vec<&str> = text
                .lines()
                .filter(|line| serde_json::from_str(line).is_ok_and(|line: Numbered| line.step <= step))
                .collect();
            if kept.len() < text.lines().count() {
                let mut text = kept.join("\n");
                if !text.is_empty() {
                    text.push('\n');
                }
                write_file(&path, text.as_bytes())?;
            }
        }
        let cannot = |error: std::io::Error| failed(&path, format!("cannot be opened: {error}"));
        let file = File::options().create(true).append(true).open(&path).map_err(cannot)?;
        Ok(Self { file, path })
    }

    pub(crate) fn write(&mut self, line: &Line) -> Result<()> {
        let cannot =
            |error: &dyn std::fmt::Display| failed(&self.path, format!("cannot be written: {error}"));
        let mut text = serde_json::to_string(line).map_err(|error| cannot(&error))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|error| cannot(&error))
    }
}
