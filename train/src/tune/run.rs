//! A run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use mdm::engine::DeviceKind;
use mdm::image::ImageSource;
use mdm::intensity::{IntensityRange, IntensityWarning, SeenIntensities};
use mdm::model::{Border, Class, FeatureConfig, MapWeights, Metadata, Model, UnetConfig};
use mdm::segment::{Band, SegmentOptions, Segmenter};
use mdm::{Control, Device, Error, Result};

use super::augment::Augmentation;
use super::head::{Dice, Map, TunedHead, labelled};
use super::options::{Length, PixelLoss, TuneOptions};
use super::picture::{Picture, Target};
use crate::engine::learner;
use crate::fit::random::Random;
use crate::fit::standardise::Standardisation;
use crate::fit::{ImageWarning, LabelledImages};
use crate::learner::{Learner, LearnerOptions, LearnerState, StatePart, Update};
use crate::loss::Loss;
use crate::metrics::Scores;
use crate::optimise;

/// Streams of random numbers.
const INITIAL: u64 = 1 << 40;
const STANDARDISING: u64 = 1 << 41;
/// Side of the resulting model's windows in crops: they see more around each pixel, at the same price for each.
const WINDOW_CROPS: usize = 2;
/// Labelled pixels of a crop that count in a step, at most: neighbours say nearly the same.
const MOST_PIXELS: usize = 4096;
/// Steps over which learning rates rise.
const WARM_UP: u64 = 20;
/// Batches whose features say how channels are standardised.
const STANDARDISING_BATCHES: usize = 4;
/// Steps over which the reported mean is taken, about.
const SMOOTHING: f64 = 50.0;
/// From so many images on, every fourth one can be held out.
const HELD_OUT_IMAGES: usize = 4;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneProgress {
    /// Steps done.
    pub step: u64,
    /// Part of the run that is done, in [0, 1].
    pub done: f64,
    /// Mean loss of about the last fifty steps.
    pub loss: f64,
    /// Part of the labelled pixels of about the last fifty batches that got their class.
    pub accuracy: f64,
    /// Whether this is the run without the images that are held out.
    pub trial: bool,
}

/// A tuned network and how it came about.
#[derive(Clone)]
pub struct TuneReport {
    /// The model: a backbone of its own and one head.
    pub model: Model,
    /// The last of the run.
    pub last: TuneProgress,
    /// Seconds it took, without the trial.
    pub seconds: f64,
    /// Scores on the images that were held out from a trial run of the same length, and their names.
    pub held_out: Option<(Scores, Vec<String>)>,
    /// Labelled pixels of each class at the model's scale.
    pub class_pixels: Vec<u64>,
    /// Images without any label, which were left out.
    pub unlabelled_images: Vec<String>,
    /// What looks wrong about the images' values.
    pub warnings: Vec<ImageWarning>,
}

/// Tunes the backbone of `model`, with a new head, on labelled images.
///
/// The result takes features at one timestep, of windows that are not corrupted. Without `classes`, they are numbered.
/// `report` is called after each step. The same options on the same device give the same network, unless
/// [`Length::Time`] decides.
///
/// # Errors
/// [`Error::Invalid`] for options out of range and labels that do not fit, naming the image; [`Error::Cancelled`] between two
/// operations; those of the device.
pub fn tune(
    model: &Model,
    device: &Device,
    images: &mut dyn LabelledImages,
    classes: Vec<Class>,
    options: &TuneOptions,
    report: &mut dyn FnMut(TuneProgress),
    control: &Control<'_>,
) -> Result<TuneReport> {
    let metadata = model.metadata();
    features_of(model, options)?;
    let range = range_of(model, options);
    let target = Target {
        image_microns: options.microns_per_pixel,
        microns_per_pixel: metadata.microns_per_pixel,
        channels: metadata.unet.in_channels,
        range: &range,
    };
    let (pictures, unlabelled_images) = pictures(&target, images, control)?;
    let tuned = tune_pictures(model, device, &pictures, classes, options, report, control)?;
    Ok(TuneReport { unlabelled_images, ..tuned })
}

