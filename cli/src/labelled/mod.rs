//! Images and the labels that people gave them, checked before any long work.

mod names;
mod objects;
mod pairing;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{CliError, Result, failed, usage, warn};
use mdm_images::{
    Image, LabelColours, LabelNumbers, Numbers, ReadOptions, UNLABELLED, image_size, read_image,
    read_label_numbers,
};

pub(crate) use names::{Known, Named, labels_of, stem};
pub(crate) use objects::{Look, Objects, Verdict, object_numbers};
pub(crate) use pairing::pairs;

/// Indices that a message lists.
const LISTED: usize = 10;

/// How label files are to be understood.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct LabelArguments {
    /// Labels number objects (instance masks: 0 is background, each object has a number of its own). With --objects=rim the
    /// rim of each object is a class of its own, so that objects that touch stay apart
    #[arg(long, value_enum, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "whole")]
    pub(crate) objects: Option<Objects>,

    /// Labels are drawn in these colours: each with its class, 255 for "not labelled", such as
    /// "#000000=0,#ff0000=1,#808080=255"; black and white masks are "#000000=0,#ffffff=1"
    #[arg(long, value_name = "COLOUR=CLASS,...", alias = "label-colors")]
    pub(crate) label_colours: Option<LabelColours>,
}

impl LabelArguments {
    /// The numbers in a label file.
    pub(crate) fn numbers(&self, path: &Path) -> Result<LabelNumbers> {
        Ok(read_label_numbers(path, self.label_colours.as_ref())?)
    }

    /// The classes that numbers stand for.
    pub(crate) fn classes(&self, path: &Path, labels: LabelNumbers) -> Result<Vec<u8>> {
        match self.objects {
            Some(objects) => Ok(objects.classes(&object_numbers(labels.numbers), labels.width)),
            None => match labels.numbers {
                Numbers::Bytes(values) => Ok(values),
                Numbers::Wide(_) => Err(no_classes(path, &labels)),
            },
        }
    }
}

/// Why numbers beyond 255 are no classes.
fn no_classes(path: &Path, labels: &LabelNumbers) -> CliError {
    let looks: Vec<Look> = Look::of(labels).into_iter().collect();
    match Verdict::on(&looks) {
        Verdict::Classes => match labels.clone().into_classes(path) {
            Ok(_) => failed(path, "holds no class indices"),
            Err(error) => failed(path, format!("{}; numbers of objects take --objects", error.reason)),
        },
        verdict => failed(path, verdict.in_words()),
    }
}

impl Verdict {
    /// What is wrong with label files that look like this, and what to do.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Classes => "holds class indices",
            Self::Objects => {
                "looks like an instance mask: each of its numbers is one object. --objects makes background and object of \
                 them, --objects=rim keeps objects apart that touch (if they are classes after all, name all of them with --classes)"
            }
            Self::Picture => {
                "looks like a picture or a resized mask: many values, most of them in specks of a few pixels. Labels are drawn \
                 and saved without smoothing, and resized with the nearest neighbour (if they are classes after all, name all of \
                 them with --classes)"
            }
        }
    }
}

/// A labelled image by its files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) image: PathBuf,
    pub(crate) labels: PathBuf,
    pub(crate) reading: LabelArguments,
}

impl Pair {
    /// Reads both, of the image what `options` choose, and makes sure that they have one size.
    pub(crate) fn read(&self, options: &ReadOptions) -> Result<(Image, Vec<u8>)> {
        let image = read_image(&self.image, options)?;
        let labels = self.reading.numbers(&self.labels)?;
        self.check_sizes((image.width, image.height), (labels.width, labels.height))?;
        Ok((image, self.reading.classes(&self.labels, labels)?))
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

/// How often each class is labelled, in all the images together.
#[derive(Clone, Debug)]
pub(crate) struct Census {
    counts: [u64; 256],
    /// What files look like that hold several numbers, unless objects are expected.
    looks: Vec<(PathBuf, Look)>,
    transparent: bool,
}

impl Census {
    /// Reads all labels and checks that each file fits its image.
    pub(crate) fn of(pairs: &[Pair]) -> Result<Self> {
        let mut census = Self { counts: [0; 256], looks: Vec::new(), transparent: false };
        for pair in pairs {
            let labels = pair.reading.numbers(&pair.labels)?;
            pair.check_sizes(image_size(&pair.image)?, (labels.width, labels.height))?;
            census.transparent |= labels.transparent > 0;
            if pair.reading.objects.is_none() {
                census.looks.push((pair.labels.clone(), Look::of(&labels)?));
            }
            let classes = pair.reading.classes(&pair.labels, labels)?;
            for label in &classes {
                census.counts[usize::from(*label)] += 1;
            }
            if classes.iter().all(|label| *label == UNLABELLED) {
                warn(format!("{}: nothing is labelled (all pixels are 255)", pair.labels.display()));
            }
        }
        Ok(census)
    }

    /// The number of classes, at least as many as are named.
    ///
    /// # Errors
    /// Labels that cannot be what was meant: fewer than two classes, indices with gaps, more than were named, and numbers that
    /// look like anything but classes where none are named.
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
                " (255 means \"unlabelled\": for masks of 0 and 255 give --label-colours \"#000000=0,#ffffff=1\", or replace 255 by 1)"
            } else if self.transparent {
                " (transparent pixels are unlabelled: paint the background too)"
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
        if names.is_empty() {
            self.check_looks()?;
            if let Some(missing) = (0..most).find(|class| labelled[*class] == 0) {
                return Err(CliError::Failed(format!(
                    "the labels use indices {} but not {missing}; classes are numbered 0, 1, 2 ... \
                     (if that is meant, name all of them with --classes){}",
                    listed(&used),
                    if self.transparent { "; transparent pixels are unlabelled" } else { "" }
                )));
            }
        }
        Ok(most.max(names.len()))
    }

    fn check_looks(&self) -> Result<()> {
        let looks: Vec<Look> = self.looks.iter().map(|(_, look)| look.clone()).collect();
        let verdict = Verdict::on(&looks);
        if verdict == Verdict::Classes {
            return Ok(());
        }
        // The first file that looks so by itself, or else together with the others.
        let alone = |(_, look): &&(PathBuf, Look)| Verdict::on(std::slice::from_ref(look)) == verdict;
        match self.looks.iter().find(alone).or(self.looks.first()) {
            Some((path, _)) => Err(failed(path, verdict.in_words())),
            None => Ok(()),
        }
    }

    /// Labelled pixels of a class.
    pub(crate) fn pixels(&self, class: usize) -> u64 {
        self.counts.get(class).copied().unwrap_or_default()
    }
}

/// Indices for a message: the first of them, and how many more there are.
pub(crate) fn listed(indices: &[usize]) -> String {
    let first: Vec<String> = indices.iter().take(LISTED).map(usize::to_string).collect();
    match indices.len().saturating_sub(LISTED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
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
        Census { counts, looks: Vec::new(), transparent: false }
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
        assert!(refused(&[(0, 5), (128, 5)], &[]).contains("0, 128 but not 1"));
        assert!(refused(&[(0, 5), (1, 5)], &["a".to_owned()]).contains("names 1"));
        let many: Vec<(usize, u64)> = (0..200).filter(|class| *class != 7).map(|class| (class, 1)).collect();
        assert!(refused(&many, &[]).contains("9, 10 and 189 more but not 7"));
    }
}
