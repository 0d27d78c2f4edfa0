//! The files that one segmented image leaves.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mdm::segment::Segmentation;
use serde::Serialize;
use unicode_normalization::UnicodeNormalization;

use crate::error::{CliError, Result};
use crate::files::{Staged, stage, writable_folder};
use crate::output::{lossy, lossy_if_any};
use crate::provenance::{KEYWORD, Provenance};
use mdm_images::{Image, ImageFile, is_whole, png_note, write_labels, write_overlay, write_planes};

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
    #[serde(serialize_with = "lossy")]
    pub(crate) labels: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "lossy_if_any")]
    pub(crate) overlay: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "lossy_if_any")]
    pub(crate) probabilities: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "lossy_if_any")]
    pub(crate) uncertainty: Option<PathBuf>,
}

/// What is there of an image's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    /// Not all of it.
    Part,
    /// All of it, of this model and image and with these settings.
    Done,
    /// All of it, from labels that do not say what made them.
    Unsaid,
    /// All of it, but of another model, image or settings.
    Stale,
    /// A file that is empty or cut short.
    Damaged,
}

impl Outputs {
    /// The files for an image, in the subfolders in which it was found.
    pub(crate) fn of(input: &ImageFile, folder: &Path, wanted: Wanted) -> Self {
        let file = |folder: PathBuf, ending: &str| {
            let mut name = input.path.file_stem().unwrap_or_default().to_owned();
            name.push(".");
            name.push(ending);
            folder.join(&input.subfolder).join(name)
        };
        let extra = |wanted: bool, kind: &str, ending: &str| wanted.then(|| file(folder.join(kind), ending));
        Self {
            labels: file(folder.to_owned(), "png"),
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

    fn all(&self) -> impl Iterator<Item = &Path> {
        let extra = [&self.overlay, &self.probabilities, &self.uncertainty];
        std::iter::once(self.labels.as_path()).chain(extra.into_iter().flatten().map(PathBuf::as_path))
    }

    /// What is there already, for results of `wanted`.
    pub(crate) fn present(&self, wanted: &Provenance) -> Present {
        if !self.all().all(Path::is_file) {
            return Present::Part;
        }
        if !self.all().all(is_whole) {
            return Present::Damaged;
        }
        match png_note(&self.labels, KEYWORD) {
            None => Present::Unsaid,
            Some(note) if note == wanted.text() => Present::Done,
            Some(_) => Present::Stale,
        }
    }

    /// Writes all files in full, and only then gives them their names, the labels' last.
    ///
    /// `microns_per_pixel` is the size of the image's pixels, where it is known.
    pub(crate) fn write(
        &self,
        image: &Image,
        result: &Segmentation,
        classes: &Classes,
        microns_per_pixel: Option<f64>,
        provenance: &Provenance,
    ) -> Result<()> {
        let (width, height) = (result.width, result.height);
        for file in self.all() {
            if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
                writable_folder(folder)?;
            }
        }
        let mut staged = Vec::new();
        if let Some(path) = &self.overlay {
            staged.push(stage(path, |out| write_overlay(out, image, &result.labels, &classes.colours))?);
        }
        let names: Vec<&str> = classes.names.iter().map(String::as_str).collect();
        for (path, values, names) in [
            (&self.probabilities, &result.probabilities, names.as_slice()),
            (&self.uncertainty, &result.uncertainty, ["uncertainty"].as_slice()),
        ] {
            if let (Some(path), Some(values)) = (path, values) {
                staged.push(stage(path, |out| {
                    write_planes(out, width, height, names, microns_per_pixel, values)
                })?);
            }
        }
        let text = provenance.text();
        staged.push(stage(&self.labels, |out| {
            write_labels(out, width, height, &result.labels, Some((KEYWORD, &text)))
        })?);
        staged.into_iter().try_for_each(Staged::commit)
    }
}

/// How classes are named and drawn.
#[derive(Debug)]
pub(crate) struct Classes {
    pub(crate) names: Vec<String>,
    pub(crate) colours: Vec<[u8; 3]>,
}

/// Outputs are named after inputs: refuses inputs that would share one.
pub(crate) fn distinct(inputs: &[ImageFile], outputs: &[Outputs]) -> Result<()> {
    let mut seen: HashMap<String, &ImageFile> = HashMap::new();
    for (input, outputs) in inputs.iter().zip(outputs) {
        // File systems of Windows and macOS tell neither cases nor compositions of accents apart.
        let name: String = outputs.labels.to_string_lossy().nfc().collect();
        let name = if cfg!(any(windows, target_os = "macos")) { name.to_lowercase() } else { name };
        if let Some(other) = seen.insert(name, input) {
            return Err(CliError::Usage(format!(
                "{} and {} would have the same output; segment them into different folders",
                other.path.display(),
                input.path.display()
            )));
        }
    }
    Ok(())
}
