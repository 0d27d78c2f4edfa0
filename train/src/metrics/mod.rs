//! How well a segmentation agrees with the truth.
//!
//! Every measure is in [0, 1], larger is better. Where neither image holds anything to compare the measure is 1, where
//! only one of them does it is 0.

mod classes;
mod components;
mod foreground;
mod objects;

use mdm::{Error, Result};
use serde::Serialize;

pub use classes::{ClassIou, class_iou};
pub use components::{Components, Connectivity, components, regions};
pub use foreground::Foreground;
pub use objects::ObjectOverlap;

/// The label of a pixel that was not annotated; such pixels of the truth are left out of every measure.
pub const UNLABELLED: u8 = 255;

/// All measures of one image, or their mean or standard deviation over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Dice of the foreground, `2 |P and T| / (|P| + |T|)`.
    pub dice: f64,
    /// Intersection over union of the foreground.
    pub iou: f64,
    /// Object-level Dice of the GlaS challenge.
    pub object_dice: f64,
    /// Aggregated Jaccard index of the MoNuSeg challenge.
    pub aji: f64,
    /// Mean over classes of the intersection over union.
    pub mean_iou: f64,
}

impl Scores {
    /// Compares two class images of `width` columns, row-major.
    ///
    /// The foreground is every class but 0; an object is an 8-connected component of the foreground. Pixels whose truth
    /// is [`UNLABELLED`] are background for both images, so they may cut an object in two. [`mean_iou`](Self::mean_iou)
    /// is over the classes that occur in either image, background included.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the images are not rows of `width` pixels each, or not of one size.
    pub fn of_classes(prediction: &[u8], truth: &[u8], width: usize) -> Result<Self> {
        let objects = |labels: &[u8]| {
            let foreground = foreground_of(labels, truth)?;
            Ok::<_, Error>(components(&foreground, width, Connectivity::Eight)?.labels)
        };
        Self::of_objects((prediction, &objects(prediction)?), (truth, &objects(truth)?))
    }

    /// Compares two class images whose objects are numbered: each is its classes and its objects' numbers, 0 where there is
    /// none. Pixels whose true class is [`UNLABELLED`] are left out of both images; foreground and classes are those of
    /// [`of_classes`](Self::of_classes).
    ///
    /// # Errors
    /// [`Error::Invalid`] where the four are not of one size.
    pub fn of_objects(prediction: (&[u8], &[u32]), truth: (&[u8], &[u32])) -> Result<Self> {
        let shown = foreground_of(prediction.0, truth.0)?;
        let wanted = foreground_of(truth.0, truth.0)?;
        let compared = |objects: &[u32]| {
            same_length(objects.len(), truth.0.len())?;
            let known = |(&object, &label): (&u32, &u8)| if label == UNLABELLED { 0 } else { object };
            Ok::<_, Error>(objects.iter().zip(truth.0).map(known).collect::<Vec<u32>>())
        };
        let objects = ObjectOverlap::new(&compared(prediction.1)?, &compared(truth.1)?)?;
        let foreground = Foreground::new(&shown, &wanted)?;
        Ok(Self {
            dice: foreground.dice(),
            iou: foreground.iou(),
            object_dice: objects.object_dice(),
            aji: objects.aji(),
            mean_iou: class_iou(prediction.0, truth.0, Some(UNLABELLED))?.mean,
        })
    }

    /// Mean and sample standard deviation (divisor n - 1) over images; both are zero for no image, and the deviation is
    /// zero for one.
    pub fn mean_and_deviation(scores: &[Self]) -> (Self, Self) {
        let count = scores.len() as f64;
        let moments = |of: fn(&Self) -> f64| {
            let mean = scores.iter().map(of).sum::<f64>() / count.max(1.0);
            let squares = scores.iter().map(|score| (of(score) - mean).powi(2)).sum::<f64>();
            (mean, (squares / (count - 1.0).max(1.0)).sqrt())
        };
        let (dice, iou) = (moments(|s| s.dice), moments(|s| s.iou));
        let (object_dice, aji) = (moments(|s| s.object_dice), moments(|s| s.aji));
        let mean_iou = moments(|s| s.mean_iou);
        let pick = |of: fn((f64, f64)) -> f64| Self {
            dice: of(dice),
            iou: of(iou),
            object_dice: of(object_dice),
            aji: of(aji),
            mean_iou: of(mean_iou),
        };
        (pick(|moments| moments.0), pick(|moments| moments.1))
    }
}

/// The foreground of `labels`, less the pixels that have no truth.
fn foreground_of(labels: &[u8], truth: &[u8]) -> Result<Vec<bool>> {
    same_length(labels.len(), truth.len())?;
    Ok(labels.iter().zip(truth).map(|(&label, &truth)| label > 0 && truth != UNLABELLED).collect())
}

fn same_length(prediction: usize, truth: usize) -> Result<()> {
    if prediction == truth {
        Ok(())
    } else {
        Err(Error::invalid("prediction", format!("has {prediction} pixels, the truth has {truth}")))
    }
}

/// `numerator / denominator`, or 1 where there is nothing to divide by.
fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 { 1.0 } else { numerator as f64 / denominator as f64 }
}
