//! From a state dict, and what is said about it, to a configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::infer::infer;
use super::stored::StoredTensors;
use super::{Corruption, CorruptionKind, MaskRule, Metadata, NoiseSchedule, UnetConfig};
use crate::{Error, Result};

/// What the caller knows of a backbone whose file does not describe itself. Whatever is given here goes before the
/// file's own words, those before a preset, and what nobody says is inferred from shapes or assumed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackboneOptions {
    /// A published configuration.
    pub preset: Option<Preset>,
    /// Side of the images it was trained on, in pixels; otherwise 256 is assumed.
    pub image_size: Option<usize>,
    /// Attention heads, where their width is not given.
    pub num_heads: Option<usize>,
    /// Channels of an attention head; otherwise 64 is assumed where it divides all channels, and 32 elsewhere.
    pub num_head_channels: Option<usize>,
    /// Order of attention's channels; otherwise the usual one, by head first, is assumed.
    pub use_new_attention_order: Option<bool>,
    /// Number of timesteps T; otherwise 1000.
    pub timesteps: Option<u32>,
    /// Masking or noise; otherwise patches are masked, or noise is added where the network also predicts a variance.
    pub corruption: Option<CorruptionKind>,
    /// Side of a masked patch in pixels; otherwise 8.
    pub patch: Option<usize>,
    /// Whether features are taken from corrupted images; otherwise they are.
    pub corrupt_features: Option<bool>,
    /// Side of the sliding window in pixels; otherwise that of the training images.
    pub window: Option<usize>,
    /// Size of a pixel of the training images, in micrometres.
    pub microns_per_pixel: Option<f64>,
    /// Where the weights come from, in free words.
    pub description: Option<String>,
    /// When importing a checkpoint that holds several networks, the start of the names of the wanted one's tensors, for
    /// example `model.`.
    pub prefix: Option<String>,
}

/// Published configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// [`UnetConfig::mdm_paper`], masked patches of 8 pixels.
    MdmPaper,
    /// [`UnetConfig::guided_diffusion_256`], Gaussian noise.
    #[serde(rename = "guided-diffusion-256")]
    GuidedDiffusion256,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::MdmPaper, Self::GuidedDiffusion256];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MdmPaper => "mdm-paper",
            Self::GuidedDiffusion256 => "guided-diffusion-256",
        }
    }

    fn facts(self) -> Facts {
        let (unet, corruption) = match self {
            Self::MdmPaper => (UnetConfig::mdm_paper(), Corruption::default().kind),
            Self::GuidedDiffusion256 => (
                UnetConfig::guided_diffusion_256(),
                CorruptionKind::Gaussian { schedule: NoiseSchedule::Linear },
            ),
        };
        Facts { corruption: Some(corruption), ..Facts::from_unet(&unet) }
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid("preset", format!("{name:?} is not one of {names}"))
        })
    }
}

/// What somebody said about a backbone; the fields of [`UnetConfig`] and a few more, all optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Facts {
    image_size: Option<usize>,
    in_channels: Option<usize>,
    out_channels: Option<usize>,
    model_channels: Option<usize>,
    channel_mult: Option<Vec<usize>>,
    num_res_blocks: Option<usize>,
    attention_ds: Option<Vec<usize>>,
    num_heads: Option<usize>,
    /// -1 where `num_heads` counts.
    num_head_channels: Option<i64>,
    use_scale_shift_norm: Option<bool>,
    resblock_updown: Option<bool>,
    use_new_attention_order: Option<bool>,
    num_classes: Option<usize>,
    corruption: Option<CorruptionKind>,
    corrupt_features: Option<bool>,
    patch: Option<usize>,
    rule: Option<MaskRule>,
    schedule: Option<NoiseSchedule>,
    #[serde(alias = "T")]
    timesteps: Option<u32>,
    #[serde(alias = "crop")]
    window: Option<usize>,
    microns_per_pixel: Option<f64>,
    description: Option<String>,
}

macro_rules! first_given {
    ($first:expr, $second:expr; $($field:ident),* $(,)?) => {
        Facts { $($field: $first.$field.or($second.$field)),* }
    };
}

