//! Labels that number objects (instance masks) instead of classes.

use std::collections::{BTreeMap, VecDeque};

use clap::ValueEnum;
use mdm::Result;
use mdm_images::{LabelNumbers, Numbers, UNLABELLED, UNLABELLED_WIDE};
use mdm_train::metrics::{Connectivity, regions};

/// What becomes of numbered objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Objects {
    /// Background and object
    Whole,
    /// Background, object, and the rim of each object, so that objects that touch stay apart
    Rim,
}

/// Width of a rim in pixels, within the object.
const RIM: usize = 2;

/// The classes of [`Objects`].
const OBJECT: u8 = 1;
const RIM_CLASS: u8 = 2;

impl Objects {
    /// What the classes are called, unless somebody says otherwise.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &["background", "object"],
            Self::Rim => &["background", "object", "rim"],
        }
    }

    /// The classes of numbered objects.
    pub(crate) fn classes(self, objects: &[u32], width: usize) -> Vec<u8> {
        let mut classes: Vec<u8> = objects
            .iter()
            .map(|object| match *object {
                0 => 0,
                UNLABELLED_WIDE => UNLABELLED,
                _ => OBJECT,
            })
            .collect();
        if self == Self::Rim {
            let depths = depths(objects, width);
            // Objects that are thinner than two rims keep their innermost pixels.
            let mut deepest: BTreeMap<u32, usize> = BTreeMap::new();
            for (object, depth) in objects.iter().zip(&depths) {
                let deepest = deepest.entry(*object).or_default();
                *deepest = (*deepest).max(*depth);
            }
            for ((class, object), depth) in classes.iter_mut().zip(objects).zip(depths) {
                let rim = RIM.min(deepest.get(object).copied().unwrap_or(0).saturating_sub(1));
                if *class == OBJECT && depth <= rim {
                    *class = RIM_CLASS;
                }
            }
        }
        classes
    }

    /// Numbers the objects in a class image: regions of objects' insides with the rims around them.
    pub(crate) fn in_classes(self, classes: &[u8], width: usize) -> Result<Vec<u32>> {
        let foreground = |class: u8| class != 0 && class != UNLABELLED;
        if self == Self::Whole {
            let mask: Vec<bool> = classes.iter().map(|class| foreground(*class)).collect();
            return Ok(regions(&mask, width, Connectivity::Eight)?.labels);
        }
        let inside: Vec<bool> =
            classes.iter().map(|class| foreground(*class) && *class != RIM_CLASS).collect();
        let found = regions(&inside, width, Connectivity::Eight)?;
        let mut objects = found.labels;
        let mut next: VecDeque<usize> = (0..objects.len()).filter(|at| objects[*at] > 0).collect();
        while let Some(at) = next.pop_front() {
            for neighbour in neighbours(at, width, objects.len()) {
                if objects[neighbour] == 0 && classes[neighbour] == RIM_CLASS {
                    objects[neighbour] = objects[at];
                    next.push_back(neighbour);
                }
            }
        }
        // Rims around nothing are objects that are too small for an inside.
        let alone: Vec<bool> =
            classes.iter().zip(&objects).map(|(class, object)| *class == RIM_CLASS && *object == 0).collect();
        for (object, alone) in objects.iter_mut().zip(regions(&alone, width, Connectivity::Eight)?.labels) {
            if alone > 0 {
                *object = found.count + alone;
            }
        }
        Ok(objects)
    }
}

/// The four pixels that share an edge with one.
fn neighbours(at: usize, width: usize, pixels: usize) -> impl Iterator<Item = usize> {
    let column = at % width;
    [
        (column > 0).then(|| at - 1),
        (column + 1 < width).then_some(at + 1),
        (at >= width).then(|| at - width),
        (at + width < pixels).then_some(at + width),
    ]
    .into_iter()
    .flatten()
}

/// For each pixel of an object how many steps away, over edges, something else is. The image's border is nothing else.
fn depths(objects: &[u32], width: usize) -> Vec<usize> {
    let mut depths = vec![usize::MAX; objects.len()];
    let mut next = VecDeque::new();
    for at in 0..objects.len() {
        if objects[at] == 0 || neighbours(at, width, objects.len()).any(|other| objects[other] != objects[at])
        {
            depths[at] = usize::from(objects[at] != 0);
            if objects[at] != 0 {
                next.push_back(at);
            }
        }
    }
    while let Some(at) = next.pop_front() {
        for neighbour in neighbours(at, width, objects.len()) {
            if objects[neighbour] == objects[at] && depths[neighbour] == usize::MAX {
                depths[neighbour] = depths[at] + 1;
                next.push_back(neighbour);
            }
        }
    }
    depths
}

