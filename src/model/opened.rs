//! A model: backbone, heads, and what is known about them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::content::Content;
use super::describe::{Description, METADATA_KEY, belongs_to_unet, check_parameters, describe, described_by};
use super::fingerprint::fingerprint;
use super::safetensors_file::SafetensorsFile;
use super::stored::StoredTensors;
use super::{BackboneOptions, Head, Metadata, WeightSource};
use crate::engine::WeightCache;
use crate::{Error, Result};

/// Start of the names of heads' tensors: `heads.0.layers.0.weight` and so on.
pub(super) const HEADS: &str = "heads.";

/// A backbone, or heads that were fitted on one, or both. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    metadata: Metadata,
    heads: Vec<Head>,
    backbone: Option<Backbone>,
    cache: WeightCache,
    path: Option<PathBuf>,
    assumptions: Vec<String>,
}

/// Shared between models that differ in their heads only.
#[derive(Clone)]
struct Backbone {
    weights: Arc<dyn WeightSource + Send + Sync>,
    fingerprint: Arc<OnceLock<String>>,
}

impl Inner {
    fn new(metadata: Metadata, heads: Vec<Head>, backbone: Option<Backbone>) -> Self {
        let cache = WeightCache::default();
        Self { metadata, heads, backbone, cache, path: None, assumptions: Vec::new() }
    }
}

impl Backbone {
    fn new(weights: Arc<dyn WeightSource + Send + Sync>) -> Self {
        Self { weights, fingerprint: Arc::default() }
    }
}

