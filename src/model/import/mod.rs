//! PyTorch checkpoints (`.pt`, `.pth`), without Python and without executing what is in them.
//!
//! Both formats of `torch.save` are read: zip archives (since PyTorch 1.6) and the older sequence of pickles. Tensors may
//! be anywhere in nested dictionaries and lists; their names are the keys, joined by points. A network is found by the
//! end of its tensors' names, so that it does not matter what stands before them (`state_dict.`, `module.`,
//! `_orig_mod.`, `ema.`).

mod container;
mod pickle;
mod torch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::content::Content;
use super::describe::{Description, described_by};
use super::safetensors_file::SafetensorsFile;
use super::stored::StoredTensors;
use super::{BackboneOptions, Head, Model, WeightSource};
use crate::{Error, Result};

/// First bytes of a pickled magic number that starts checkpoints of PyTorch before 1.6.
const LEGACY_MAGIC: [u8; 14] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

const UNET: &str = "a UNet's state dict (`time_embed.0.weight` and so on)";
const HEAD: &str = "an MLP head (`layers.0.weight`, `layers.2.running_mean` and so on)";

/// A tensor that every UNet has, and one that every head has.
const UNET_MARK: &str = "time_embed.0.weight";
const HEAD_MARKS: [&str; 2] = ["layers.0.weight", "layers.2.running_mean"];

/// What a file is, and what to do with it, where its start tells that it is no safetensors file.
pub(super) fn foreign_format(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    let page = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    let picture: [&[u8]; 8] =
        [b"\x89PNG", b"\xFF\xD8\xFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"];
    if start.starts_with(&ZIP_MAGIC) {
        Some(
            "a zip archive, probably a PyTorch checkpoint, not a safetensors file; convert it with `mdm import`",
        )
    } else if start.starts_with(&LEGACY_MAGIC) {
        Some("a PyTorch checkpoint in the old format, not a safetensors file; convert it with `mdm import`")
    } else if start.starts_with(b"version https://git-lfs.github.com/") {
        Some("a Git LFS pointer that stands for the model; get the model itself with `git lfs pull`")
    } else if page(b"<!doctype html") || page(b"<html") || page(b"<?xml") {
        Some(
            "a web page, such as a login or an error, not the model; download it again, from where a browser would save the file",
        )
    } else if picture.iter().any(|magic| start.starts_with(magic)) && length_of_header(start).is_none() {
        Some("a picture, not a model; name the model file")
    } else {
        None
    }
}

/// The length of its header that a safetensors file starts with, where a header of JSON follows.
fn length_of_header(start: &[u8]) -> Option<u64> {
    let (length, rest) = start.split_first_chunk::<8>()?;
    rest.trim_ascii_start().starts_with(b"{").then(|| u64::from_le_bytes(*length))
}

/// The tensors of a checkpoint.
pub struct Checkpoint {
    tensors: StoredTensors,
    /// Strings of a safetensors file.
    strings: BTreeMap<String, String>,
    /// Classes whose objects were not looked into.
    passed_over: Vec<String>,
}

/// Finds the tensors of a `.pt`, `.pth` or `.safetensors` file. Their values are read when they are used, as those of
/// [`Model::open`].
///
/// # Errors
/// [`Error::Io`] where it cannot be opened, [`Error::ModelFile`] where it is damaged, compressed, big-endian or something
/// else, [`Error::Tensor`] where a tensor claims more than its storage holds.
pub fn read_checkpoint(path: &Path) -> Result<Checkpoint> {
    let content = Arc::new(Content::open(path)?);
    let start = content.start(LEGACY_MAGIC.len())?;
    let found = if start.starts_with(&ZIP_MAGIC) {
        container::read_zip(&content)
    } else if start.starts_with(&LEGACY_MAGIC) {
        container::read_legacy(&content)
    } else {
        drop(start);
        let SafetensorsFile { tensors, strings } = SafetensorsFile::read(content)?;
        return Ok(Checkpoint { tensors, strings, passed_over: Vec::new() });
    };
    drop(start);
    let found = found.map_err(|reason| content.error(reason))?;
    Ok(Checkpoint {
        tensors: StoredTensors::new(content, found.tensors)?,
        strings: BTreeMap::new(),
        passed_over: found.passed_over.into_iter().collect(),
    })
}

