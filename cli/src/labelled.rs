//! Images paired with the labels that people gave them, checked before any long work.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::error::{CliError, Result, failed, usage, warn};
use crate::files::{label_files, stem};
use mdm_images::{Image, ReadOptions, UNLABELLED, expand, image_size, read_image, read_labels};

/// A labelled image by its files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) image: PathBuf,
    pub(crate) labels: PathBuf,
}

impl Pair {
    /// Reads both, and makes sure that they have one size.
    pub(crate) fn read(&self) -> Result<(Image, Vec<u8>)> {
        let image = read_image(&self.image, &ReadOptions::default())?;
        let labels = read_labels(&self.labels)?;
        self.check_sizes((image.width, image.height), (labels.width, labels.height))?;
        Ok((image, labels.values))
    }

    fn check_sizes(&self, image: (usize, usize), labels: (usize, usize)) -> Result<()> {
        if image == labels {
            return Ok(());
        }
        Err(failed(
            &self.labels,
            format!(
                "is {} x {} pixels, but its image {} is {} x {}; labels must have the size of their image",
                labels.0,
                labels.1,
                self.image.display(),
                image.0,
                image.1
            ),
        ))
    }
}

/// Pairs `images` (a folder, a pattern, a file) with the label PNGs of the same name in `labels`. One image file and one
/// label file are a pair whatever their names.
pub(crate) fn pairs(images: &[PathBuf], labels: &Path) -> Result<Vec<Pair>> {
    let (files, unusable) = expand(images, false, None);
    if let Some(unusable) = unusable.first() {
        return Err(CliError::Failed(format!("{}: {}", unusable.input.display(), unusable.reason)));
    }
    let label_files = label_files(labels)?;
    if let ([image], [only], true) = (files.as_slice(), label_files.as_slice(), labels.is_file()) {
        return Ok(vec![Pair { image: image.clone(), labels: only.clone() }]);
    }
    let mut by_name: HashMap<String, PathBuf> =
        label_files.iter().map(|file| (stem(file), file.clone())).collect();
    let (mut pairs, mut unlabelled, mut taken) = (Vec::new(), 0, HashSet::new());
    for image in files {
        let name = stem(&image);
        if taken.contains(&name) {
            return Err(usage(format!(
                "{}: there are several images called {name}, but only one label file of that name",
                image.display()
            )));
        }
        match by_name.remove(&name) {
            Some(labels) => {
                taken.insert(name);
                pairs.push(Pair { image, labels });
            }
            None => unlabelled += 1,
        }
    }
    if pairs.is_empty() {
        return Err(failed(
            labels,
            "no label file has the name of an image; cells-1.tif needs cells-1.png here",
        ));
    }
    if unlabelled > 0 {
        warn(format!("{unlabelled} images have no label PNG in {} and are not used", labels.display()));
    }
    if !by_name.is_empty() {
        let mut names: Vec<String> = by_name.into_keys().collect();
        names.sort();
        warn(format!("{}: no image is called {}", labels.display(), names.join(", ")));
    }
    Ok(pairs)
}

/// How often each class is labelled, in all the images together.
#[derive(Clone, Debug)]
pub(crate) struct Census {
    counts: [u64; 256],
}

impl Census {
    /// Reads all labels and checks that each file fits its image.
    pub(crate) fn of(pairs: &[Pair]) -> Result<Self> {
        let mut counts = [0; 256];
        for pair in pairs {
            let labels = read_labels(&pair.labels)?;
            pair.check_sizes(image_size(&pair.image)?, (labels.width, labels.height))?;
            for label in &labels.values {
                counts[usize::from(*label)] += 1;
            }
            if labels.values.iter().all(|label| *label == UNLABELLED) {
                warn(format!("{}: nothing is labelled (all pixels are 255)", pair.labels.display()));
            }
        }
        Ok(Self { counts })
    }

    /// The number of classes, at least as many as are named.
    ///
    /// # Errors
    /// Labels that cannot be what was meant: fewer than two classes, indices with gaps, more than were named.
    pub(crate) fn classes(&self, names: &[String]) -> Result<usize> {
        let labelled = &self.counts[..usize::from(UNLABELLED)];
        let used: Vec<usize> = (0..labelled.len()).filter(|class| labelled[*class] > 0).collect();
        let most = used.last().map_or(0, |last| last + 1);
        if used.len() < 2 {
            let found = match used.first() {
                None => "no class".to_owned(),
                Some(class) => format!("only class {class}"),
            };
            let hint = if self.counts[usize::from(UNLABELLED)] > 0 && used == [0] {
                " (255 means \"unlabelled\": in masks of 0 and 255, replace 255 by 1)"
            } else {
                ""
            };
            return Err(CliError::Failed(format!(
                "the labels hold {found}; at least two are needed, of which 0 usually is background{hint}"
            )));
        }
        if !names.is_empty() && most > names.len() {
            return Err(usage(format!(
                "--classes names {} classes, but the labels go up to index {}",
                names.len(),
                most - 1
            )));
        }
        if names.is_empty() && used.len() < most {
            let missing = (0..most).find(|class| labelled[*class] == 0).unwrap_or_default();
            return Err(CliError::Failed(format!(
                "the labels use indices {used:?} but not {missing}; classes are numbered 0, 1, 2 ... \
                 (if that is meant, name all of them with --classes)"
            )));
        }
        Ok(most.max(names.len()))
    }

    /// Labelled pixels of a class.
    pub(crate) fn pixels(&self, class: usize) -> u64 {
        self.counts.get(class).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(labels: &[(usize, u64)]) -> Census {
        let mut counts = [0; 256];
        for (class, count) in labels {
            counts[*class] = *count;
        }
        Census { counts }
    }

    #[test]
    fn classes_are_counted_from_zero_without_gaps() {
        assert_eq!(census(&[(0, 5), (1, 5), (255, 90)]).classes(&[]).unwrap(), 2);
        assert_eq!(census(&[(0, 5), (2, 5)]).classes(&["a", "b", "c"].map(str::to_owned)).unwrap(), 3);
        let refused = |labels: &[(usize, u64)], names: &[String]| {
            census(labels).classes(names).unwrap_err().to_string()
        };
        assert!(refused(&[(0, 5), (255, 5)], &[]).contains("replace 255 by 1"));
        assert!(refused(&[(255, 5)], &[]).contains("no class"));
        assert!(refused(&[(0, 5), (128, 5)], &[]).contains("not 1"));
        assert!(refused(&[(0, 5), (1, 5)], &["a".to_owned()]).contains("names 1"));
    }
}
