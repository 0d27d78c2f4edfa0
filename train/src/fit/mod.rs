//! Fits heads on labelled pixels.

mod chunk;
mod ensemble;
mod folded;
mod matrix;
mod options;
mod parameters;
mod predictor;
mod random;
mod samples;
mod standardise;
mod trainer;

pub use ensemble::{FittedHeads, fit_heads};
pub use options::FitOptions;
pub use predictor::PixelScores;
pub use samples::Samples;