impl Model {
    fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Opens a model file: a backbone, heads, or both.
    ///
    /// Names and shapes of all tensors are checked now; values are read and checked when they are used, and should be left as
    /// they are until then. A file that was shortened meanwhile is an error then; replacing it by renaming another
    /// file over it is fine.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ModelFile`] where the file is damaged or no model, [`Error::Tensor`] where a tensor is
    /// missing or does not fit the configuration, [`Error::Invalid`] where the metadata makes no sense.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, None, &BackboneOptions::default())
    }

    /// Opens a model file whose backbone may be in another one, and helps a plain state dict with its configuration.
    ///
    /// With `backbone`, `path` must hold heads only, and the backbone must be the one that they were fitted on: its
    /// fingerprint is computed, which reads it once. `options` describe the backbone in `path` and must be empty where that
    /// file holds heads. A sidecar `NAME.json` beside a file without metadata is read as well. See [`open`](Self::open) for what
    /// both files demand.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::ModelFile`] where heads and backbone do not belong together.
    pub fn open_with(path: &Path, backbone: Option<&Path>, options: &BackboneOptions) -> Result<Self> {
        Self::read(Arc::new(Content::open(path)?), backbone, options)
    }

    /// Takes the content of a model file: a backbone, heads, or both. It is checked as a file is, and stays in memory as long
    /// as the model.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::read(Arc::new(Content::of(bytes)), None, &BackboneOptions::default())
    }

    fn read(content: Arc<Content>, backbone: Option<&Path>, options: &BackboneOptions) -> Result<Self> {
        let path = &*content.path().to_owned();
        let wrong = |reason: String| Error::ModelFile { path: path.to_owned(), reason };
        let SafetensorsFile { mut tensors, strings } = SafetensorsFile::read(content)?;
        let description = described_by(&strings).map_err(|error| in_file(path, error))?;
        let promised = matches!(&description, Some(Description::Complete(metadata)) if metadata.heads > 0);
        if promised || tensors.names().any(|name| name.starts_with(HEADS)) {
            let Some(Description::Complete(metadata)) = description else {
                return Err(wrong(format!(
                    "holds heads but no metadata (key `{METADATA_KEY}`) to say what they were fitted on; \
                     write it with `mdm fit` or `mdm import`"
                )));
            };
            if *options != BackboneOptions::default() {
                return Err(Error::invalid(
                    "backbone options",
                    format!(
                        "{} holds heads that were fitted under its own description; leave the options out",
                        path.display()
                    ),
                ));
            }
            return Self::with_stored_heads(*metadata, tensors, backbone);
        }
        if backbone.is_some() {
            return Err(wrong(
                "holds no heads to go with another file's backbone; fit some with `mdm fit`".into(),
            ));
        }

        if let Some(prefix) = &options.prefix {
            tensors = tensors.below(prefix);
        }
        if !tensors.names().any(belongs_to_unet) {
            let prefixed = tensors.names().find_map(|name| name.strip_suffix("time_embed.0.weight"));
            return Err(wrong(match prefixed {
                Some(prefix) => {
                    format!(
                        "its tensors' names start with `{prefix}`; give this prefix, or convert it with `mdm import`"
                    )
                }
                None => "holds neither a UNet's tensors (`time_embed.0.weight` and so on) nor heads; \
                         it is some other kind of file"
                    .into(),
            }));
        }
        let description = match (description, tensors.content().file()) {
            (Some(description), _) => Some(description),
            (None, Some(file)) => Description::from_sidecar(file)?,
            (None, None) => None,
        };
        Self::from_stored(tensors, description, options, Vec::new())
    }

    /// A backbone from tensors of a file.
    pub(super) fn from_stored(
        tensors: StoredTensors,
        description: Option<Description>,
        options: &BackboneOptions,
        mut assumptions: Vec<String>,
    ) -> Result<Self> {
        let mut metadata = describe(&tensors, description, options, &mut assumptions).map_err(|error| {
            // What makes no sense may be what the caller said.
            let unasked = *options == BackboneOptions::default();
            if unasked { in_file(tensors.content().path(), error) } else { error }
        })?;
        metadata.heads = 0;
        let path = tensors.content().file().map(Path::to_owned);
        let backbone = Some(Backbone::new(Arc::new(tensors)));
        Ok(Self::new(Inner { path, assumptions, ..Inner::new(metadata, Vec::new(), backbone) }))
    }

    fn with_stored_heads(
        mut metadata: Metadata,
        tensors: StoredTensors,
        backbone: Option<&Path>,
    ) -> Result<Self> {
        let file = tensors.content().file().map(Path::to_owned);
        let path = &*tensors.content().path().to_owned();
        let wrong = |reason: String| Error::ModelFile { path: path.to_owned(), reason };
        let mut heads = Vec::with_capacity(metadata.heads);
        for index in 0..metadata.heads {
            heads.push(Head::from_weights(&tensors, &format!("{HEADS}{index}."))?);
        }
        let found = tensors.names().filter(|name| name.starts_with(HEADS)).count();
        let known: usize = heads.iter().map(|head| head.tensors("").len()).sum();
        if found != known {
            return Err(wrong(format!(
                "holds {found} tensors of heads where the metadata says {} heads, which have {known}; write the file again",
                metadata.heads
            )));
        }
        check_heads(&metadata, &heads).map_err(|error| in_file(path, error))?;

        let own = tensors.names().any(belongs_to_unet);
        let backbone = match (own, backbone) {
            (true, Some(_)) => {
                return Err(wrong("holds a backbone of its own; leave the other backbone out".into()));
            }
            (true, None) => {
                check_parameters(&tensors, &metadata.unet)?;
                Some(Backbone::new(Arc::new(tensors)))
            }
            (false, None) => None,
            (false, Some(other)) => {
                let Some(wanted) = &metadata.backbone_fingerprint else {
                    return Err(wrong(
                        "does not say which backbone its heads were fitted on; fit them again".into(),
                    ));
                };
                let tensors = SafetensorsFile::read(Arc::new(Content::open(other)?))?.tensors;
                check_parameters(&tensors, &metadata.unet)?;
                let found = fingerprint(&tensors, metadata.unet.parameters())?;
                if found != *wanted {
                    return Err(Error::ModelFile {
                        path: other.to_owned(),
                        reason: format!(
                            "is not the backbone that the heads in {} were fitted on (its fingerprint is {}…, theirs {}…); \
                             give that one, or fit heads on this one",
                            path.display(),
                            shortened(&found),
                            shortened(wanted)
                        ),
                    });
                }
                let backbone = Backbone::new(Arc::new(tensors));
                let _ = backbone.fingerprint.set(found);
                Some(backbone)
            }
        };
        metadata.heads = heads.len();
        Ok(Self::new(Inner { path: file, ..Inner::new(metadata, heads, backbone) }))
    }

    /// A model from weights that are generated or in memory, and possibly heads. `metadata.heads` is set to their number.
    ///
    /// Tensors are not looked at before they are used.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the metadata makes no sense, [`Error::Tensor`] where a head does not, or does not fit the
    /// features and classes of the metadata.
    pub fn from_parts(
        mut metadata: Metadata,
        backbone: Arc<dyn WeightSource + Send + Sync>,
        heads: Vec<Head>,
    ) -> Result<Self> {
        metadata.heads = heads.len();
        check_heads(&metadata, &heads)?;
        Ok(Self::new(Inner::new(metadata, heads, Some(Backbone::new(backbone)))))
    }

    /// The same backbone with other heads. `metadata` is a changed copy of [`metadata`](Self::metadata) that describes
    /// them: classes, features, corruption, window and the rest; its `unet` must be the same, and its `heads` is set.
    ///
    /// Both models share the packed weights of the backbone.
    ///
    /// # Errors
    /// As [`from_parts`](Self::from_parts).
    pub fn with_heads(&self, mut metadata: Metadata, heads: Vec<Head>) -> Result<Self> {
        if metadata.unet != self.0.metadata.unet {
            return Err(Error::invalid(
                "unet",
                "heads cannot change the configuration of the backbone below them",
            ));
        }
        metadata.heads = heads.len();
        check_heads(&metadata, &heads)?;
        Ok(Self::new(Inner { metadata, heads, ..(*self.0).clone() }))
    }

    /// What is known about it.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Heads, none for a mere backbone. All have the same shape.
    pub fn heads(&self) -> &[Head] {
        &self.0.heads
    }

    /// The file it was opened from.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// What had to be assumed about the backbone because nobody said it and shapes do not show it.
    pub fn assumptions(&self) -> &[String] {
        &self.0.assumptions
    }

    /// Whether it has a backbone; a file of heads alone has none.
    pub fn has_backbone(&self) -> bool {
        self.0.backbone.is_some()
    }

    /// The backbone's parameters, by the names of [`UnetConfig::parameters`](super::UnetConfig::parameters).
    ///
    /// # Errors
    /// [`Error::ModelFile`] where the file held heads only.
    pub fn backbone(&self) -> Result<&(dyn WeightSource + Send + Sync)> {
        self.0.backbone.as_ref().map(|backbone| &*backbone.weights).ok_or_else(|| self.no_backbone())
    }

    /// A hash of the backbone's tensors, 64 hexadecimal digits: their names, shapes and values as f32, whatever their
    /// order and stored precision. Computed on the first call, which reads them all, and shared by clones; for heads
    /// alone it is that of the backbone they were fitted on.
    ///
    /// # Errors
    /// [`Error::Tensor`] where a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let Some(backbone) = &self.0.backbone else {
            return self.0.metadata.backbone_fingerprint.clone().ok_or_else(|| self.no_backbone());
        };
        if let Some(known) = backbone.fingerprint.get() {
            return Ok(known.clone());
        }
        let computed = fingerprint(&*backbone.weights, self.0.metadata.unet.parameters())?;
        Ok(backbone.fingerprint.get_or_init(|| computed).clone())
    }

    /// The fingerprint, if it need not be computed.
    pub(super) fn known_fingerprint(&self) -> Option<String> {
        let computed = self.0.backbone.as_ref().and_then(|backbone| backbone.fingerprint.get());
        computed.or(self.0.metadata.backbone_fingerprint.as_ref()).cloned()
    }

    /// Packed parameters of the backbone, shared by clones and by models that differ in their heads only. Nothing but the
    /// backbone's parameters may be kept in it.
    pub fn weight_cache(&self) -> &WeightCache {
        &self.0.cache
    }

    fn no_backbone(&self) -> Error {
        let whose = self.0.metadata.backbone_fingerprint.as_deref().map(shortened);
        Error::ModelFile {
            path: self.0.path.clone().unwrap_or_else(|| "the model".into()),
            reason: format!(
                "holds heads without their backbone; name the backbone file as well (`--backbone`), the one whose fingerprint is {}…",
                whose.unwrap_or("unknown")
            ),
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("path", &self.0.path)
            .field("metadata", &self.0.metadata)
            .field("heads", &self.0.heads.len())
            .field("backbone", &self.has_backbone())
            .finish()
    }
}

