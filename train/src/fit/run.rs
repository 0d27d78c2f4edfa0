//! From labelled images to a model that segments.

use std::time::Instant;

use mdm::intensity::SeenIntensities;
use mdm::model::{Class, FeatureConfig, Head, Model};
use mdm::segment::FeatureOptions;
use mdm::{Control, Device, Error, Progress, Result};

use super::collect::{Collected, HeldOutPart, ImageWarning, collect};
use super::ensemble::fit_heads;
use super::labels::LabelledImages;
use super::options::FitOptions;
use super::place::HeadDevice;
use super::predictor::PixelScores;

/// Units of progress of each half of [`fit`].
const HALF: u64 = 500;

/// A fitted model and how well it fits.
#[derive(Clone)]
pub struct FitReport {
    /// The backbone with its new heads.
    pub model: Model,
    /// The ensemble on pixels that it was fitted on.
    pub training: PixelScores,
    /// A single head that was fitted without [`held_out_part`](Self::held_out_part) of the labels, on that part; the
    /// ensemble was fitted on all labels and should do somewhat better. `None` if that was not asked for, or if a class
    /// would have been missing.
    pub held_out: Option<PixelScores>,
    /// What was held out.
    pub held_out_part: HeldOutPart,
    /// Labelled pixels of each class at the model's scale.
    pub class_pixels: Vec<u64>,
    /// Samples that were drawn from them; pixels where windows overlap may be drawn from each.
    pub samples: usize,
    /// Images without any label, which were left out.
    pub unlabelled_images: Vec<String>,
    /// What looks wrong about the images' values.
    pub warnings: Vec<ImageWarning>,
    /// Steps that each head took.
    pub steps: Vec<usize>,
    /// Seconds spent on features.
    pub feature_seconds: f64,
    /// Seconds spent on heads.
    pub head_seconds: f64,
    /// Where the heads were trained.
    pub head_device: HeadDevice,
}

/// Fits heads for the backbone of `model` on labelled images: [`collect`], then [`fit_collected`].
///
/// Without `classes`, there are as many as labels occur. Progress is in thousandths, half of them for the features; to
/// see it in windows and steps, call the two functions one after the other.
///
/// # Errors
/// Those of [`collect`] and [`fit_collected`].
pub fn fit(
    model: &Model,
    device: &Device,
    images: &mut dyn LabelledImages,
    classes: Vec<Class>,
    feature_options: &FeatureOptions,
    options: &FitOptions,
    control: &Control<'_>,
) -> Result<FitReport> {
    let part = |start: u64, progress: Progress| {
        control.report(start + progress.done * HALF / progress.total.max(1), 2 * HALF);
    };
    let (first, second) = (|progress| part(0, progress), |progress| part(HALF, progress));
    let count = (!classes.is_empty()).then_some(classes.len());
    let watched = control.quiet().with_progress(&first);
    let collected = collect(model, device, images, count, feature_options, options, &watched)?;
    let watched = control.quiet().with_progress(&second);
    fit_collected(model, device, &collected, classes, feature_options, options, &watched)
}

/// Fits heads on samples that were [`collect`]ed from the same backbone with the same options.
///
/// Without `classes`, they are numbered. The new model takes features as `feature_options` say; where the backbone does
/// not know its own micrometres per pixel, it takes those of the images if they agree. Heads are trained on
/// `device`, as [`fit_heads`] does. Progress is in optimiser steps of all heads.
///
/// # Errors
/// Those of [`fit_heads`], and [`mdm::Error::Invalid`] where `classes` are not as many as the samples have.
pub fn fit_collected(
    model: &Model,
    device: &Device,
    collected: &Collected,
    classes: Vec<Class>,
    feature_options: &FeatureOptions,
    options: &FitOptions,
    control: &Control<'_>,
) -> Result<FitReport> {
    let classes = if classes.is_empty() { Class::numbered(collected.classes) } else { classes };
    if classes.len() != collected.classes {
        let reason = format!("{} are named, the samples have {}", classes.len(), collected.classes);
        return Err(Error::invalid("classes", reason));
    }
    let began = Instant::now();
    let fitted = fit_heads(&collected.samples, classes.len(), options, device, control)?;
    let head_seconds = began.elapsed().as_secs_f64();
    let feature_options = &FeatureOptions { range: Some(collected.range.clone()), ..feature_options.clone() };
    let taken = (&collected.features, collected.window, feature_options);
    let found = (collected.microns_per_pixel, collected.seen);
    Ok(FitReport {
        model: fitted_model(model, classes, taken, found, fitted.heads)?,
        warnings: collected.warnings.clone(),
        training: fitted.training,
        held_out: fitted.held_out,
        held_out_part: collected.held_out.clone(),
        class_pixels: collected.class_pixels.clone(),
        samples: collected.samples.len(),
        unlabelled_images: collected.unlabelled_images.clone(),
        steps: fitted.steps,
        feature_seconds: collected.seconds,
        head_seconds,
        head_device: fitted.device,
    })
}

/// `model` with heads for features that were `taken` as said.
pub(crate) fn fitted_model(
    model: &Model,
    classes: Vec<Class>,
    (features, window, options): (&FeatureConfig, usize, &FeatureOptions),
    (microns_per_pixel, seen): (Option<f64>, Option<SeenIntensities>),
    heads: Vec<Head>,
) -> Result<Model> {
    let mut metadata = model.metadata().clone();
    metadata.classes = classes;
    metadata.features = features.clone();
    metadata.window = window;
    metadata.overlap = options.overlap.unwrap_or(metadata.overlap);
    if let Some(corrupt) = options.corrupt {
        metadata.corruption.corrupt_features = corrupt;
    }
    if let Some(range) = &options.range {
        metadata.intensity_range = range.clone();
    }
    metadata.intensities_seen = seen;
    metadata.microns_per_pixel = metadata.microns_per_pixel.or(microns_per_pixel);
    model.with_heads(metadata, heads)
}
