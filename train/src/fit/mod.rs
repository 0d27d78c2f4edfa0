//! Fits heads on labelled pixels of a few images.

pub(crate) mod chunk;
mod collect;
mod ensemble;
mod fitter;
mod folded;
#[cfg(feature = "gpu")]
mod gpu;
pub(crate) mod kept;
mod labels;
pub(crate) mod matrix;
mod options;
mod parameters;
mod place;
mod predictor;
pub(crate) mod random;
mod run;
mod samples;
pub(crate) mod standardise;
mod state;
#[cfg(test)]
mod tests;
mod trainer;

pub(crate) use collect::named;
pub use collect::{Collected, HeldOutPart, ImageWarning, collect};
pub use ensemble::{FittedHeads, fit_heads};
pub use fitter::{HeadFitter, LabelReport};
pub use labels::{LabelledImage, LabelledImages};
pub use options::{FitOptions, RefineOptions};
pub use place::HeadDevice;
pub use predictor::PixelScores;
pub use run::{FitReport, fit, fit_collected};
pub use samples::Samples;
