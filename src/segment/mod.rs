//! From an image to its label image.
//!
//! An image is read row by row, brought to the model's scale ([`rescale`]) and cut into windows ([`window`]). The
//! network corrupts batches of windows and runs on them; its answers are averaged where they overlap ([`blend`]) and brought back
//! to the image's size. Every step holds a band of rows, so that memory does not depend on the height of an image.

mod band;
pub mod blend;
mod cut;
mod features;
mod head;
pub mod rescale;
mod segmenter;
mod sliding;
pub mod window;

pub use band::Band;
pub use cut::mirrored;
pub use features::{FeatureMap, FeatureOptions, Features, WindowFeatures};
pub use head::{fold_heads, head_shape};
pub use rescale::Scaling;
pub use segmenter::{RunReport, SegmentOptions, Segmentation, Segmenter};
pub use sliding::default_batch;