/// Says which file it was that makes no sense.
fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Invalid { what, reason } => {
            Error::ModelFile { path: path.to_owned(), reason: format!("{what}: {reason}") }
        }
        other => other,
    }
}

/// Enough of a fingerprint to tell it from another.
fn shortened(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

/// Checks metadata and heads, and that they belong together.
fn check_heads(metadata: &Metadata, heads: &[Head]) -> Result<()> {
    metadata.validate()?;
    let channels = metadata.features.channels(&metadata.unet);
    for (index, head) in heads.iter().enumerate() {
        head.validate()?;
        let wrong = |reason| Err(Error::tensor(format!("{HEADS}{index}.layers"), reason));
        if head.channels() != channels {
            return wrong(format!(
                "takes {} feature channels; timesteps {:?} and blocks {:?} make {channels}, so the features are others",
                head.channels(),
                metadata.features.timesteps,
                metadata.features.blocks
            ));
        }
        if head.classes() != metadata.classes.len() {
            return wrong(format!("tells apart {} classes of {}", head.classes(), metadata.classes.len()));
        }
        if head.hidden() != heads[0].hidden() {
            return wrong(format!(
                "has hidden layers of {:?}, head 0 of {:?}",
                head.hidden(),
                heads[0].hidden()
            ));
        }
    }
    Ok(())
}