/// The numbers of objects in a label file: 0 where there is none, [`UNLABELLED_WIDE`] where nobody labelled.
///
/// 255 is an object like any other where the numbers go on beyond it, or come as close as 254.
pub(crate) fn object_numbers(numbers: Numbers) -> Vec<u32> {
    match numbers {
        Numbers::Wide(numbers) => numbers,
        Numbers::Bytes(values) => {
            let counted = values.contains(&(UNLABELLED - 1));
            let number = |value: u8| match value {
                UNLABELLED if !counted => UNLABELLED_WIDE,
                value => u32::from(value),
            };
            values.into_iter().map(number).collect()
        }
    }
}

/// Numbers of one file from which on they may be objects, or a picture. Fewer classes may well be drawn with a stroke each.
const MANY: usize = 8;

/// Mean size in pixels of the regions of a number that is no class.
const SPECK: u64 = 8;

/// What the numbers of a label file look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Numbers that occur, without 0 and what is unlabelled.
    numbers: usize,
    largest: u32,
    /// Numbers each of which is one connected region.
    single: usize,
    /// Numbers whose regions are specks.
    specks: usize,
    mostly_unlabelled: bool,
}

/// What the numbers of label files count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing speaks against classes.
    Classes,
    /// Objects: each number is one region.
    Objects,
    /// Grey values of a picture, or of a mask that was smoothed or resized.
    Picture,
}

impl Look {
    pub(crate) fn of(labels: &LabelNumbers) -> Result<Self> {
        match &labels.numbers {
            Numbers::Bytes(values) => Self::at(values, labels.width, UNLABELLED),
            Numbers::Wide(numbers) => Self::at(numbers, labels.width, UNLABELLED_WIDE),
        }
    }

    fn at<T: Copy + Default + Ord + Into<u32>>(numbers: &[T], width: usize, unlabelled: T) -> Result<Self> {
        let found = regions(numbers, width, Connectivity::Eight)?;
        let mut counted = vec![false; found.count as usize + 1];
        let mut without = 0;
        // Regions and pixels of each number.
        let mut seen: BTreeMap<T, (u64, u64)> = BTreeMap::new();
        for (number, region) in numbers.iter().zip(&found.labels) {
            if *number == unlabelled {
                without += 1;
            } else if *region > 0 {
                let (regions, pixels) = seen.entry(*number).or_default();
                *pixels += 1;
                *regions += u64::from(!std::mem::replace(&mut counted[*region as usize], true));
            }
        }
        Ok(Self {
            numbers: seen.len(),
            largest: seen.keys().next_back().map_or(0, |number| (*number).into()),
            single: seen.values().filter(|(regions, _)| *regions == 1).count(),
            specks: seen.values().filter(|(regions, pixels)| pixels / regions < SPECK).count(),
            mostly_unlabelled: without > numbers.len() / 2,
        })
    }

    /// Whether a number is too large for a class.
    pub(crate) fn is_wide(&self) -> bool {
        self.largest > u32::from(UNLABELLED)
    }

    fn single_objects(&self) -> bool {
        let many = self.numbers >= MANY && self.single * 10 >= self.numbers * 9;
        // Numbers beyond 255 are no classes whatever they look like.
        (many && self.specks * 2 < self.numbers) || (self.is_wide() && self.single * 2 >= self.numbers)
    }

    fn numbered_through(&self) -> bool {
        self.single == self.numbers
            && self.numbers as u64 == u64::from(self.largest)
            && !self.mostly_unlabelled
    }
}

