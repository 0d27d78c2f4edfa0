//! Intersection over union by class.

use mdm::Result;

use super::{ratio, same_length};

/// Agreement of two class images.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassIou {
    /// For each class up to the largest that occurs, its intersection over union; `None` where it is in neither image.
    pub per_class: Vec<Option<f64>>,
    /// Mean over the classes that occur in either image; 1 where no pixel counts.
    pub mean: f64,
    /// Pixels whose class is right, over the pixels that count; 1 where no pixel counts.
    pub accuracy: f64,
}

/// Compares two class images of equal size, without the pixels whose truth is `ignore`.
///
/// # Errors
/// [`mdm::Error::Invalid`] where the sizes differ.
pub fn class_iou(prediction: &[u8], truth: &[u8], ignore: Option<u8>) -> Result<ClassIou> {
    same_length(prediction.len(), truth.len())?;
    let (mut shared, mut predicted, mut wanted) = ([0_u64; 256], [0_u64; 256], [0_u64; 256]);
    for (&prediction, &truth) in prediction.iter().zip(truth) {
        if Some(truth) == ignore {
            continue;
        }
        predicted[usize::from(prediction)] += 1;
        wanted[usize::from(truth)] += 1;
        if prediction == truth {
            shared[usize::from(truth)] += 1;
        }
    }
    let occurs = |class: &usize| predicted[*class] + wanted[*class] > 0;
    let count = (0..256).rev().find(occurs).map_or(0, |last| last + 1);
    let per_class: Vec<_> = (0..count)
        .map(|class| {
            let union = predicted[class] + wanted[class] - shared[class];
            (union > 0).then(|| ratio(shared[class], union))
        })
        .collect();
    let present: Vec<f64> = per_class.iter().copied().flatten().collect();
    let mean = if present.is_empty() { 1.0 } else { present.iter().sum::<f64>() / present.len() as f64 };
    let accuracy = ratio(shared.iter().sum(), wanted.iter().sum());
    Ok(ClassIou { per_class, mean, accuracy })
}
