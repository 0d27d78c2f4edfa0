//! The files that one segmented image leaves.

use std::path::{Path, PathBuf};

use mdm::segment::Segmentation;
use serde::Serialize;

use crate::error::Result;
use crate::files::{stage, stem, writable_folder};
use mdm_images::{Image, write_grey, write_overlay, write_planes};

/// Which files are wanted beside the labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) overlay: bool,
    pub(crate) probabilities: bool,
    pub(crate) uncertainty: bool,
}

/// Where the results of one image go. Only label PNGs lie in the folder itself, so that it can be evaluated as it is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outputs {
    pub(crate) labels: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlay: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) probabilities: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uncertainty: Option<PathBuf>,
}

impl Outputs {
    /// The files for the image at `input`.
    pub(crate) fn of(input: &Path, folder: &Path, wanted: Wanted) -> Self {
        let name = stem(input);
        let extra = |wanted: bool, kind: &str, ending: &str| {
            wanted.then(|| folder.join(kind).join(format!("{name}.{ending}")))
        };
        Self {
            labels: folder.join(format!("{name}.png")),
            overlay: extra(wanted.overlay, "overlays", "png"),
            probabilities: extra(wanted.probabilities, "probabilities", "tif"),
            uncertainty: extra(wanted.uncertainty, "uncertainty", "tif"),
        }
    }

    /// Creates the folders of all wanted files and makes sure that they can be written to.
    pub(crate) fn prepare(folder: &Path, wanted: Wanted) -> Result<()> {
        writable_folder(folder)?;
        for (wanted, kind) in [
            (wanted.overlay, "overlays"),
            (wanted.probabilities, "probabilities"),
            (wanted.uncertainty, "uncertainty"),
        ] {
            if wanted {
                writable_folder(&folder.join(kind))?;
            }
        }
        Ok(())
    }

    /// Whether all of them exist.
    pub(crate) fn done(&self) -> bool {
        self.labels.is_file()
            && [&self.overlay, &self.probabilities, &self.uncertainty]
                .into_iter()
                .flatten()
                .all(|f| f.is_file())
    }

    /// Writes all files in full, and only then gives them their names, the labels' last.
    pub(crate) fn write(&self, image: &Image, result: &Segmentation, colours: &[[u8; 3]]) -> Result<()> {
        let (width, height) = (result.width, result.height);
        let mut staged = Vec::new();
        if let Some(path) = &self.overlay {
            staged.push(stage(path, |out| write_overlay(out, image, &result.labels, colours))?);
        }
        for (path, values) in
            [(&self.probabilities, &result.probabilities), (&self.uncertainty, &result.uncertainty)]
        {
            if let (Some(path), Some(values)) = (path, values) {
                let planes = values.len() / (width * height);
                staged.push(stage(path, |out| write_planes(out, width, height, planes, values))?);
            }
        }
        staged.push(stage(&self.labels, |out| write_grey(out, width, height, &result.labels))?);
        staged.into_iter().try_for_each(crate::files::Staged::commit)
    }
}
