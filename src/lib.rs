//! Segments microscopy images from a handful of labels.
//!
//! A masked diffusion model (Pan, Chen, Shi: "Masked Diffusion as Self-supervised Representation Learner",
//! arXiv 2308.05695) is a UNet that restores images from which patches were masked. The activations of its decoder
//! describe every pixel of an image; a small MLP head, trained on the labels of a few images, turns them into classes.
//!
//! Data goes one way: image → window → [`plan`] on an [`engine`] (corruption → UNet → head) → blending → label image.

pub mod capi;
pub mod control;
pub mod corruption;
pub mod engine;
pub mod error;
pub mod image;
pub mod intensity;
mod memory;
pub mod model;
pub mod plan;
pub mod segment;

pub use control::{CancelToken, Control, Progress};
pub use engine::{Device, DeviceOptions};
pub use error::{Error, Result};
pub use image::{ImageSource, ImageView, PixelFormat};
pub use intensity::IntensityRange;
pub use model::Model;
pub use segment::{Features, Segmenter};

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
