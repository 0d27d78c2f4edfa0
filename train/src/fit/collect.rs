//! Samples from labelled images.

use std::collections::HashSet;
use std::time::Instant;

use mdm::intensity::{IntensityRange, IntensityWarning, SeenIntensities};
use mdm::model::{FeatureConfig, Model};
use mdm::segment::rescale::scale_between;
use mdm::segment::window::{WindowGrid, WindowPosition};
use mdm::segment::{FeatureOptions, Features, WindowFeatures};
use mdm::{Control, Device, Error, Result};

use super::labels::{LabelledImage, LabelledImages};
use super::options::FitOptions;
use super::random::Random;
use super::samples::Samples;
use crate::metrics::UNLABELLED;

/// Stream of random numbers that decides which pixels are sampled.
const SAMPLING: u64 = u64::MAX;
/// From this many labelled images on, whole images are held out; every fourth one.
const HELD_OUT_IMAGES: usize = 4;

/// Which part of the labels the held-out score is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldOutPart {
    /// Every fourth labelled image, by name: how well a head does on images it has not seen.
    Images(Vec<String>),
    /// A quarter of each image, in squares of half a window, where there are fewer than four images. Their surroundings
    /// were fitted on, so this is kinder than other images will be.
    Squares,
}

/// What looks wrong about the values of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageWarning {
    /// The image's name.
    pub image: String,
    /// What looks wrong.
    pub warning: IntensityWarning,
}

/// Samples, and what is known about where they come from.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The samples.
    pub samples: Samples,
    /// Number of classes: one more than the largest label, at least 2, where it was not given.
    pub classes: usize,
    /// Labelled pixels of each class at the model's scale, before sampling.
    pub class_pixels: Vec<u64>,
    /// Images without any label; they were left out.
    pub unlabelled_images: Vec<String>,
    /// What is held out.
    pub held_out: HeldOutPart,
    /// Micrometres per pixel that all images agree on.
    pub microns_per_pixel: Option<f64>,
    /// How stored values became what the network saw: as the options say, or else as the backbone was trained.
    pub range: IntensityRange,
    /// Which values the images have.
    pub seen: Option<SeenIntensities>,
    /// What looks wrong about them.
    pub warnings: Vec<ImageWarning>,
    /// Which activations the features are.
    pub features: FeatureConfig,
    /// Side of the windows they were taken from, in pixels at the model's scale.
    pub window: usize,
    /// Time it took.
    pub seconds: f64,
}

/// An image's labels at the model's scale and its windows.
struct Scaled {
    labels: Vec<u8>,
    grid: WindowGrid,
}

