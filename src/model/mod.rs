//! Model files and what is in them.
//!
//! A file is a `.safetensors` file. A backbone's tensors are named as in a guided-diffusion state dict (see
//! [`UnetConfig::parameters`]) and stored as f32, f16 or bf16; heads' as `heads.0.layers.0.weight` and so on. Its
//! metadata entry `mdm` holds a [`Metadata`] as JSON. A backbone without it is understood as well: see
//! [`Model::open_with`].

mod config;
mod content;
mod describe;
mod fingerprint;
mod head;
pub mod import;
mod infer;
mod metadata;
mod opened;
mod parameters;
pub mod safetensors_file;
mod save;
mod stored;
mod summary;
mod weights;

pub use config::UnetConfig;
pub use describe::{BackboneOptions, Preset};
pub use head::{BatchNorm, Head, Linear};
pub use metadata::{
    Border, Class, Corruption, CorruptionKind, FeatureConfig, METADATA_VERSION, MaskRule, Metadata,
    NoiseSchedule,
};
pub use opened::Model;
pub use save::{Save, StoredType};
pub use summary::{DecoderBlock, Summary};
pub use weights::{Layered, MapWeights, Precision, Tensor, WeightSource};