/// As [`tune`], on labelled images that are at the model's scale and in the range of the options.
pub(crate) fn tune_pictures(
    model: &Model,
    device: &Device,
    pictures: &[Picture],
    classes: Vec<Class>,
    options: &TuneOptions,
    report: &mut dyn FnMut(TuneProgress),
    control: &Control<'_>,
) -> Result<TuneReport> {
    let config = features_of(model, options)?;
    let range = range_of(model, options);
    let mut seen = None;
    let mut warnings = Vec::new();
    for picture in pictures {
        seen = SeenIntensities::with(seen, &picture.intensities);
        let warning =
            |warning: &IntensityWarning| ImageWarning { image: picture.name.clone(), warning: *warning };
        warnings.extend(picture.intensities.warnings.iter().map(warning));
    }
    let (classes, class_pixels) = classes_of(pictures, classes)?;
    let threads = match device.info().kind {
        DeviceKind::Cpu => device.info().threads,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("mdm-tune-{index}"))
        .start_handler(|_| mdm::threads::claim())
        .build()
        .map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?;
    let job = Job {
        model,
        device,
        range: &range,
        seen,
        config,
        classes,
        class_pixels: &class_pixels,
        options,
        pool: &pool,
    };

    let mut held_out = None;
    if options.held_out && pictures.len() >= HELD_OUT_IMAGES {
        let (mut kept, mut apart) = (Vec::new(), Vec::new());
        for (index, picture) in pictures.iter().enumerate() {
            if index % 4 == 3 { apart.push(picture) } else { kept.push(picture) }
        }
        let (tuned, _) = job.run(&kept, true, report, control)?;
        let names = apart.iter().map(|picture| picture.name.clone()).collect();
        held_out = Some((score(&tuned, device, &apart, control)?, names));
    }
    let began = Instant::now();
    let all: Vec<&Picture> = pictures.iter().collect();
    let (tuned, last) = job.run(&all, false, report, control)?;
    Ok(TuneReport {
        model: tuned,
        last,
        seconds: began.elapsed().as_secs_f64(),
        held_out,
        class_pixels,
        unlabelled_images: Vec::new(),
        warnings,
    })
}

/// The options are in their ranges; which activations are the features.
pub(crate) fn features_of(model: &Model, options: &TuneOptions) -> Result<FeatureConfig> {
    let metadata = model.metadata();
    options.validate(metadata.unet.deepest_downsampling())?;
    let config = options.features.clone().unwrap_or_else(|| metadata.features.clone());
    let first = config.timesteps.iter().copied().take(1).collect();
    let config = FeatureConfig { timesteps: first, normalise: false, ..config };
    config.validate(&metadata.unet, &metadata.corruption)?;
    Ok(config)
}

fn range_of(model: &Model, options: &TuneOptions) -> IntensityRange {
    options.range.clone().unwrap_or_else(|| model.metadata().intensity_range.inherited())
}

fn pictures(
    target: &Target<'_>,
    images: &mut dyn LabelledImages,
    control: &Control<'_>,
) -> Result<(Vec<Picture>, Vec<String>)> {
    let (mut pictures, mut unlabelled) = (Vec::new(), Vec::new());
    for index in 0..images.len() {
        control.check()?;
        let image = images.load(index)?;
        let picture = Picture::new(&image, target)?;
        if picture.labelled() == 0 { unlabelled.push(picture.name) } else { pictures.push(picture) }
    }
    Ok((pictures, unlabelled))
}

/// Names of the classes and the labelled pixels of each.
fn classes_of(pictures: &[Picture], classes: Vec<Class>) -> Result<(Vec<Class>, Vec<u64>)> {
    let mut pixels = BTreeMap::<u8, u64>::new();
    for picture in pictures {
        for (class, own) in &picture.places {
            if !classes.is_empty() && usize::from(*class) >= classes.len() {
                return Err(Error::invalid(
                    "labels",
                    format!(
                        "{}: label {class} is no class: there are {}, from 0 on",
                        picture.name,
                        classes.len()
                    ),
                ));
            }
            *pixels.entry(*class).or_default() += own.len() as u64;
        }
    }
    let [_, .., last] = pixels.keys().copied().collect::<Vec<_>>()[..] else {
        let what = match pixels.keys().next() {
            None => "no pixel is labelled".to_owned(),
            Some(class) => format!("only class {class} is labelled; a second one is needed to tell it from"),
        };
        return Err(Error::invalid("labels", what));
    };
    let classes = if classes.is_empty() { Class::numbered(usize::from(last) + 1) } else { classes };
    let counts = (0..classes.len()).map(|class| pixels.get(&(class as u8)).copied().unwrap_or(0)).collect();
    Ok((classes, counts))
}