/// Extracts the features of labelled pixels, after the labels of all images were checked.
///
/// `classes` may be given or inferred. Windows without labels are left out. Progress is in windows.
///
/// # Errors
/// [`Error::Invalid`] naming the image where labels do not have its size, where no pixel or only one class is labelled,
/// and for a label that is not below `classes`; errors of `images`, of [`Features`], and [`Error::Cancelled`].
pub fn collect(
    model: &Model,
    device: &Device,
    images: &mut dyn LabelledImages,
    classes: Option<usize>,
    feature_options: &FeatureOptions,
    options: &FitOptions,
    control: &Control<'_>,
) -> Result<Collected> {
    let began = Instant::now();
    options.validate()?;
    if images.is_empty() {
        return Err(Error::invalid("images", "there is no labelled image"));
    }
    let range = feature_options.range.clone();
    let range = range.unwrap_or_else(|| model.metadata().intensity_range.inherited());
    let feature_options = &FeatureOptions { range: Some(range.clone()), ..feature_options.clone() };
    let collector = Collector { model, feature_options, options, range: &range };
    let mut features = Features::new(model, device, feature_options.clone())?;
    let survey = collector.survey(&features, images, classes, control)?;
    let mut samples = Samples::new(features.channels())?;
    samples.reserve(survey.density.total(&survey.images))?;
    let mut random = Random::new(options.seed, SAMPLING);
    let total = survey.images.iter().map(Counts::labelled).sum();
    let mut done = 0;
    let by_image = images.len() >= HELD_OUT_IMAGES;
    let mut held_out_names = Vec::new();
    for (index, counts) in survey.images.iter().enumerate() {
        if counts.is_unlabelled() {
            continue;
        }
        let image = images.load(index)?;
        let scaled = collector.scaled(&features, &image)?;
        if scaled.grid.count() != counts.windows.len() {
            return Err(image.wrong("the image changed while it was used"));
        }
        let held_out = by_image && index % 4 == 3;
        if held_out {
            held_out_names.push(image.name.clone().into_owned());
        }
        let square = (scaled.grid.window() / 2).max(1);
        let is_held_out = |y: usize, x: usize| {
            if by_image { held_out } else { (y / square + 2 * (x / square)).is_multiple_of(4) }
        };
        let counted = || scaled.grid.positions().zip(&counts.windows).filter(|(_, labelled)| **labelled > 0);
        let labelled: HashSet<WindowPosition> = counted().map(|(position, _)| position).collect();
        let mut windows = counted().map(|(_, labelled)| *labelled);
        let wanted = |position: WindowPosition| labelled.contains(&position);
        let name = image.name.clone();
        let extracted =
            features.extract_some(&mut { image.image }, &wanted, &control.quiet(), &mut |window| {
                let labelled = windows.next().unwrap_or(0);
                let mut pixels = labelled_pixels(&scaled, window.top, window.left);
                let wanted = survey.density.of(labelled).min(pixels.len());
                add(&mut samples, &window, &scaled, &mut pixels, wanted, &mut random, &is_held_out)?;
                done += 1;
                control.report(done, total);
                Ok(())
            });
        extracted.map_err(|error| named(&name, error))?;
    }
    Ok(Collected {
        samples,
        classes: survey.classes,
        class_pixels: survey.class_pixels[..survey.classes].to_vec(),
        unlabelled_images: survey.unlabelled_images,
        held_out: if by_image { HeldOutPart::Images(held_out_names) } else { HeldOutPart::Squares },
        microns_per_pixel: survey.microns_per_pixel,
        seen: survey.seen,
        warnings: survey.warnings,
        range,
        features: features.config().clone(),
        window: features.window(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Says which image it is that cannot be used.
fn named(name: &str, error: Error) -> Error {
    match error {
        Error::Image(reason) => Error::Image(format!("{name}: {reason}")),
        other => other,
    }
}

/// Adds `wanted` of a window's labelled `pixels`, chosen at random, as samples.
fn add(
    samples: &mut Samples,
    window: &WindowFeatures,
    scaled: &Scaled,
    pixels: &mut [u32],
    wanted: usize,
    random: &mut Random,
    is_held_out: &dyn Fn(usize, usize) -> bool,
) -> Result<()> {
    let width = scaled.grid.width();
    random.shuffle_front(pixels, wanted);
    let chosen = &mut pixels[..wanted];
    chosen.sort_unstable();
    for &pixel in &*chosen {
        let (y, x) = (pixel as usize / width, pixel as usize % width);
        let (row, column) = (y.wrapping_add_signed(-window.top), x.wrapping_add_signed(-window.left));
        samples.push(scaled.labels[pixel as usize], is_held_out(y, x), |features| {
            window.pixel(row, column, features);
        });
    }
    Ok(())
}

/// Indices into the scaled labels of the labelled pixels of a window.
fn labelled_pixels(scaled: &Scaled, top: isize, left: isize) -> Vec<u32> {
    labelled_in(&scaled.labels, &scaled.grid, WindowPosition { top, left })
}

/// Indices into `labels`, which `grid` covers, of the labelled pixels of the window at `position`.
pub(crate) fn labelled_in(labels: &[u8], grid: &WindowGrid, position: WindowPosition) -> Vec<u32> {
    let WindowPosition { top, left } = position;
    let (height, width, window) = (grid.height(), grid.width(), grid.window());
    let inside = |start: isize, size: usize| {
        let first = start.max(0).cast_unsigned().min(size);
        first..start.saturating_add_unsigned(window).max(0).cast_unsigned().min(size)
    };
    let columns = inside(left, width);
    inside(top, height)
        .flat_map(|row| columns.clone().map(move |column| row * width + column))
        .filter(|&pixel| labels[pixel] != UNLABELLED)
        .map(|pixel| pixel as u32)
        .collect()
}

/// What the first pass over all images finds.
struct Survey {
    images: Vec<Counts>,
    classes: usize,
    class_pixels: [u64; 256],
    unlabelled_images: Vec<String>,
    microns_per_pixel: Option<f64>,
    seen: Option<SeenIntensities>,
    warnings: Vec<ImageWarning>,
    density: Density,
}

/// Labelled pixels of each window of an image.
struct Counts {
    windows: Vec<u32>,
}

impl Counts {
    /// Windows with labels.
    fn labelled(&self) -> u64 {
        self.windows.iter().filter(|&&count| count > 0).count() as u64
    }

    fn is_unlabelled(&self) -> bool {
        self.labelled() == 0
    }
}

/// How many of a window's labelled pixels are sampled.
#[derive(Clone, Copy)]
pub(crate) struct Density {
    fraction: f64,
    few: usize,
    /// Lowers both, where there would be too many samples.
    pub(crate) share: f64,
}

impl Density {
    pub(crate) fn new(options: &FitOptions) -> Self {
        Self { fraction: options.fraction, few: options.few, share: 1.0 }
    }

    pub(crate) fn of(&self, labelled: u32) -> usize {
        let usual = (f64::from(labelled) * self.fraction) as usize;
        let wanted = usual.max(self.few.min(labelled as usize));
        (wanted as f64 * self.share) as usize
    }

    fn total(&self, images: &[Counts]) -> usize {
        images.iter().flat_map(|image| &image.windows).map(|&labelled| self.of(labelled)).sum()
    }
}

struct Collector<'a> {
    model: &'a Model,
    feature_options: &'a FeatureOptions,
    options: &'a FitOptions,
    range: &'a IntensityRange,
}

impl Collector<'_> {
    /// The labels of `image` at the model's scale and the windows that [`Features`] will cut it into.
    fn scaled(&self, features: &Features, image: &LabelledImage<'_>) -> Result<Scaled> {
        image.check_size()?;
        let metadata = self.model.metadata();
        let microns = self.feature_options.microns_per_pixel.or(image.image.microns_per_pixel());
        let (scale, _) = scale_between(microns, metadata.microns_per_pixel)?;
        let (height, width) = features.scaled_size(&image.image)?;
        if u32::try_from(height as u64 * width as u64).is_err() {
            return Err(image.wrong(format!("{width} x {height} pixels are too many for one labelled image")));
        }
        let overlap = self.feature_options.overlap.unwrap_or(metadata.overlap);
        let grid = WindowGrid::new(height, width, features.window(), overlap)?;
        Ok(Scaled { labels: image.scaled(height, width, 1.0 / scale), grid })
    }

    fn survey(
        &self,
        features: &Features,
        images: &mut dyn LabelledImages,
        classes: Option<usize>,
        control: &Control<'_>,
    ) -> Result<Survey> {
        let mut survey = Survey {
            images: Vec::new(),
            classes: 0,
            class_pixels: [0; 256],
            unlabelled_images: Vec::new(),
            microns_per_pixel: None,
            seen: None,
            warnings: Vec::new(),
            density: Density::new(self.options),
        };
        let mut names = Vec::new();
        let mut microns = Vec::new();
        for index in 0..images.len() {
            control.check()?;
            let image = images.load(index)?;
            let scaled = self.scaled(features, &image)?;
            for &label in scaled.labels.iter().filter(|&&label| label != UNLABELLED) {
                survey.class_pixels[usize::from(label)] += 1;
            }
            if let Some(classes) = classes {
                let beyond = |label: u8| usize::from(label) >= classes && label != UNLABELLED;
                if let Some(label) = image.labels.iter().copied().find(|&label| beyond(label)) {
                    return Err(image.wrong(format!(
                        "label {label} is no class: there are {classes}, from 0 on, and {UNLABELLED} means unlabelled"
                    )));
                }
            }
            let count =
                |position: WindowPosition| labelled_pixels(&scaled, position.top, position.left).len();
            let windows = scaled.grid.positions().map(|position| count(position) as u32).collect();
            let counts = Counts { windows };
            if counts.is_unlabelled() {
                survey.unlabelled_images.push(image.name.clone().into_owned());
            } else {
                let measured = self.range.measure(&mut { image.image }, None);
                let (_, report) = measured.map_err(|error| named(&image.name, error))?;
                survey.seen = SeenIntensities::with(survey.seen, &report);
                let warning = |warning| ImageWarning { image: image.name.clone().into_owned(), warning };
                survey.warnings.extend(report.warnings.into_iter().map(warning));
            }
            microns.push(self.feature_options.microns_per_pixel.or(image.image.microns_per_pixel()));
            names.push(image.name.into_owned());
            survey.images.push(counts);
        }
        let present: Vec<usize> = (0..255).filter(|&class| survey.class_pixels[class] > 0).collect();
        let [_, .., last] = present[..] else {
            let what = match present.first() {
                None => "no pixel is labelled".to_owned(),
                Some(class) => {
                    format!("only class {class} is labelled; a second one is needed to tell it from")
                }
            };
            return Err(Error::invalid("labels", format!("{}: {what}", shortened(&names))));
        };
        survey.classes = classes.unwrap_or(last + 1).max(2);
        let wanted = survey.density.total(&survey.images);
        survey.density.share = (self.options.max_samples as f64 / wanted.max(1) as f64).min(1.0);
        if microns.windows(2).all(|pair| pair[0] == pair[1]) {
            survey.microns_per_pixel = microns[0];
        }
        Ok(survey)
    }
}

/// A few names.
fn shortened(names: &[String]) -> String {
    match names {
        [first, second, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second} and {} more", rest.len())
        }
        _ => names.join(", "),
    }
}
