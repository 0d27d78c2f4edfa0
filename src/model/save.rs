//! Writing a model to a file.

use std::collections::HashMap;
use std::path::Path;

use super::describe::METADATA_KEY;
use super::fingerprint::fingerprint;
use super::opened::HEADS;
use super::safetensors_file::{Entry, write};
use super::stored::round;
use super::{METADATA_VERSION, MapWeights, Model, Precision, Tensor, WeightSource};
use crate::{Error, Result};

/// What [`Model::save`] writes. Heads are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Save {
    /// Whether the backbone is written, and how it is stored; without it only its fingerprint is.
    pub backbone: Option<StoredType>,
    /// Whether heads are written.
    pub heads: bool,
}

/// How a file stores the backbone's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Each tensor as its source stores it.
    AsIs,
    /// All as f32.
    F32,
    /// All as f16, half the size; values are rounded to 11 bits.
    F16,
    /// All as bf16, half the size; values are rounded to 8 bits, and none is too large.
    Bf16,
}

impl StoredType {
    fn precision(self, source: &dyn WeightSource, name: &str) -> Precision {
        match self {
            Self::AsIs => source.precision(name),
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// A source as it comes back from a file.
struct Rounded<'a> {
    source: &'a dyn WeightSource,
    stored: StoredType,
}

impl WeightSource for Rounded<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let Tensor { shape, data } = self.source.tensor(name)?;
        Ok(Tensor { shape, data: round(data, self.stored.precision(self.source, name)) })
    }
}

impl Model {
    /// Writes a file that [`open`](Model::open) reads. It is written under a temporary name beside `path` and renamed, so
    /// that `path` holds the whole of it or what it held before.
    ///
    /// The file's fingerprint is that of the backbone in it: one whose values were rounded is another backbone, and heads
    /// in files of their own do not fit it.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written to or is full, [`Error::Tensor`] where a tensor cannot be read or
    /// does not fit the stored type, [`Error::Invalid`] where there is nothing to save.
    pub fn save(&self, path: &Path, what: Save) -> Result<()> {
        let mut metadata = self.metadata().clone();
        metadata.version = METADATA_VERSION;
        let mut entries = Vec::new();
        metadata.backbone_fingerprint = Some(match what.backbone {
            None => self.fingerprint()?,
            Some(stored) => {
                let source = self.backbone()?;
                let parameters = metadata.unet.parameters();
                for (name, shape) in &parameters {
                    entries.push(Entry {
                        name: name.clone(),
                        shape: shape.clone(),
                        precision: stored.precision(source, name),
                        source,
                    });
                }
                match stored {
                    StoredType::AsIs | StoredType::F32 => self.fingerprint()?,
                    StoredType::F16 | StoredType::Bf16 => {
                        fingerprint(&Rounded { source, stored }, parameters)?
                    }
                }
            }
        });
        let mut heads = MapWeights::default();
        if what.heads {
            for (index, head) in self.heads().iter().enumerate() {
                for (name, shape, values) in head.tensors(&format!("{HEADS}{index}.")) {
                    heads.insert(name, &shape, values.to_vec());
                }
            }
            for (name, Tensor { shape, .. }) in &heads.0 {
                entries.push(Entry {
                    name: name.clone(),
                    shape: shape.clone(),
                    precision: Precision::F32,
                    source: &heads,
                });
            }
        } else {
            metadata.heads = 0;
            metadata.classes.clear();
        }
        if entries.is_empty() {
            return Err(Error::invalid(
                "save",
                "neither a backbone nor heads were to be written, or there are none",
            ));
        }
        write(path, entries, HashMap::from([(METADATA_KEY.to_owned(), metadata.to_json()?)]))
    }
}