impl Checkpoint {
    /// Names and shapes of all tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, tensor)| (name, &tensor.shape[..]))
    }

    /// Values of all tensors, in the order of their shapes whatever their strides.
    pub fn weights(&self) -> &(dyn WeightSource + Send + Sync) {
        &self.tensors
    }

    /// Starts of the names of each UNet's tensors, the preferred one first: one whose name says that it is an
    /// exponential moving average (`ema`), or else the shortest.
    pub fn backbones(&self) -> Vec<&str> {
        let mut prefixes = self.prefixes(UNET_MARK);
        prefixes.sort_by_key(|prefix| (std::cmp::Reverse(averages(prefix)), prefix.len(), *prefix));
        prefixes
    }

    /// Starts of the names of each head's tensors, by number and name.
    pub fn heads(&self) -> Vec<&str> {
        let mut prefixes = self.prefixes(HEAD_MARKS[0]);
        prefixes.retain(|prefix| self.tensors.get(&format!("{prefix}{}", HEAD_MARKS[1])).is_some());
        prefixes.sort_by_key(|prefix| {
            let numbered = |part: &str| (part.parse::<u64>().unwrap_or(u64::MAX), part.to_owned());
            prefix.split('.').map(numbered).collect::<Vec<_>>()
        });
        prefixes
    }

    fn prefixes(&self, mark: &str) -> Vec<&str> {
        let prefixes = self.tensors.names().filter_map(|name| name.strip_suffix(mark));
        prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.')).collect()
    }

    /// The UNet in it, described by `options`, a sidecar `NAME.json` and its shapes. Where there are several, it is the first of
    /// [`backbones`](Self::backbones) unless `options.prefix` says which, and the choice is among the model's
    /// [assumptions](Model::assumptions).
    ///
    /// # Errors
    /// [`Error::ModelFile`] where there is none, and what [`Model::open_with`] reports.
    pub fn into_backbone(self, options: &BackboneOptions) -> Result<Model> {
        let content = self.tensors.content();
        let prefixes = self.backbones();
        let mut assumptions = Vec::new();
        let prefix = match &options.prefix {
            Some(prefix) if prefixes.contains(&&prefix[..]) => prefix.clone(),
            Some(prefix) => {
                return Err(content.error(format!(
                    "holds no UNet whose tensors' names start with {prefix:?}; {}",
                    match &prefixes[..] {
                        [] => "it holds none at all".to_owned(),
                        some => format!("there are {some:?}"),
                    }
                )));
            }
            None => match &prefixes[..] {
                [] => return Err(self.nothing(UNET)),
                [only] => (*only).to_owned(),
                [first, others @ ..] => {
                    assumptions.push(format!("the network {first:?} is meant, not {others:?} (prefix)"));
                    (*first).to_owned()
                }
            },
        };
        let description =
            match described_by(&self.strings).map_err(|error| content.error(error.to_string()))? {
                Some(description) => Some(description),
                None => Description::from_sidecar(content.path())?,
            };
        let tensors = self.tensors.below(&prefix);
        Model::from_stored(tensors, description, options, assumptions)
    }

    /// The heads in it, at least one.
    ///
    /// # Errors
    /// [`Error::ModelFile`] where there is none, [`Error::Tensor`] where one is incomplete, has shapes that do not fit each
    /// other or values that are not finite.
    pub fn into_heads(self) -> Result<Vec<Head>> {
        let prefixes = self.heads();
        if prefixes.is_empty() {
            return Err(self.nothing(HEAD));
        }
        if prefixes.len() > super::Metadata::MOST_HEADS {
            return Err(self.tensors.content().error(format!("holds {} heads, too many", prefixes.len())));
        }
        prefixes.iter().map(|prefix| Head::from_weights(&self.tensors, prefix)).collect()
    }

    fn nothing(&self, what: &str) -> Error {
        let names: Vec<&str> = self.tensors.names().take(3).collect();
        let mut reason = if self.backbones().is_empty() && self.heads().is_empty() {
            format!("holds neither {UNET} nor {HEAD}")
        } else {
            format!("does not hold {what}")
        };
        if self.tensors.names().any(|name| name.contains("down_blocks.0.resnets.0")) {
            reason +=
                "; these are names of diffusers, which must be converted to those of guided-diffusion first";
        }
        if !names.is_empty() {
            reason += &format!("; its tensors are called {}, …", names.join(", "));
        }
        if !self.passed_over.is_empty() {
            reason += &format!(
                "; it holds objects of {}, which are not looked into: save the network's `state_dict()` instead",
                self.passed_over.join(", ")
            );
        }
        self.tensors.content().error(reason)
    }
}

/// How often a name says `ema`.
fn averages(prefix: &str) -> usize {
    prefix.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.eq_ignore_ascii_case("ema")).count()
}
