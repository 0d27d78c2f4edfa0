//! From an image to its label image.
//!
//! An image is read row by row, brought to the model's scale ([`rescale`]), cut into windows ([`window`]) and corrupted
//! ([`corruption`]). The network runs on batches of windows; its answers are averaged where they overlap ([`blend`]) and brought
//! back to the image's size. Every step holds a band of rows, so that memory does not depend on the height of an image.

mod band;
pub mod blend;
pub mod corruption;
mod cut;
mod features;
mod head;
mod noise;
pub mod rescale;
mod segmenter;
mod sliding;
pub mod window;

pub use band::Band;
pub use features::{FeatureMap, FeatureOptions, Features, WindowFeatures};
pub use head::{fold_heads, head_shape};
pub use noise::WindowNoise;
pub use rescale::Scaling;
pub use segmenter::{RunReport, SegmentOptions, Segmentation, Segmenter};
pub use sliding::DEFAULT_BATCH;
