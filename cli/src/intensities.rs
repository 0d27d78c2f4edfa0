//! Warnings about images' values, one a kind and suggested range however many images there are.

use mdm::intensity::IntensityWarning;
use mdm_train::fit::ImageWarning;
use serde::Serialize;

use crate::error::warn;

/// The argument that several subcommands have.
pub(crate) const RANGE_HELP: &str = "\
Which stored values are black and white (--range): cameras often fill a part of their files' bits only, such as 12 of 16. LOW,HIGH are values in the files' own units (0,4095), or LOW,HIGH/LOW,HIGH/... one pair a channel; \"percentile\" measures each image and channel (1 and 99.8 percent of the whole image, or \"percentile:LOW,HIGH\"), which makes exposure and offset vanish; \"declared\" believes what the file says (OME SignificantBits, TIFF MaxSampleValue, PNG sBIT), and else takes all of the file's bits, as \"type\" always does. What lies beyond is clamped. A model keeps the range that it was fitted with.";

/// Images of which the same is to be said.
#[derive(Debug, Serialize)]
pub(crate) struct ImagesWarned {
    /// "narrow", "outside" or "no contrast".
    kind: &'static str,
    /// How many there are.
    images: usize,
    /// The first of them.
    first: String,
    /// What is to be said about it.
    message: String,
    /// A range that would suit it better.
    suggestion: Option<String>,
}

/// What is to be said about the images of a command.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct IntensityWarnings(Vec<ImagesWarned>);

impl IntensityWarnings {
    /// What looks wrong about the images of a fit.
    pub(crate) fn of(warnings: &[ImageWarning]) -> Self {
        let mut all = Self::default();
        for ImageWarning { image, warning } in warnings {
            all.add(image, warning);
        }
        all
    }

    /// Takes note of what looks wrong about an image.
    pub(crate) fn add(&mut self, image: &str, warning: &IntensityWarning) {
        let kind = match warning {
            IntensityWarning::Narrow { .. } => "narrow",
            IntensityWarning::Outside { .. } => "outside",
            _ => "no contrast",
        };
        let suggestion = warning.suggestion().map(|range| range.to_string());
        match self.0.iter_mut().find(|known| known.kind == kind && known.suggestion == suggestion) {
            Some(known) => known.images += 1,
            None => self.0.push(ImagesWarned {
                kind,
                images: 1,
                first: image.to_owned(),
                message: warning.to_string(),
                suggestion,
            }),
        }
    }

    /// Says a line a kind and suggestion. Images were looked at for a model that was fitted with other ones, if that is so.
    pub(crate) fn say(&self, for_a_fitted_model: bool) {
        for ImagesWarned { kind, images, first, message, suggestion } in &self.0 {
            let which =
                if *images == 1 { first.clone() } else { format!("{images} images, such as {first}") };
            let advice = match (*kind, suggestion) {
                ("no contrast", _) => String::new(),
                ("outside", _) if for_a_fitted_model => {
                    "; the result may be useless: is it the same kind of image, and is --range needed?"
                        .to_owned()
                }
                ("outside", _) => "; is --range right?".to_owned(),
                (_, Some(range)) => format!("; use --range {range} or --range percentile"),
                (_, None) => "; use --range LOW,HIGH or --range percentile".to_owned(),
            };
            warn(format!("{which}: {message}{advice}"));
        }
    }
}
