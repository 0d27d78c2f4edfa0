//! Trains a whole network on the labelled pixels of a few images: backbone and head together, from a self-supervised start.
//!
//! Labelled images are brought to the model's scale once (`picture`). A step warps and recolours crops of them
//! (`augment`), runs the backbone up to the blocks that are the features, runs a head on labelled pixels and back
//! (`head`), and the gradients of the blocks' activations back through the backbone.

mod augment;
mod head;
mod options;
pub(crate) mod picture;
pub(crate) mod run;

pub use augment::Augmentation;
pub use options::{Length, PixelLoss, TuneOptions};
pub use run::{TuneProgress, TuneReport, tune};
