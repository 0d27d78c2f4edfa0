//! `mdm info`: what a model file is.

use std::path::{Path, PathBuf};

use clap::Args;
use mdm::IntensityRange;
use mdm::model::{CorruptionKind, MaskRule, Model, NoiseSchedule, Summary};
use serde::Serialize;

use crate::arguments::ConfigurationArguments;
use crate::error::Result;
use crate::model::open_backbone;
use crate::output::{lossy, print, print_json};

const EXAMPLES: &str = "\
Examples:
  mdm info my-cells.safetensors
  mdm info backbone.safetensors --json";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Model file or guided-diffusion state dict (.safetensors)
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    configuration: ConfigurationArguments,
}

/// What is said about a model file.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(serialize_with = "lossy")]
    file: PathBuf,
    file_bytes: u64,
    /// Of the backbone.
    fingerprint: String,
    #[serde(flatten)]
    model: Summary,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = open_backbone(&arguments.file, &arguments.configuration)?;
    let report = describe(&model, &arguments.file)?;
    if arguments.json { print_json(&report) } else { print(&report.in_words()) }
}

/// Describes the model in `file`.
pub(crate) fn describe(model: &Model, file: &Path) -> Result<Report> {
    Ok(Report {
        file: file.to_owned(),
        file_bytes: std::fs::metadata(file).map_or(0, |file| file.len()),
        fingerprint: model.fingerprint()?,
        model: model.summary(),
    })
}

impl Report {
    /// The same for people.
    pub(crate) fn in_words(&self) -> String {
        let Summary { unet, corruption, features, classes, .. } = &self.model;
        let mut lines = vec![format!("{}: {}", self.file.display(), self.kind())];
        let mut say = |what: &str, words: String| lines.push(format!("  {what:<12}{words}"));
        if !self.model.description.is_empty() {
            say("about", self.model.description.clone());
        }
        if let Some((first, second)) = self.model.hidden {
            let classes: Vec<String> = classes
                .iter()
                .enumerate()
                .map(|(index, class)| {
                    let [r, g, b] = class.colour;
                    format!("{index} {} (#{r:02x}{g:02x}{b:02x})", class.name)
                })
                .collect();
            say("classes", classes.join(", "));
            say("heads", format!("{} of {first} and {second} hidden units", self.model.heads));
        }
        let stored: Vec<String> =
            self.model.stored_types.keys().map(|kind| format!("{kind:?}").to_lowercase()).collect();
        let mut size = format!(", {:.1} M parameters", self.model.parameters as f64 / 1e6);
        if !stored.is_empty() {
            size += &format!(" stored as {}", stored.join(" and "));
        }
        say(
            "network",
            format!(
                "UNet of width {}, {} levels {:?}{size}",
                unet.model_channels,
                unet.channel_mult.len(),
                unet.channel_mult
            ),
        );
        let heads = match unet.num_head_channels {
            Some(channels) => format!("{channels} channels a head"),
            None => format!("{} heads", unet.num_heads),
        };
        let resolutions: Vec<String> = unet.attention_ds.iter().map(|ds| format!("1/{ds}")).collect();
        say("attention", format!("at {} of the resolution, {heads}", resolutions.join(", ")));
        let taken = if corruption.corrupt_features { "from images so treated" } else { "from whole images" };
        say(
            "corruption",
            match corruption.kind {
                CorruptionKind::Mask { patch, rule } => {
                    let rule = match rule {
                        MaskRule::Paper => "the paper's",
                        MaskRule::Official => "the authors' code's",
                    };
                    format!(
                        "patches of {patch} px hidden by {rule} rule, T = {}; features {taken}",
                        corruption.timesteps
                    )
                }
                CorruptionKind::Gaussian { schedule } => {
                    let schedule = match schedule {
                        NoiseSchedule::Linear => "linear",
                        NoiseSchedule::Cosine => "cosine",
                    };
                    format!(
                        "Gaussian noise, {schedule} schedule, T = {}; features {taken}",
                        corruption.timesteps
                    )
                }
            },
        );
        let norm = if features.normalise { ", divided by their norm" } else { "" };
        say(
            "features",
            format!(
                "{} channels: decoder blocks {:?} at t = {:?}{norm}",
                self.model.feature_channels, features.blocks, features.timesteps
            ),
        );
        say(
            "window",
            format!(
                "{} px, {:.0} % shared with its neighbour",
                self.model.window,
                100.0 * self.model.overlap
            ),
        );
        say(
            "pixel size",
            match self.model.microns_per_pixel {
                Some(microns) => format!("{microns} um; images are brought to it"),
                None => "unknown; images are taken as they are".to_owned(),
            },
        );
        let mut intensities = match &self.model.intensity_range {
            IntensityRange::Type => "the files' type".to_owned(),
            IntensityRange::Declared => "what files declare, or else their type".to_owned(),
            IntensityRange::Fixed { .. } => format!("{} in stored units", self.model.intensity_range),
            IntensityRange::Percentile { low, high } => format!("percentiles {low} and {high} of each image"),
        };
        if let Some(seen) = &self.model.intensities_seen {
            intensities += &format!("; fitted on values {} to {}", seen.stored.low, seen.stored.high);
        }
        say("range", intensities);
        say("fingerprint", self.fingerprint.clone());
        lines.join("\n")
    }

    fn kind(&self) -> String {
        let size = format!("{:.1} MB", self.file_bytes as f64 / 1e6);
        match (self.model.has_backbone, self.model.heads) {
            (true, 0) => format!("a backbone, to be given to `mdm fit` ({size})"),
            (true, _) => format!("a model that can segment, backbone included ({size})"),
            (false, _) => format!("heads that need their backbone (`mdm segment --backbone`) ({size})"),
        }
    }
}