impl Verdict {
    /// Over all label files of a job. Few numbers tell objects only where files have different numbers of them.
    pub(crate) fn on(looks: &[Look]) -> Self {
        let total: usize = looks.iter().map(|look| look.numbers).sum();
        let most = looks.iter().map(|look| look.numbers).max().unwrap_or(0);
        let differ = looks.iter().any(|look| look.numbers != most);
        let few_objects = differ && total >= MANY && most > 2 && looks.iter().all(Look::numbered_through);
        if few_objects || looks.iter().any(Look::single_objects) {
            Self::Objects
        } else if looks.iter().any(|look| look.numbers >= MANY && look.specks * 2 > look.numbers) {
            Self::Picture
        } else {
            Self::Classes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` discs of 5 x 5 pixels in a row, the first of them numbered `first`.
    fn discs(count: u32, number: impl Fn(u32) -> u8) -> LabelNumbers {
        let width = 6 * count as usize;
        let values = (0..6 * width)
            .map(|at| if at % width % 6 < 5 && at / width < 5 { number((at % width / 6) as u32) } else { 0 })
            .collect();
        LabelNumbers { width, height: 6, numbers: Numbers::Bytes(values), transparent: 0 }
    }

    fn verdict(labels: &[LabelNumbers]) -> Verdict {
        let looks: Vec<Look> = labels.iter().map(|labels| Look::of(labels).expect("a look")).collect();
        Verdict::on(&looks)
    }

    #[test]
    fn numbered_objects_are_told_from_classes() {
        assert_eq!(verdict(&[discs(14, |disc| disc as u8 + 1)]), Verdict::Objects);
        assert_eq!(verdict(&[discs(14, |disc| disc as u8 % 3 + 1)]), Verdict::Classes);
        assert_eq!(verdict(&[discs(30, |disc| disc as u8 % 12 + 1)]), Verdict::Classes);
        // Few objects an image, but never as many.
        let few = |count| discs(count, |disc| disc as u8 + 1);
        assert_eq!(verdict(&[few(3), few(5), few(2)]), Verdict::Objects);
        assert_eq!(verdict(&[few(3), few(3), few(3)]), Verdict::Classes);
        // A stroke in each of six classes.
        let mut strokes = discs(6, |disc| disc as u8 + 1);
        let Numbers::Bytes(values) = &mut strokes.numbers else { unreachable!() };
        values.iter_mut().filter(|value| **value == 0).for_each(|value| *value = UNLABELLED);
        values.extend([UNLABELLED; 36 * 6]);
        strokes.height += 6;
        assert_eq!(verdict(&[strokes]), Verdict::Classes);
    }

    #[test]
    fn pictures_and_resized_masks_are_told_from_classes() {
        let numbers = |value: fn(usize, usize) -> u8| LabelNumbers {
            width: 60,
            height: 60,
            numbers: Numbers::Bytes((0..3600).map(|at| value(at % 60, at / 60)).collect()),
            transparent: 0,
        };
        let disc = |x: usize, y: usize| {
            let distance = ((x as f64 - 30.0).powi(2) + (y as f64 - 30.0).powi(2)).sqrt();
            ((20.0 - distance) * 80.0).clamp(0.0, 255.0) as u8
        };
        assert_eq!(verdict(&[numbers(disc)]), Verdict::Picture);
        assert_eq!(verdict(&[numbers(|x, y| ((x * 7919 + y * 104_729) % 251) as u8)]), Verdict::Picture);
    }

    #[test]
    fn touching_objects_stay_apart_by_their_rims() {
        // Two objects of 6 x 6 that touch, one of 1 x 2, something unlabelled.
        let (width, height) = (14, 7);
        let objects: Vec<u32> = (0..width * height)
            .map(|at| match (at % width, at / width) {
                (0..6, 0..6) => 7,
                (6..12, 0..6) => 300,
                (x, 1..3) if x == width - 1 => 2,
                (_, 6) => UNLABELLED_WIDE,
                _ => 0,
            })
            .collect();
        let classes = Objects::Rim.classes(&objects, width);
        assert_eq!(classes[..width], [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 0, 0]);
        assert_eq!((classes[width + 13], classes[6 * width]), (1, UNLABELLED));
        let found = Objects::Rim.in_classes(&classes, width).expect("objects");
        for (found, object) in found.iter().zip(&objects) {
            let expected = match object {
                7 => 1,
                300 => 2,
                2 => 3,
                _ => 0,
            };
            assert_eq!(*found, expected);
        }
        let merged =
            Objects::Whole.in_classes(&Objects::Whole.classes(&objects, width), width).expect("objects");
        assert_eq!(merged.iter().max(), Some(&2));
    }

    #[test]
    fn the_number_255_is_an_object_among_many() {
        assert_eq!(object_numbers(Numbers::Bytes(vec![0, 1, 255])), [0, 1, UNLABELLED_WIDE]);
        assert_eq!(object_numbers(Numbers::Bytes(vec![0, 254, 255])), [0, 254, 255]);
        assert_eq!(object_numbers(Numbers::Wide(vec![0, 255, 256])), [0, 255, 256]);
    }
}