impl Facts {
    fn from_unet(unet: &UnetConfig) -> Self {
        let heads = unet.num_head_channels.and_then(|channels| i64::try_from(channels).ok());
        Self {
            image_size: Some(unet.image_size),
            in_channels: Some(unet.in_channels),
            out_channels: Some(unet.out_channels),
            model_channels: Some(unet.model_channels),
            channel_mult: Some(unet.channel_mult.clone()),
            num_res_blocks: Some(unet.num_res_blocks),
            attention_ds: Some(unet.attention_ds.clone()),
            num_heads: Some(unet.num_heads),
            num_head_channels: Some(heads.unwrap_or(-1)),
            use_scale_shift_norm: Some(unet.use_scale_shift_norm),
            resblock_updown: Some(unet.resblock_updown),
            use_new_attention_order: Some(unet.use_new_attention_order),
            num_classes: unet.num_classes,
            ..Self::default()
        }
    }

    fn from_options(options: &BackboneOptions) -> Self {
        // A flag for one of the two ways to say the number of heads overrules both from elsewhere.
        let heads = match (options.num_head_channels, options.num_heads) {
            (Some(channels), _) => Some(i64::try_from(channels).unwrap_or(i64::MAX)),
            (None, Some(_)) => Some(-1),
            (None, None) => None,
        };
        Self {
            image_size: options.image_size,
            num_heads: options.num_heads,
            num_head_channels: heads,
            use_new_attention_order: options.use_new_attention_order,
            corruption: options.corruption,
            corrupt_features: options.corrupt_features,
            patch: options.patch,
            timesteps: options.timesteps,
            window: options.window,
            microns_per_pixel: options.microns_per_pixel,
            description: options.description.clone(),
            ..Self::default()
        }
    }

    /// These, and `others` where these say nothing.
    fn or(self, others: Self) -> Self {
        first_given!(self, others;
            image_size, in_channels, out_channels, model_channels, channel_mult, num_res_blocks, attention_ds, num_heads,
            num_head_channels, use_scale_shift_norm, resblock_updown, use_new_attention_order, num_classes, corruption,
            corrupt_features, patch, rule, schedule, timesteps, window, microns_per_pixel, description,
        )
    }
}

/// The key of this library's JSON in the metadata of a safetensors file.
pub(super) const METADATA_KEY: &str = "mdm";

/// What a file, or the sidecar beside it, says about the backbone in it.
pub(crate) enum Description {
    /// This library's metadata.
    Complete(Box<Metadata>),
    /// A configuration, possibly a partial one.
    Partial(Box<PartialDescription>),
}

/// See [`Description::Partial`].
pub(crate) struct PartialDescription(Facts);

impl Description {
    /// Understands this library's metadata, or an object with `model_channels`; `None` for any other JSON, or none.
    pub(crate) fn from_json(json: &str) -> Result<Option<Self>> {
        let Ok(serde_json::Value::Object(object)) = serde_json::from_str(json) else { return Ok(None) };
        if object.contains_key("unet") {
            return Ok(Some(Self::Complete(Box::new(Metadata::from_json(json)?))));
        }
        if !object.contains_key("model_channels") {
            return Ok(None);
        }
        let facts = serde_json::from_value(object.into())
            .map_err(|error| Error::invalid("configuration", format!("{error}; correct the JSON")))?;
        Ok(Some(Self::Partial(Box::new(PartialDescription(facts)))))
    }

    /// The one in `NAME.json` or `NAME.safetensors.json` beside `NAME.safetensors`, if there is one.
    pub(crate) fn from_sidecar(model: &Path) -> Result<Option<Self>> {
        let mut appended = model.as_os_str().to_owned();
        appended.push(".json");
        for path in [model.with_extension("json"), PathBuf::from(appended)] {
            let io = |source| Error::Io { action: "read", path: path.clone(), source };
            let wrong = |reason: String| Error::ModelFile { path: path.clone(), reason };
            let length = match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => metadata.len(),
                Ok(_) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io(error)),
            };
            if length > 1 << 20 {
                return Err(wrong(format!("{length} bytes are too many for a configuration; rename it")));
            }
            let json = std::fs::read_to_string(&path).map_err(io)?;
            let description = Self::from_json(&json).map_err(|error| wrong(error.to_string()))?;
            return description
                .ok_or_else(|| {
                    wrong("is not a JSON object with `model_channels`; correct it, or rename it if it is not meant".into())
                })
                .map(Some);
        }
        Ok(None)
    }
}

