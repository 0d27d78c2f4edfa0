//! What a segmentation was made of, so that it can be told later whether it is still the right one.

use std::path::Path;
use std::time::UNIX_EPOCH;

use mdm::model::Model;
use mdm::plan::Combine;
use mdm::segment::SegmentOptions;

use crate::error::{Result, failed};

/// Under which label PNGs keep it.
pub(crate) const KEYWORD: &str = "mdm segment";

/// Model, settings and image. The image is known by its size and time, so that nothing needs to be read.
#[derive(Clone, Debug)]
pub(crate) struct Provenance(String);

/// What all images of a run have in common.
pub(crate) struct Maker {
    model: String,
    settings: String,
}

impl Maker {
    /// `settings` is whatever else changes results.
    pub(crate) fn new(model: &Model, options: &SegmentOptions, settings: &str) -> Result<Self> {
        let combine = match options.combine {
            Combine::Vote => "vote",
            Combine::Mean => "mean",
        };
        let number = |value: Option<f64>| value.map_or_else(|| "model".to_owned(), |value| value.to_string());
        let window = options.window.map_or_else(|| "model".to_owned(), |window| window.to_string());
        let settings = format!(
            "mpp {}, window {window}, overlap {}, {combine}, seed {}{settings}",
            number(options.microns_per_pixel),
            number(options.overlap),
            options.seed
        );
        Ok(Self { model: identity(model)?, settings })
    }

    /// For one image.
    pub(crate) fn of(&self, image: &Path) -> Result<Provenance> {
        let cannot = |error: std::io::Error| failed(image, format!("cannot be opened: {error}"));
        let about = std::fs::metadata(image).map_err(cannot)?;
        let modified = about.modified().map_err(cannot)?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Provenance(format!(
            "model {}; {}; image of {} bytes, modified {}.{:09}",
            self.model,
            self.settings,
            about.len(),
            modified.as_secs(),
            modified.subsec_nanos()
        )))
    }
}

impl Provenance {
    /// In ASCII.
    pub(crate) fn text(&self) -> String {
        self.0.clone()
    }
}

/// Tells models apart: a hash of their heads, of what they say about themselves, and of the backbone's fingerprint.
fn identity(model: &Model) -> Result<String> {
    let metadata = model.metadata();
    let mut hash = blake3::Hasher::new();
    let backbone = match &metadata.backbone_fingerprint {
        Some(known) => known.clone(),
        None => model.fingerprint()?,
    };
    hash.update(backbone.as_bytes());
    hash.update(format!("{metadata:?}").as_bytes());
    for head in model.heads() {
        for (_, _, values) in head.tensors("") {
            for value in values {
                hash.update(&value.to_le_bytes());
            }
        }
    }
    Ok(hash.finalize().to_hex()[..16].to_owned())
}
