//! Measures of one mask against another.

use mdm::Result;

use super::{ratio, same_length};

/// Pixel counts of a predicted and a true foreground.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreground {
    /// Pixels in both.
    pub shared: u64,
    /// Pixels of the prediction.
    pub predicted: u64,
    /// Pixels of the truth.
    pub truth: u64,
}

impl Foreground {
    /// Counts two masks of equal size.
    ///
    /// # Errors
    /// [`mdm::Error::Invalid`] where the sizes differ.
    pub fn new(prediction: &[bool], truth: &[bool]) -> Result<Self> {
        same_length(prediction.len(), truth.len())?;
        let mut counts = Self::default();
        for (&prediction, &truth) in prediction.iter().zip(truth) {
            counts.shared += u64::from(prediction && truth);
            counts.predicted += u64::from(prediction);
            counts.truth += u64::from(truth);
        }
        Ok(counts)
    }

    /// `2 |P and T| / (|P| + |T|)`.
    pub fn dice(&self) -> f64 {
        ratio(2 * self.shared, self.predicted + self.truth)
    }

    /// `|P and T| / |P or T|`.
    pub fn iou(&self) -> f64 {
        ratio(self.shared, self.predicted + self.truth - self.shared)
    }
}