/// The first of a file's strings that describes a backbone; this library's own goes before others.
pub(crate) fn described_by(strings: &BTreeMap<String, String>) -> Result<Option<Description>> {
    if let Some(json) = strings.get(METADATA_KEY) {
        return Metadata::from_json(json).map(|metadata| Some(Description::Complete(Box::new(metadata))));
    }
    strings.values().find_map(|json| Description::from_json(json).transpose()).transpose()
}

/// The metadata of the backbone in `tensors`. What has to be assumed is added to `assumptions`, which end up in the
/// description.
pub(crate) fn describe(
    tensors: &StoredTensors,
    description: Option<Description>,
    options: &BackboneOptions,
    assumptions: &mut Vec<String>,
) -> Result<Metadata> {
    let given = Facts::from_options(options);
    let (base, said) = match description {
        Some(Description::Complete(metadata)) => {
            let facts = Facts::from_unet(&metadata.unet);
            (Some(*metadata), facts)
        }
        Some(Description::Partial(partial)) => (None, partial.0),
        None => (None, Facts::default()),
    };
    let preset = options.preset.map(Preset::facts).unwrap_or_default();
    let facts = given.or(said).or(preset);
    let unet = configuration(tensors, &facts, assumptions)?;
    unet.validate()?;
    check_parameters(tensors, &unet)?;

    let fresh = base.is_none();
    let mut metadata = base.unwrap_or_else(|| Metadata::new(unet.clone()));
    metadata.unet = unet;
    if fresh || facts.corruption.is_some() || facts.patch.is_some() {
        metadata.corruption.kind = corruption(&metadata, &facts, fresh, assumptions);
    }
    metadata.corruption.timesteps = facts.timesteps.unwrap_or(metadata.corruption.timesteps);
    metadata.corruption.corrupt_features =
        facts.corrupt_features.unwrap_or(metadata.corruption.corrupt_features);
    metadata.window = facts.window.unwrap_or(metadata.window);
    metadata.microns_per_pixel = facts.microns_per_pixel.or(metadata.microns_per_pixel);
    if fresh {
        let last = metadata.corruption.last_timestep();
        metadata.features.timesteps.iter_mut().for_each(|timestep| *timestep = last.min(*timestep));
    }
    if let Some(description) = facts.description {
        metadata.description = description;
    }
    if !assumptions.is_empty() {
        let separator = if metadata.description.is_empty() { "" } else { " " };
        metadata.description += &format!("{separator}(Assumed: {}.)", assumptions.join("; "));
    }
    metadata.validate()?;
    Ok(metadata)
}

fn corruption(
    metadata: &Metadata,
    facts: &Facts,
    fresh: bool,
    assumptions: &mut Vec<String>,
) -> CorruptionKind {
    let known = if fresh { None } else { Some(metadata.corruption.kind) };
    let mut kind = match (facts.corruption.or(known), facts.patch, facts.schedule) {
        (Some(kind), _, _) => kind,
        (None, None, Some(schedule)) => CorruptionKind::Gaussian { schedule },
        (None, Some(_), _) => Corruption::default().kind,
        (None, None, None) if metadata.unet.out_channels == 2 * metadata.unet.in_channels => {
            assumptions.push("Gaussian noise on a linear schedule, as a variance is predicted".into());
            CorruptionKind::Gaussian { schedule: NoiseSchedule::Linear }
        }
        (None, None, None) => {
            assumptions.push("corruption by masked patches of 8 pixels".into());
            Corruption::default().kind
        }
    };
    if let CorruptionKind::Mask { patch, rule } = &mut kind {
        *patch = facts.patch.unwrap_or(*patch);
        *rule = facts.rule.unwrap_or(*rule);
    }
    kind
}