/// One network to be tuned.
struct Job<'a> {
    model: &'a Model,
    device: &'a Device,
    range: &'a IntensityRange,
    seen: Option<SeenIntensities>,
    config: FeatureConfig,
    classes: Vec<Class>,
    class_pixels: &'a [u64],
    options: &'a TuneOptions,
    pool: &'a rayon::ThreadPool,
}

impl Job<'_> {
    fn run(
        &self,
        pictures: &[&Picture],
        trial: bool,
        report: &mut dyn FnMut(TuneProgress),
        control: &Control<'_>,
    ) -> Result<(Model, TuneProgress)> {
        let options = self.options;
        let unet = &self.model.metadata().unet;
        let mut network = Network::new(self, control)?;
        let mut draw = Draw::new(pictures, self.class_weights(), options);
        let standardisation = network.standardisation(&mut draw, control)?;
        let inputs = self.config.channels(unet);
        let mut random = Random::new(options.seed, INITIAL);
        let mut head = TunedHead::new(standardisation, inputs, self.classes.len(), &mut random);
        let mut moments = [vec![0.0; head.parameters.len()], vec![0.0; head.parameters.len()]];
        let mut progress = TuneProgress { step: 0, done: 0.0, loss: 0.0, accuracy: 0.0, trial };
        let began = Instant::now();
        let dice =
            Dice((options.loss == PixelLoss::CrossEntropyAndDice).then_some(1.0 / options.batch as f32));
        while progress.done < 1.0 {
            control.check()?;
            let factor = ((progress.step + 1) as f64 / WARM_UP as f64).min(1.0)
                * 0.5
                * (1.0 + (std::f64::consts::PI * progress.done).cos());
            let batch = self.pool.install(|| draw.batch(progress.step));
            let activations = network.activations(&batch.pixels, control)?;
            let maps = network.maps(&activations);
            let passed = self.pool.install(|| head.pass(&maps, options.size, &batch.labelled, dice));
            if !passed.loss.is_finite() {
                return Err(Error::invalid(
                    "learning rate",
                    format!("the loss is {} after {} steps; use a smaller rate", passed.loss, progress.step),
                ));
            }
            network.learner.propagate(&passed.maps, control)?;
            network.learner.update(&update(options, options.learning_rate * factor))?;
            let own = update(options, options.head_learning_rate * factor);
            self.pool.install(|| {
                let norm = optimise::norm(&passed.gradient);
                let scale = own.clip.map_or(1.0, |clip| (clip / norm).min(1.0));
                let [first_moment, second_moment] = &mut moments;
                optimise::adamw(
                    &own,
                    progress.step + 1,
                    scale,
                    &passed.gradient,
                    &mut optimise::Parameters {
                        values: &mut head.parameters,
                        first_moment,
                        second_moment,
                        ema: &mut [],
                    },
                );
            });
            progress.step += 1;
            progress.done = match options.length {
                Length::Steps(steps) => progress.step as f64 / steps as f64,
                Length::Time(time) => began.elapsed().as_secs_f64() / time.as_secs_f64(),
            }
            .min(1.0);
            let weight = 1.0 / (progress.step as f64).min(SMOOTHING);
            let accuracy = passed.right.0 as f64 / passed.right.1.max(1) as f64;
            progress.loss += weight * (passed.loss - progress.loss);
            progress.accuracy += weight * (accuracy - progress.accuracy);
            report(progress);
        }
        // The last report may have asked to stop.
        control.check()?;
        let microns = pictures[0].microns_per_pixel;
        let agree = pictures.iter().all(|picture| picture.microns_per_pixel == microns);
        Ok((self.finish(network, &head, microns.filter(|_| agree))?, progress))
    }

    /// Weight of each class in the loss.
    fn class_weights(&self) -> Vec<f32> {
        let all: u64 = self.class_pixels.iter().sum();
        let present = self.class_pixels.iter().filter(|count| **count > 0).count() as f64;
        let weight = |&count: &u64| match count {
            0 => 0.0,
            count if self.options.balance => (all as f64 / (present * count as f64)) as f32,
            _ => 1.0,
        };
        self.class_pixels.iter().map(weight).collect()
    }

    fn finish(
        &self,
        mut network: Network,
        head: &TunedHead,
        microns_per_pixel: Option<f64>,
    ) -> Result<Model> {
        let mut weights = network.learner.state_part(StatePart::Parameters)?;
        let source = self.model.backbone()?;
        let mut metadata = self.model.metadata().clone();
        for (name, shape) in metadata.unet.parameters() {
            if !weights.0.contains_key(&name) {
                weights.insert(&name, &shape, source.tensor(&name)?.data.into_owned());
            }
        }
        metadata.classes = self.classes.clone();
        metadata.features = self.config.clone();
        metadata.corruption.corrupt_features = false;
        metadata.window = (WINDOW_CROPS * self.options.size).min(Metadata::LARGEST_WINDOW);
        metadata.border = Border::Mirror;
        metadata.intensity_range = self.range.clone();
        metadata.intensities_seen = self.seen;
        metadata.backbone_fingerprint = None;
        metadata.microns_per_pixel = metadata.microns_per_pixel.or(microns_per_pixel);
        Model::from_parts(metadata, Arc::new(weights), vec![head.head()])
    }
}

