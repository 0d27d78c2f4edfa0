//! Runs the built command on files made for the occasion.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Command, Output};

/// What a run of `mdm` left on the terminal.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// Asserts the exit code, and that standard error holds all of `words`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "exit code; standard error:\n{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in:\n{}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in:\n{}", self.out))
    }
}

/// Runs `mdm` in `folder`.
pub(crate) fn mdm(folder: &Path, arguments: &[&str]) -> Run {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_mdm"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the command starts");
    Run {
        code: output.status.code().expect("it ends by itself"),
        out: String::from_utf8(output.stdout).expect("results are text"),
        err: String::from_utf8(output.stderr).expect("messages are text"),
    }
}

/// A folder with subfolders.
pub(crate) fn folders(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder for the test");
    for name in names {
        std::fs::create_dir_all(folder.path().join(name)).expect("a subfolder for the test");
    }
    folder
}

/// Writes an 8-bit PNG of grey values or palette indices.
pub(crate) fn write_png(path: &Path, width: usize, color: png::ColorType, values: &[u8]) {
    write_png_of_depth(path, width, values.len() / width / color.samples(), color, png::BitDepth::Eight, values);
}

/// Writes a PNG from packed rows.
pub(crate) fn write_png_of_depth(
    path: &Path,
    width: usize,
    height: usize,
    color: png::ColorType,
    depth: png::BitDepth,
    bytes: &[u8],
) {
    let file = std::fs::File::create(path).expect("a file for the test");
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        let colours = 1usize << (depth as usize);
        // Colours unlike their indices.
        encoder.set_palette((0..3 * colours).map(|value| (251 - value % 200) as u8).collect::<Vec<_>>());
    }
    encoder.write_header().and_then(|mut writer| writer.write_image_data(bytes)).expect("a PNG for the test");
}

/// Writes class indices as grey values.
pub(crate) fn write_labels(path: &Path, width: usize, labels: &[u8]) {
    write_png(path, width, png::ColorType::Grayscale, labels);
}
