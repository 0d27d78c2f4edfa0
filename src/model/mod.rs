//! Model files and what is in them.

mod config;
mod metadata;
mod weights;

pub use config::UnetConfig;
pub use metadata::{
    Class, Corruption, CorruptionKind, FeatureConfig, METADATA_VERSION, MaskRule, Metadata, NoiseSchedule,
};
pub use weights::{Layered, MapWeights, Tensor, WeightSource};
