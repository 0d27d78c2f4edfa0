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
        serde_json::from_str(&self.out).expect("standard output is JSON")
    }
}

/// Runs `mdm` in `folder`. Nothing is kept in the user's caches.
pub(crate) fn mdm(folder: &Path, arguments: &[&str]) -> Run {
    mdm_with_cache(folder, "", arguments)
}

/// Runs `mdm` in `folder`, with a folder for compiled shaders.
pub(crate) fn mdm_with_cache(folder: &Path, cache: &str, arguments: &[&str]) -> Run {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_mdm"))
        .current_dir(folder)
        .env("MDM_CACHE", cache)
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
    write_png_of_depth(
        path,
        width,
        values.len() / width / color.samples(),
        color,
        png::BitDepth::Eight,
        values,
    );
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

/// Writes an RGB PNG.
pub(crate) fn write_rgb(path: &Path, width: usize, values: &[u8]) {
    write_png(path, width, png::ColorType::Rgb, values);
}

/// Writes a small backbone of random weights for images of 32 pixels.
pub(crate) fn backbone(path: &Path) {
    use mdm::model::{MapWeights, Metadata, Model, Save, StoredType, UnetConfig};
    let unet = UnetConfig {
        image_size: 32,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        num_head_channels: Some(32),
        ..UnetConfig::mdm_paper()
    };
    let mut weights = MapWeights::default();
    let mut state = 1u64;
    for (name, shape) in unet.parameters() {
        let fan_in: usize = shape[1..].iter().product();
        let reach = if shape.len() == 1 { 0.3 } else { (fan_in as f32).sqrt().recip() };
        let data = (0..shape.iter().product())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                reach * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            })
            .collect();
        weights.insert(name, &shape, data);
    }
    Model::from_parts(Metadata::new(unet), std::sync::Arc::new(weights), Vec::new())
        .and_then(|model| model.save(path, Save { backbone: Some(StoredType::F32), heads: false }))
        .expect("a backbone for the test");
}
