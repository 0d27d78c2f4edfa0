//! What pre-training minimises, and its gradient.

pub(crate) mod evaluate;

use serde::{Deserialize, Serialize};

/// How far a restored image is from the original.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Structural similarity (Wang et al. 2004) under a Gaussian window with zero padding, a channel at a time.
    Ssim {
        /// Side of the window in pixels, odd.
        window: usize,
        /// Standard deviation of the window in pixels.
        sigma: f64,
        /// Difference between the largest and the smallest possible value, L in c1 = (0.01 L)^2 and c2 = (0.03 L)^2.
        dynamic_range: f64,
        /// Which number is minimised.
        form: SsimForm,
    },
    /// Mean of squared differences.
    MeanSquare,
    /// Mean of absolute differences.
    MeanAbsolute,
}

/// What is made of a map of structural similarities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SsimForm {
    /// `mean(clamp(1 - ssim, 0, 1) / 2)`, on which the method's authors train.
    ClampedHalf,
    /// `mean(1 - ssim)`.
    OneMinus,
}

impl Default for Loss {
    fn default() -> Self {
        Self::Ssim { window: 5, sigma: 1.5, dynamic_range: 1.0, form: SsimForm::ClampedHalf }
    }
}
