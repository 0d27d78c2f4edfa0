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

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    file_bytes: u64,
    /// Whether the network that describes pixels is in the file.
    has_backbone: bool,
    /// Of the backbone; absent where the file holds only heads.
    parameters: Option<usize>,
    /// Number of heads.
    heads: usize,
    /// Of a pixel.
    feature_channels: usize,
    fingerprint: String,
    metadata: &'a Metadata,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = open_backbone(&arguments.file, &arguments.configuration)?;
    let metadata = model.metadata();
    let has_backbone = model.backbone().is_ok();
    let report = Report {
        file: &arguments.file,
        file_bytes: std::fs::metadata(&arguments.file).map_or(0, |file| file.len()),
        has_backbone,
        parameters: has_backbone.then(|| parameters(metadata)),
        heads: model.heads().len(),
        feature_channels: metadata.features.channels(&metadata.unet),
        fingerprint: model.fingerprint()?,
        metadata,
    };
    if arguments.json { print_json(&report) } else { print(&in_words(&report, &model)) }
}

fn parameters(metadata: &Metadata) -> usize {
    metadata.unet.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

fn in_words(report: &Report<'_>, model: &Model) -> String {
    let Metadata { unet, corruption, features, .. } = report.metadata;
    let mut lines = vec![format!("{}: {}", report.file.display(), kind(report))];
    let mut say = |what: &str, words: String| lines.push(format!("  {what:<12}{words}"));
    if !report.metadata.description.is_empty() {
        say("about", report.metadata.description.clone());
    }
    if report.heads > 0 {
        let classes: Vec<String> = report
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
        let (first, second) = model.heads()[0].hidden();
        say("heads", format!("{} of {first} and {second} hidden units", report.heads));
    }
    let size = report
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
    say("attention", format!("at 1/{:?} of the resolution, {heads}", unet.attention_ds));
    let hidden = if corruption.corrupt_features { "the network sees it so" } else { "not when segmenting" };
    say(
        "corruption",
        match corruption.kind {
            CorruptionKind::Mask { patch, rule } => {
                let rule = match rule {
                    MaskRule::Paper => "the paper's",
                    MaskRule::Official => "the authors' code's",
                };
                format!("patches of {patch} px hidden by {rule} rule, T = {}; {hidden}", corruption.timesteps)
            }
            CorruptionKind::Gaussian { schedule } => {
                let schedule = match schedule {
                    NoiseSchedule::Linear => "linear",
                    NoiseSchedule::Cosine => "cosine",
                };
                format!("Gaussian noise, {schedule} schedule, T = {}; {hidden}", corruption.timesteps)
            }
        },
    );
    let norm = if features.normalise { ", divided by their norm" } else { "" };
    say(
        "features",
        format!(
            "{} channels: decoder blocks {:?} at t = {:?}{norm}",
            report.feature_channels, features.blocks, features.timesteps
        ),
    );
    say(
        "window",
        format!(
            "{} px, {:.0} % shared with its neighbour",
            report.metadata.window,
            100.0 * report.metadata.overlap
        ),
    );
    say(
        "pixel size",
        match report.metadata.microns_per_pixel {
            Some(microns) => format!("{microns} um; images are brought to it"),
            None => "unknown; images are taken as they are".to_owned(),
        },
    );
    say("fingerprint", report.fingerprint.clone());
    lines.join("\n")
}

fn kind(report: &Report<'_>) -> String {
    let size = format!("{:.1} MB", report.file_bytes as f64 / 1e6);
    match (report.has_backbone, report.heads) {
        (true, 0) => format!("a backbone, to be given to `mdm fit` ({size})"),
        (true, _) => format!("a model that can segment, backbone included ({size})"),
        (false, _) => format!("heads that need their backbone (`mdm segment --backbone`) ({size})"),
    }
}
