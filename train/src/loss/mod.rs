//! What pre-training minimises, and its gradient.

pub(crate) mod evaluate;

use mdm::{Error, Result};
use serde::{Deserialize, Serialize};

/// The widest window, in pixels. With wider ones a thread of a GPU, which goes through every pixel of several windows, would take
/// more than the 65535 turns at which software adapters end a loop.
const MOST_WINDOW: usize = 45;

/// How far a restored image is from the original.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Structural similarity (Wang et al. 2004) under a Gaussian window with zero padding, a channel at a time.
    Ssim {
        /// Side of the window in pixels, odd, 45 at most.
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

impl Loss {
    /// Whether it can be computed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for windows without a centre, and for a deviation or range that is not a positive number.
    pub fn check(&self) -> Result<()> {
        let Self::Ssim { window, sigma, dynamic_range, .. } = *self else { return Ok(()) };
        if window.is_multiple_of(2) || window > MOST_WINDOW {
            let reason = format!("is {window} pixels wide; use an odd number up to {MOST_WINDOW}");
            return Err(Error::invalid("the loss's window", reason));
        }
        for (what, value) in
            [("the loss's standard deviation", sigma), ("the loss's dynamic range", dynamic_range)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::invalid(what, format!("is {value}; use a positive number")));
            }
        }
        Ok(())
    }
}
