//! Which files belong together by their names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use unicode_normalization::UnicodeNormalization;

use crate::error::{CliError, Result};

/// What programs append to an image's name to name its labels.
const MARKS: [&str; 7] = ["cp_masks", "cp_mask", "masks", "mask", "labels", "label", "seg"];

/// A file's name without its ending, in one form whatever the system composes accents of.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().nfc().collect()
}

/// `cells` of `cells.ome`, which is left of `cells.ome.tif`.
fn without_format(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(4)?;
    let (start, end) = name.split_at_checked(at)?;
    (end.eq_ignore_ascii_case(".ome") && !start.is_empty()).then_some(start)
}

/// `cells` of `cells_mask`, `cells-labels` and so on.
fn without_mark(name: &str) -> Option<&str> {
    MARKS.iter().find_map(|mark| {
        let (start, end) = name.split_at_checked(name.len().checked_sub(mark.len())?)?;
        let start = start.strip_suffix(['_', '-', '.'])?;
        (end.eq_ignore_ascii_case(mark) && !start.is_empty()).then_some(start)
    })
}

/// Whether a file's name says that it holds labels of another one, and of which.
pub(crate) fn labels_of(path: &Path) -> Option<String> {
    without_mark(&stem(path)).map(str::to_owned)
}

/// Names under which a file is known, the truest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// By its own name.
    AsImage,
    /// Also without what marks it as a label file.
    AsLabels,
}

fn known_as(path: &Path, known: Known) -> Vec<String> {
    let name = stem(path);
    let mut names = vec![name.clone()];
    names.extend(without_format(&name).map(str::to_owned));
    if known == Known::AsLabels
        && let Some(name) = without_mark(&name)
    {
        names.push(name.to_owned());
        names.extend(without_format(name).map(str::to_owned));
    }
    names
}

/// Files by all their names.
pub(crate) struct Named {
    by_name: HashMap<String, Vec<(usize, PathBuf)>>,
}

impl Named {
    pub(crate) fn new(files: &[PathBuf], known: Known) -> Self {
        let mut by_name: HashMap<String, Vec<(usize, PathBuf)>> = HashMap::new();
        for file in files {
            for (rank, name) in known_as(file, known).into_iter().enumerate() {
                by_name.entry(name).or_default().push((rank, file.clone()));
            }
        }
        Self { by_name }
    }

    /// The file that belongs to `path`, which is known under its own names: of several the one whose name is most alike.
    ///
    /// # Errors
    /// Where two files are equally alike.
    pub(crate) fn partner(&self, path: &Path, known: Known) -> Result<Option<&Path>> {
        let mut found: Vec<(usize, &Path)> = Vec::new();
        for (rank, name) in known_as(path, known).iter().enumerate() {
            let files = self.by_name.get(name).into_iter().flatten();
            found.extend(files.map(|(more, file)| (rank + more, file.as_path())));
        }
        found.sort();
        match found.as_slice() {
            [(first, one), (second, another), ..] if first == second && one != another => {
                Err(CliError::Failed(format!(
                    "{} and {} both belong to {} by their names; leave one of them out",
                    one.display(),
                    another.display(),
                    path.display()
                )))
            }
            [(_, file), ..] => Ok(Some(file)),
            [] => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str], image: &str) -> Option<String> {
        let files: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        let named = Named::new(&files, Known::AsLabels);
        let partner = named.partner(Path::new(image), Known::AsImage).expect("one partner");
        partner.map(|file| file.to_string_lossy().into_owned())
    }

    #[test]
    fn names_of_labels_are_those_that_programs_of_the_field_give() {
        for (name, image) in [
            ("a.png", "a.tif"),
            ("a.png", "a.ome.tif"),
            ("a.ome.png", "a.ome.tif"),
            ("a_mask.png", "a.png"),
            ("a_masks.tif", "a.png"),
            ("a-Label.png", "a.png"),
            ("a_labels.png", "a.ome.tiff"),
            ("a_seg.png", "a.jpg"),
            ("a_cp_masks.png", "a.tif"),
            ("a.ome_mask.tif", "a.ome.tif"),
            // Composed and decomposed.
            ("\u{e9}.png", "e\u{301}.tif"),
        ] {
            assert_eq!(labels(&[name, "b.png"], image).as_deref(), Some(name), "{image}");
        }
        for (name, image) in [("mask.png", "a.png"), ("amask.png", "a.png"), ("_mask.png", "a.png")] {
            assert_eq!(labels(&[name], image), None, "{name}");
        }
        assert_eq!(labels(&["a.png", "a_mask.png"], "a.tif").as_deref(), Some("a.png"));
    }

    #[test]
    fn two_equally_good_names_are_an_error() {
        let files = [PathBuf::from("a_mask.png"), PathBuf::from("a_label.png")];
        assert!(Named::new(&files, Known::AsLabels).partner(Path::new("a.tif"), Known::AsImage).is_err());
    }
}
