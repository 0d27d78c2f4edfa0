//! `mdm info`: what a model file is.

use std::path::{Path, PathBuf};

use clap::Args;
use mdm::model::{CorruptionKind, MaskRule, Metadata, Model, NoiseSchedule};
use serde::Serialize;

use crate::arguments::ConfigurationArguments;
use crate::error::Result;
use crate::model::open_backbone;
use crate::output::{print, print_json};

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
    file: PathBuf,
    file_bytes: u64,
    /// Whether the network that describes pixels is in the file.
    has_backbone: bool,
    /// Of the backbone; absent where the file holds only heads.
    parameters: Option<usize>,
    /// Number of heads.
    heads: usize,
    /// Widths of their hidden layers.
    hidden: Option<(usize, usize)>,
    /// Channels that describe a pixel.
    feature_channels: usize,
    /// Of the backbone.
    fingerprint: String,
    /// What had to be guessed about the backbone.
    assumptions: Vec<String>,
    metadata: Metadata,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = open_backbone(&arguments.file, &arguments.configuration)?;
    let report = describe(&model, &arguments.file)?;
    if arguments.json { print_json(&report) } else { print(&report.in_words()) }
}

/// Describes the model in `file`.
pub(crate) fn describe(model: &Model, file: &Path) -> Result<Report> {
    let metadata = model.metadata();
    Ok(Report {
        file: file.to_owned(),
        file_bytes: std::fs::metadata(file).map_or(0, |file| file.len()),
        has_backbone: model.has_backbone(),
        parameters: model.has_backbone().then(|| parameters(metadata)),
        heads: model.heads().len(),
        hidden: model.heads().first().map(|head| head.hidden()),
        feature_channels: metadata.features.channels(&metadata.unet),
        fingerprint: model.fingerprint()?,
        assumptions: model.assumptions().to_vec(),
        metadata: metadata.clone(),
    })
}

fn parameters(metadata: &Metadata) -> usize {
    metadata.unet.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

impl Report {
    /// The same for people.
    pub(crate) fn in_words(&self) -> String {
        let Metadata { unet, corruption, features, .. } = &self.metadata;
        let mut lines = vec![format!("{}: {}", self.file.display(), self.kind())];
        let mut say = |what: &str, words: String| lines.push(format!("  {what:<12}{words}"));
        if !self.metadata.description.is_empty() {
            say("about", self.metadata.description.clone());
        }
        if let Some((first, second)) = self.hidden {
            let classes: Vec<String> = self
                .metadata
                .classes
                .iter()
                .enumerate()
                .map(|(index, class)| {
                    let [r, g, b] = class.colour;
                    format!("{index} {} (#{r:02x}{g:02x}{b:02x})", class.name)
                })
                .collect();
            say("classes", classes.join(", "));
            say("heads", format!("{} of {first} and {second} hidden units", self.heads));
        }
        let size = self
            .parameters
            .map_or_else(String::new, |count| format!(", {:.1} M parameters", count as f64 / 1e6));
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
                self.feature_channels, features.blocks, features.timesteps
            ),
        );
        say(
            "window",
            format!(
                "{} px, {:.0} % shared with its neighbour",
                self.metadata.window,
                100.0 * self.metadata.overlap
            ),
        );
        say(
            "pixel size",
            match self.metadata.microns_per_pixel {
                Some(microns) => format!("{microns} um; images are brought to it"),
                None => "unknown; images are taken as they are".to_owned(),
            },
        );
        say("fingerprint", self.fingerprint.clone());
        lines.join("\n")
    }

    fn kind(&self) -> String {
        let size = format!("{:.1} MB", self.file_bytes as f64 / 1e6);
        match (self.has_backbone, self.heads) {
            (true, 0) => format!("a backbone, to be given to `mdm fit` ({size})"),
            (true, _) => format!("a model that can segment, backbone included ({size})"),
            (false, _) => format!("heads that need their backbone (`mdm segment --backbone`) ({size})"),
        }
    }
}
