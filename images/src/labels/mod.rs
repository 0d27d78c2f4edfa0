//! Label files: PNG and TIFF files whose pixels are numbers of classes or objects.

mod colours;
mod png;
mod stored;
#[cfg(test)]
mod tests;
mod tiff;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Result, failed};
use crate::guard::guarded;

pub use colours::LabelColours;

/// The index of pixels that nobody labelled.
pub const UNLABELLED: u8 = 255;

/// What stands in [`Numbers::Wide`] for pixels that nobody labelled.
pub const UNLABELLED_WIDE: u32 = u32::MAX;

/// Class indices, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`.
    pub values: Vec<u8>,
}

/// The numbers that a label file holds, before it is decided whether they count classes or objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelNumbers {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`.
    pub numbers: Numbers,
    /// Pixels that are unlabelled because they are transparent.
    pub transparent: u64,
}

/// Numbers of pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// None is above 255; [`UNLABELLED`] is the index of pixels that nobody labelled.
    Bytes(Vec<u8>),
    /// Some are above 255, so 255 is a number like any other; [`UNLABELLED_WIDE`] is where nobody labelled.
    Wide(Vec<u32>),
}

/// Reads the numbers in a label file: the indices of a palette, the grey values of others, or what `colours` makes of the
/// colours that are seen.
///
/// A palette of greys is read as these greys where they number something: programs that make PNG files smaller write such
/// palettes, and number their entries as they like. Transparent pixels are unlabelled.
///
/// # Errors
/// Files that are damaged or neither PNG nor TIFF, colour pictures without `colours`, colours that it does not
/// name, and pixels that are partly transparent.
pub fn read_label_numbers(path: &Path, colours: Option<&LabelColours>) -> Result<LabelNumbers> {
    guarded(path, || stored(path)?.numbers(path, colours))
}

fn stored(path: &Path) -> Result<stored::Stored> {
    if path.is_dir() {
        return Err(failed(path, "is a folder, not a label file"));
    }
    let mut start = [0; 4];
    let file = File::open(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?;
    let mut read = Vec::new();
    file.take(4).read_to_end(&mut read).map_err(|error| failed(path, format!("cannot be read: {error}")))?;
    start[..read.len()].copy_from_slice(&read);
    match &start {
        b"\x89PNG" => png::read(path),
        b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+" => tiff::read(path),
        [0, 0, 0, 0] if read.is_empty() => Err(failed(path, "is empty")),
        [0xFF, 0xD8, 0xFF, _] => Err(failed(
            path,
            "is a JPEG, which does not keep numbers as they are; save labels as PNG or TIFF",
        )),
        _ => Err(failed(
            path,
            "is neither PNG nor TIFF; labels are such files of class indices, named like their image",
        )),
    }
}

/// Reads class indices.
///
/// # Errors
/// As [`read_label_numbers`], and where a number is above 255.
pub fn read_labels(path: &Path) -> Result<Labels> {
    read_label_numbers(path, None)?.into_classes(path)
}

impl LabelNumbers {
    /// The numbers as class indices.
    ///
    /// # Errors
    /// Where a number is no class index; `path` is what the message names.
    pub fn into_classes(self, path: &Path) -> Result<Labels> {
        match self.numbers {
            Numbers::Bytes(values) => Ok(Labels { width: self.width, height: self.height, values }),
            Numbers::Wide(numbers) => {
                let largest = numbers.iter().filter(|number| **number != UNLABELLED_WIDE).max();
                Err(failed(
                    path,
                    format!(
                        "holds numbers up to {}; labels are class indices from 0 to 254, and 255 where nothing is labelled",
                        largest.copied().unwrap_or_default()
                    ),
                ))
            }
        }
    }
}
