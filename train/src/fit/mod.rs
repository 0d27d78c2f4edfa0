//! Fits heads on labelled pixels of a few images.

mod chunk;
mod collect;
mod ensemble;
mod fitter;
mod folded;
#[cfg(feature = "gpu")]
mod gpu;
mod kept;
mod labels;
mod matrix;
mod options;
mod parameters;
mod place;
mod predictor;
mod random;
mod run;
mod samples;
mod standardise;
mod state;
#[cfg(test)]
mod tests;
mod trainer;

pub use collect::{Collected, HeldOutPart, ImageWarning, collect};
pub use ensemble::{FittedHeads, fit_heads};
pub use fitter::{HeadFitter, LabelReport};
pub use labels::{LabelledImage, LabelledImages};
pub use options::{FitOptions, RefineOptions};
pub use place::HeadDevice;
pub use predictor::PixelScores;
pub use run::{FitReport, fit, fit_collected};
pub use samples::Samples;
