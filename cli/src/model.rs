//! Opens model files as the command line describes them.

use std::path::Path;

use mdm::model::{BackboneOptions, Model, Preset};

use crate::arguments::{AttentionOrder, ConfigurationArguments, PresetArgument};
use crate::error::{Result, failed, warn};

/// Opens a file with heads, its backbone perhaps in another one.
pub(crate) fn open_model(
    path: &Path,
    backbone: Option<&Path>,
    configuration: &ConfigurationArguments,
) -> Result<Model> {
    let model = Model::open_with(path, backbone, &options(configuration)?)?;
    tell_assumptions(&model);
    Ok(model)
}

/// Opens a file that describes itself or is described by the command line.
pub(crate) fn open_backbone(path: &Path, configuration: &ConfigurationArguments) -> Result<Model> {
    open_model(path, None, configuration)
}

/// Warns of what had to be guessed about a backbone.
pub(crate) fn tell_assumptions(model: &Model) {
    for assumption in model.assumptions() {
        warn(format!("assumed, as nothing says otherwise: {assumption}"));
    }
}

/// What the flags, and the file that one of them may name, say about a backbone.
pub(crate) fn options(arguments: &ConfigurationArguments) -> Result<BackboneOptions> {
    let mut options = match &arguments.config {
        Some(path) => from_file(path)?,
        None => BackboneOptions::default(),
    };
    if let Some(preset) = arguments.preset {
        options.preset = Some(match preset {
            PresetArgument::MdmPaper => Preset::MdmPaper,
            PresetArgument::GuidedDiffusion256 => Preset::GuidedDiffusion256,
        });
    }
    options.image_size = arguments.image_size.or(options.image_size);
    if arguments.head_channels.is_some() || arguments.attention_heads.is_some() {
        (options.num_head_channels, options.num_heads) = (arguments.head_channels, arguments.attention_heads);
    }
    if let Some(order) = arguments.attention_order {
        options.use_new_attention_order = Some(order == AttentionOrder::New);
    }
    options.patch = arguments.patch.or(options.patch);
    if let Some(noise) = arguments.noise {
        options.corruption = Some(mdm::model::CorruptionKind::Gaussian { schedule: noise.schedule() });
    }
    Ok(options)
}

/// Keys that shapes tell better are ignored; -1 means "absent" to guided-diffusion.
fn from_file(path: &Path) -> Result<BackboneOptions> {
    let cannot = |reason: String| failed(path, format!("cannot be read as a configuration: {reason}"));
    let text = std::fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
    let mut json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| cannot(error.to_string()))?;
    let object = json.as_object_mut().ok_or_else(|| cannot("it is not a JSON object".to_owned()))?;
    object.retain(|_, value| value.as_i64() != Some(-1));
    serde_json::from_value(json).map_err(|error| cannot(error.to_string()))
}