fn configuration(
    tensors: &StoredTensors,
    facts: &Facts,
    assumptions: &mut Vec<String>,
) -> Result<UnetConfig> {
    let complete = (|| {
        Some(UnetConfig {
            image_size: 256,
            in_channels: facts.in_channels?,
            out_channels: facts.out_channels?,
            model_channels: facts.model_channels?,
            channel_mult: facts.channel_mult.clone()?,
            num_res_blocks: facts.num_res_blocks?,
            attention_ds: facts.attention_ds.clone()?,
            num_heads: 1,
            num_head_channels: None,
            use_scale_shift_norm: facts.use_scale_shift_norm?,
            resblock_updown: facts.resblock_updown?,
            use_new_attention_order: false,
            num_classes: facts.num_classes,
        })
    })();
    let mut unet = match complete {
        Some(unet) => unet,
        None => {
            let inferred = infer(tensors)?;
            UnetConfig {
                image_size: 256,
                in_channels: facts.in_channels.unwrap_or(inferred.in_channels),
                out_channels: facts.out_channels.unwrap_or(inferred.out_channels),
                model_channels: facts.model_channels.unwrap_or(inferred.model_channels),
                channel_mult: facts.channel_mult.clone().unwrap_or(inferred.channel_mult),
                num_res_blocks: facts.num_res_blocks.unwrap_or(inferred.num_res_blocks),
                attention_ds: facts.attention_ds.clone().unwrap_or(inferred.attention_ds),
                num_heads: 1,
                num_head_channels: None,
                use_scale_shift_norm: facts.use_scale_shift_norm.unwrap_or(inferred.use_scale_shift_norm),
                resblock_updown: facts.resblock_updown.unwrap_or(inferred.resblock_updown),
                use_new_attention_order: false,
                num_classes: facts.num_classes.or(inferred.num_classes),
            }
        }
    };
    unet.image_size = facts.image_size.unwrap_or_else(|| {
        assumptions.push("trained on images of 256 x 256 pixels (image_size)".into());
        256
    });
    unet.use_new_attention_order = facts.use_new_attention_order.unwrap_or_else(|| {
        assumptions.push("attention's channels are in the usual order (use_new_attention_order)".into());
        false
    });
    unet.num_heads = facts.num_heads.unwrap_or(1);
    unet.num_head_channels = match (facts.num_head_channels, facts.num_heads) {
        (Some(channels), _) => usize::try_from(channels).ok(),
        (None, Some(_)) => None,
        (None, None) => {
            let with = |channels| UnetConfig { num_head_channels: Some(channels), ..unet.clone() };
            let channels = if with(64).validate().is_ok() { 64 } else { 32 };
            assumptions.push(format!("{channels} channels an attention head (num_head_channels)"));
            Some(channels)
        }
    };
    Ok(unet)
}

/// Starts of the names of a UNet's tensors.
const NAMESPACES: [&str; 6] =
    ["time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out."];

/// Compares all names and shapes with what the configuration makes them. The configuration must be valid.
pub(crate) fn check_parameters(tensors: &StoredTensors, unet: &UnetConfig) -> Result<()> {
    let remedy = || {
        format!(
            "(in {}); either the configuration is another (width {}, multipliers {:?}, {} residual blocks a level, attention at {:?}, \
             {} to {} channels) or the file is incomplete",
            tensors.content().path().display(),
            unet.model_channels,
            unet.channel_mult,
            unet.num_res_blocks,
            unet.attention_ds,
            unet.in_channels,
            unet.out_channels
        )
    };
    let parameters = unet.parameters();
    for (name, shape) in &parameters {
        match tensors.shape(name) {
            None => return Err(Error::tensor(name, format!("is missing {}", remedy()))),
            Some(stored) if stored != shape => {
                return Err(Error::tensor(
                    name,
                    format!("has shape {stored:?}; the configuration makes it {shape:?} {}", remedy()),
                ));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<&str> = parameters.iter().map(|(name, _)| &name[..]).collect();
    match tensors.names().find(|name| belongs_to_unet(name) && !known.contains(name)) {
        Some(name) => Err(Error::tensor(name, format!("has no place in the network {}", remedy()))),
        None => Ok(()),
    }
}

/// Whether a tensor is, by its name, part of a UNet.
pub(crate) fn belongs_to_unet(name: &str) -> bool {
    NAMESPACES.iter().any(|namespace| name.starts_with(namespace))
}