fn update(options: &TuneOptions, learning_rate: f64) -> Update {
    Update {
        learning_rate,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: options.weight_decay,
        clip: options.clip,
    }
}

/// The backbone that learns.
struct Network {
    learner: Box<dyn Learner>,
    timesteps: Vec<f32>,
    /// Height, width and channels of each block's activations.
    shapes: Vec<(usize, usize, usize)>,
}

impl Network {
    fn new(job: &Job<'_>, control: &Control<'_>) -> Result<Self> {
        control.check()?;
        let Job { model, options, config, .. } = job;
        let unet = UnetConfig { image_size: options.size, ..model.metadata().unet.clone() };
        let source = model.backbone()?;
        let mut parameters = MapWeights::default();
        for (name, shape) in unet.parameters() {
            parameters.insert(&name, &shape, source.tensor(&name)?.data.into_owned());
        }
        let learner_options = LearnerOptions {
            microbatch: options.batch,
            size: options.size,
            loss: Loss::MeanSquare,
            recompute: false,
            ema_rates: Vec::new(),
            blocks: config.blocks.clone(),
            unet,
        };
        let state = LearnerState::fresh(Arc::new(parameters), 0);
        let shape = |block: &usize| {
            let (channels, factor) = model.metadata().unet.block_shape(*block);
            (options.size / factor, options.size / factor, channels)
        };
        Ok(Self {
            learner: learner(job.device, &learner_options, &state)?,
            timesteps: vec![config.timesteps[0] as f32; options.batch],
            shapes: config.blocks.iter().map(shape).collect(),
        })
    }

    fn activations(&mut self, pixels: &[f32], control: &Control<'_>) -> Result<Vec<Vec<f32>>> {
        self.learner.activations(pixels, &self.timesteps, &control.quiet())
    }

    fn maps<'a>(&self, activations: &'a [Vec<f32>]) -> Vec<Map<'a>> {
        let map = |(&(height, width, channels), values): (&(usize, usize, usize), &'a Vec<f32>)| Map {
            height,
            width,
            channels,
            values,
        };
        self.shapes.iter().zip(activations).map(map).collect()
    }

    /// What brings each channel of the features, as the backbone gives them now, to one scale.
    fn standardisation(&mut self, draw: &mut Draw<'_>, control: &Control<'_>) -> Result<Standardisation> {
        let channels: usize = self.shapes.iter().map(|(_, _, channels)| channels).sum();
        let (mut sums, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
        for batch in 0..STANDARDISING_BATCHES {
            let batch = draw.batch(STANDARDISING + batch as u64);
            let activations = self.activations(&batch.pixels, control)?;
            let mut first = 0;
            for map in self.maps(&activations) {
                let pixels = (map.values.len() / map.channels * STANDARDISING_BATCHES) as f64;
                for row in map.values.chunks_exact(map.channels) {
                    for (channel, &value) in row.iter().enumerate() {
                        sums[first + channel] += f64::from(value) / pixels;
                        squares[first + channel] += f64::from(value).powi(2) / pixels;
                    }
                }
                first += map.channels;
            }
        }
        for (square, mean) in squares.iter_mut().zip(&sums) {
            *square = (*square - mean * mean).max(0.0);
        }
        Ok(Standardisation::from_moments(&sums, &squares))
    }
}

/// Draws batches.
struct Draw<'a> {
    pictures: &'a [&'a Picture],
    /// Sums of the images' shares, which grow with the root of their labels.
    shares: Vec<f64>,
    class_weights: Vec<f32>,
    options: &'a TuneOptions,
}

struct Batch {
    pixels: Vec<f32>,
    labelled: Vec<super::head::Labelled>,
}

impl<'a> Draw<'a> {
    fn new(pictures: &'a [&'a Picture], class_weights: Vec<f32>, options: &'a TuneOptions) -> Self {
        let mut sum = 0.0;
        let shares = pictures.iter().map(|picture| {
            sum += (picture.labelled() as f64).sqrt();
            sum
        });
        Self { shares: shares.collect(), pictures, class_weights, options }
    }

    /// Batch number `number`, a function of the seed and that.
    fn batch(&self, number: u64) -> Batch {
        use rayon::prelude::*;
        let TuneOptions { batch, size, seed, loss, .. } = *self.options;
        let augmentation: &Augmentation = &self.options.augmentation;
        let channels = self.pictures[0].channels;
        let len = size * size * channels;
        let mut pixels = vec![0.0; batch * len];
        let mut labelled: Vec<_> = pixels
            .par_chunks_mut(len)
            .enumerate()
            .map(|(index, pixels)| {
                let stream = number.wrapping_mul(batch as u64).wrapping_add(index as u64);
                let mut random = Random::new(seed, stream);
                let at = random.uniform() * self.shares.last().copied().unwrap_or(0.0);
                let picture = self.shares.partition_point(|share| *share <= at).min(self.pictures.len() - 1);
                let mut labels = vec![0; size * size];
                augmentation.crop(self.pictures[picture], size, &mut random, pixels, &mut labels);
                labelled(
                    &labels,
                    size,
                    &self.class_weights,
                    loss == PixelLoss::BoundaryWeighted,
                    MOST_PIXELS,
                    &mut random,
                )
            })
            .collect();
        let total: f64 = labelled.iter().flatten().map(|(_, _, weight)| f64::from(*weight)).sum();
        if total > 0.0 {
            for (_, _, weight) in labelled.iter_mut().flatten() {
                *weight = (f64::from(*weight) / total) as f32;
            }
        }
        Batch { pixels, labelled }
    }
}

/// Scores `model` on pictures, which are at its scale.
fn score(model: &Model, device: &Device, pictures: &[&Picture], control: &Control<'_>) -> Result<Scores> {
    let mut segmenter = Segmenter::new(model, device, SegmentOptions::default())?;
    let mut scores = Vec::new();
    for picture in pictures {
        let mut labels = Vec::with_capacity(picture.labels.len());
        let mut keep = |band: Band<'_>| {
            labels.extend_from_slice(band.labels);
            Ok(())
        };
        segmenter.segment_bands(&mut Rows(picture), &mut keep, &control.quiet())?;
        scores.push(Scores::of_classes(&labels, &picture.labels, picture.width)?);
    }
    Ok(Scores::mean_and_deviation(&scores).0)
}

/// A picture as an image at the model's scale.
struct Rows<'a>(&'a Picture);

impl ImageSource for Rows<'_> {
    fn width(&self) -> usize {
        self.0.width
    }

    fn height(&self) -> usize {
        self.0.height
    }

    fn channels(&self) -> usize {
        self.0.channels
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let len = self.0.width * self.0.channels;
        out.copy_from_slice(&self.0.pixels[rows.start * len..rows.end * len]);
        Ok(())
    }
}
