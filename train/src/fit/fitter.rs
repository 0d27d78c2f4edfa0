//! Heads that follow labels while they are drawn.

mod tuning;

use std::collections::{BTreeMap, HashMap};

use mdm::image::ImageView;
use mdm::intensity::{IntensityRange, IntensityReport, SeenIntensities};
use mdm::model::{Class, Head, Model};
use mdm::segment::rescale::scale_between;
use mdm::segment::window::{WindowGrid, WindowPosition};
use mdm::segment::{FeatureOptions, Features, WindowFeatures};
use mdm::{Control, Device, Error, Result};

use super::collect::{Density, labelled_in};
use super::ensemble::{FittedHeads, fit_parts, refine_parts};
use super::kept::{Pixels, Window, bytes};
use super::labels::{LabelRuns, LabelledImage, LabelledImages, scaled};
use super::options::{FitOptions, RefineOptions};
use super::parameters::Shape;
use super::place::Place;
use super::random::Random;
use super::run::fitted_model;
use super::samples::{Parts, Samples};
use crate::metrics::UNLABELLED;

/// From this many labelled images on, whole images are held out; every fourth one.
const HELD_OUT_IMAGES: usize = 4;

/// Fits heads on labels that come and go, as they do in an application where a person draws them.
///
/// Images are kept by name, with their labels and the features of the pixels that are sampled. New labels cost the features
/// of the windows they are in, and these only once while they fit into [`feature_memory`](Self::set_feature_memory). [`fit`](Self::fit) starts
/// from nothing; [`refine`](Self::refine) goes on with the last heads for a few steps, in which what is new counts half.
///
/// Which pixels of a window are sampled follows from the seed and from where they are, so that the same labels give the same
/// samples in whatever order they were drawn, unless [`FitOptions::max_samples`] is reached: later images then get what is left.
pub struct HeadFitter {
    model: Model,
    device: Device,
    features: Features,
    feature_options: FeatureOptions,
    options: FitOptions,
    classes: Vec<Class>,
    images: BTreeMap<String, Image>,
    feature_memory: usize,
    /// Counts changes of labels.
    clock: u64,
    /// Counts fits and refinements, so that each draws other samples.
    passes: u64,
    heads: Vec<Head>,
}

/// What became of an image's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelReport {
    /// Labelled pixels at the model's scale.
    pub labelled: u64,
    /// Samples that were drawn from them.
    pub samples: usize,
    /// Samples that the last heads have not seen.
    pub fresh: usize,
    /// Windows whose features had to be taken.
    pub windows: usize,
}

struct Image {
    pixels: Pixels,
    intensities: IntensityReport,
    microns_per_pixel: Option<f64>,
    /// Pixels of the image per pixel at the model's scale.
    ratio: f64,
    grid: WindowGrid,
    class_pixels: Vec<u64>,
    /// At the model's scale.
    labels: LabelRuns,
    /// Windows with labels, by their index in the grid.
    windows: BTreeMap<usize, Window>,
}

impl Image {
    fn samples(&self) -> usize {
        self.windows.values().map(|window| window.pixels.len()).sum()
    }
}

impl HeadFitter {
    /// For heads on the backbone of `model` that tell `classes` apart.
    ///
    /// Where the model has heads of that kind, for the same features and number of classes, they are the first that are
    /// [refined](Self::refine).
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range and fewer than 2 or more than 255 classes; those of [`Features::new`].
    pub fn new(
        model: &Model,
        device: &Device,
        classes: Vec<Class>,
        mut feature_options: FeatureOptions,
        options: FitOptions,
    ) -> Result<Self> {
        options.validate()?;
        check_classes(&classes)?;
        let features = Features::new(model, device, feature_options.clone())?;
        let range = feature_options.range.take();
        feature_options.range = Some(range.unwrap_or_else(|| match model.heads() {
            [] => model.metadata().intensity_range.inherited(),
            _ => model.metadata().intensity_range.clone(),
        }));
        let shape = Shape::new(features.channels(), classes.len());
        let continued = *features.config() == model.metadata().features
            && model.heads().iter().all(|head| shape.is_of(head));
        Ok(Self {
            heads: if continued { model.heads().to_vec() } else { Vec::new() },
            model: model.clone(),
            device: device.clone(),
            features,
            feature_options,
            options,
            classes,
            images: BTreeMap::new(),
            feature_memory: 1 << 30,
            clock: 0,
            passes: 0,
        })
    }

    /// Bytes that features of whole windows may take, 1 GiB at first; those that were not used for the longest are forgotten. A
    /// window takes as much as its decoder blocks have values, 4 bytes each: 9.4 MB for the usual blocks of a backbone of
    /// width 32 at 256 pixels.
    pub fn set_feature_memory(&mut self, bytes: usize) {
        self.feature_memory = bytes;
        self.forget();
    }

    /// The classes.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Changes the classes. If their number changes, there are no heads any more until the next [`fit`](Self::fit).
    ///
    /// # Errors
    /// [`Error::Invalid`] for fewer than 2 or more than 255, and where pixels are labelled with a class that would go.
    pub fn set_classes(&mut self, classes: Vec<Class>) -> Result<()> {
        check_classes(&classes)?;
        if let Some(class) = (classes.len()..self.classes.len()).find(|&class| self.class_pixels()[class] > 0)
        {
            return Err(Error::invalid("classes", format!("pixels are labelled as class {class}")));
        }
        if classes.len() != self.classes.len() {
            self.heads.clear();
            for image in self.images.values_mut() {
                image.class_pixels.resize(classes.len(), 0);
            }
        }
        self.classes = classes;
        Ok(())
    }

    /// How stored values become what the network sees.
    fn range(&self) -> IntensityRange {
        self.feature_options.range.clone().unwrap_or_default()
    }

    /// How the stored values of an image become what the network sees, and what looks wrong about them; `None` for a name that is not
    /// known.
    pub fn intensities(&self, name: &str) -> Option<&IntensityReport> {
        Some(&self.images.get(name)?.intensities)
    }

    /// Names of the images, in their order.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        self.images.keys().map(String::as_str)
    }

    /// Labelled pixels of each class at the model's scale, over all images.
    pub fn class_pixels(&self) -> Vec<u64> {
        let mut sums = vec![0; self.classes.len()];
        for image in self.images.values() {
            for (sum, count) in sums.iter_mut().zip(&image.class_pixels) {
                *sum += count;
            }
        }
        sums
    }

    /// Samples in all.
    pub fn samples(&self) -> usize {
        self.images.values().map(Image::samples).sum()
    }

    /// Keeps a copy of an image under a name. An image that had the name goes, with its labels, unless its pixels are the
    /// same; whether anything changed.
    ///
    /// # Errors
    /// [`Error::Image`] for an image that cannot be used, [`Error::Invalid`] for a scale that cannot be, [`Error::OutOfMemory`].
    pub fn set_image(&mut self, name: &str, image: &ImageView<'_>) -> Result<bool> {
        let (pixels, intensities) = Pixels::new(image, &self.range())?;
        if self.images.get(name).is_some_and(|known| known.pixels == pixels) {
            return Ok(false);
        }
        let microns = self.feature_options.microns_per_pixel.or(image.microns_per_pixel());
        let (scale, _) = scale_between(microns, self.model.metadata().microns_per_pixel)?;
        let grid = self.features.grid(image)?;
        if u32::try_from(grid.height() as u64 * grid.width() as u64).is_err() {
            return Err(Error::Image(format!(
                "{name}: {} x {} pixels at the model's scale are too many for one labelled image",
                grid.width(),
                grid.height()
            )));
        }
        let image = Image {
            pixels,
            intensities,
            microns_per_pixel: microns,
            ratio: 1.0 / scale,
            grid,
            class_pixels: vec![0; self.classes.len()],
            labels: LabelRuns::default(),
            windows: BTreeMap::new(),
        };
        self.images.insert(name.to_owned(), image);
        Ok(true)
    }

    /// Says what the pixels of an image are, instead of what was said before: one class index a pixel, `height` x `width`, row-major
    /// without gaps, and [`UNLABELLED`] where nobody said.
    ///
    /// Progress is in windows whose features are taken. Nothing is changed by a call that fails.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is not known, for labels that have not the image's size or are no class, and where
    /// [`FitOptions::max_samples`] leaves no room; errors of [`Features`], and [`Error::Cancelled`].
    pub fn set_labels(
        &mut self,
        name: &str,
        labels: &[u8],
        (height, width): (usize, usize),
        control: &Control<'_>,
    ) -> Result<LabelReport> {
        let wrong = |reason: String| Error::invalid("labels", format!("{name}: {reason}"));
        let others = self.images.iter().filter(|(other, _)| *other != name);
        let others: usize = others.map(|(_, image)| image.samples()).sum();
        let Some(image) = self.images.get_mut(name) else {
            return Err(Error::invalid("name", format!("there is no image {name:?}; give it first")));
        };
        check_labels(labels, (height, width), &image.pixels, self.classes.len()).map_err(wrong)?;
        self.clock += 1;
        let grid = &image.grid;
        let scaled = scaled(labels, (height, width), (grid.height(), grid.width()), image.ratio);
        let room = self.options.max_samples.saturating_sub(others);
        let drawn = draw(&scaled, grid, &self.options, room).map_err(wrong)?;

        // What has no features yet is taken first: it may fail, and nothing was changed so far.
        let mut builder = Builder { scaled: &scaled, grid, channels: self.features.channels() };
        let none = &Window::new(builder.channels)?;
        let missing: HashMap<WindowPosition, usize> = grid
            .positions()
            .enumerate()
            .filter(|(index, _)| {
                let Some(pixels) = drawn.get(index) else { return false };
                let old = image.windows.get(index).unwrap_or(none);
                old.maps.is_none() && pixels.iter().any(|pixel| old.pixels.binary_search(pixel).is_err())
            })
            .map(|(index, position)| (position, index))
            .collect();
        let mut changed = BTreeMap::new();
        if !missing.is_empty() {
            let wanted = |position: WindowPosition| missing.contains_key(&position);
            let (mut source, mut held) = (&image.pixels, 0);
            self.features.extract_some(&mut source, &wanted, control, &mut |features| {
                let index = missing[&WindowPosition { top: features.top, left: features.left }];
                let old = image.windows.get(&index).unwrap_or(none);
                let mut window = builder.window(&drawn[&index], old, Some(&features))?;
                held += bytes(&features);
                if held <= self.feature_memory {
                    window.maps = Some((features, self.clock));
                }
                changed.insert(index, window);
                Ok(())
            })?;
        }
        for (index, pixels) in &drawn {
            if !changed.contains_key(index) {
                let old = image.windows.get(index).unwrap_or(none);
                let maps = old.maps.as_ref().map(|(features, _)| features);
                changed.insert(*index, builder.window(pixels, old, maps)?);
            }
        }
        control.check()?;
        for (index, mut old) in std::mem::take(&mut image.windows) {
            match changed.get_mut(&index) {
                Some(window) if window.maps.is_none() => {
                    window.maps = old.maps.map(|(features, _)| (features, self.clock));
                }
                // Labels may come back while its features are still there.
                None if old.maps.is_some() => {
                    let maps = old.maps.take();
                    changed.insert(index, Window { maps, ..Window::new(builder.channels)? });
                }
                _ => {}
            }
        }
        image.windows = changed;
        image.labels = LabelRuns::new(&scaled);
        image.class_pixels = vec![0; self.classes.len()];
        for &label in scaled.iter().filter(|&&label| label != UNLABELLED) {
            image.class_pixels[usize::from(label)] += 1;
        }
        let fresh = |window: &Window| window.fresh.iter().filter(|fresh| **fresh).count();
        let report = LabelReport {
            labelled: image.class_pixels.iter().sum(),
            samples: image.samples(),
            fresh: image.windows.values().map(fresh).sum(),
            windows: missing.len(),
        };
        self.forget();
        Ok(report)
    }

    /// [`set_image`](Self::set_image) and [`set_labels`](Self::set_labels) under the image's name.
    ///
    /// # Errors
    /// Those of both.
    pub fn set(&mut self, image: &LabelledImage<'_>, control: &Control<'_>) -> Result<LabelReport> {
        image.check_size()?;
        self.set_image(&image.name, &image.image)?;
        self.set_labels(&image.name, image.labels, (image.label_height, image.label_width), control)
    }

    /// [`set`](Self::set)s every one of `images`, for example those in files. Progress is in images.
    ///
    /// # Errors
    /// Those of `set` and of `images`; images before the one that failed stay.
    pub fn set_all(&mut self, images: &mut dyn LabelledImages, control: &Control<'_>) -> Result<()> {
        for index in 0..images.len() {
            self.set(&images.load(index)?, &control.quiet())?;
            control.report(index as u64 + 1, images.len() as u64);
        }
        Ok(())
    }

    /// Forgets an image and its labels; whether there was one of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        self.images.remove(name).is_some()
    }

    /// Fits heads anew on all labels. Progress is in steps of all heads.
    ///
    /// # Errors
    /// Those of [`fit_heads`](super::fit_heads); the last heads stay.
    pub fn fit(&mut self, control: &Control<'_>) -> Result<FittedHeads> {
        let (samples, _) = self.parts();
        let place = Place::of(&self.device);
        let fitted = fit_parts(&samples, self.classes.len(), &self.options, &place, control)?;
        self.keep(fitted)
    }

    /// Goes on with the last heads, mostly on labels that are new to them; where there are no heads, [`fit`](Self::fit)s
    /// them. Progress is in steps of all heads.
    ///
    /// # Errors
    /// Those of [`fit_heads`](super::fit_heads) and [`RefineOptions::validate`]; the last heads stay.
    pub fn refine(&mut self, options: &RefineOptions, control: &Control<'_>) -> Result<FittedHeads> {
        options.validate()?;
        if self.heads.is_empty() {
            return self.fit(control);
        }
        let (samples, fresh) = self.parts();
        let how = (&self.options, options, self.passes);
        let (classes, place) = (self.classes.len(), Place::of(&self.device));
        let fitted = refine_parts(&self.heads, &samples, &fresh, classes, how, &place, control)?;
        self.keep(fitted)
    }

    fn keep(&mut self, fitted: FittedHeads) -> Result<FittedHeads> {
        self.heads.clone_from(&fitted.heads);
        self.passes += 1;
        for window in self.images.values_mut().flat_map(|image| image.windows.values_mut()) {
            window.fresh.fill(false);
        }
        Ok(fitted)
    }

    /// The last heads; none before the first fit, unless the model brought some.
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The backbone with the last heads, to segment with or to save. It shares the backbone's weights.
    ///
    /// # Errors
    /// [`Error::Invalid`] before heads were fitted.
    pub fn model(&self) -> Result<Model> {
        if self.heads.is_empty() {
            return Err(Error::invalid("heads", "none were fitted yet"));
        }
        let mut microns = self.images.values().map(|image| image.microns_per_pixel);
        let first = microns.next().flatten().filter(|first| microns.all(|other| other == Some(*first)));
        let taken = (self.features.config(), self.features.window(), &self.feature_options);
        let labelled = self.images.values().filter(|image| image.samples() > 0);
        let seen = labelled.fold(None, |seen, image| SeenIntensities::with(seen, &image.intensities));
        fitted_model(&self.model, self.classes.clone(), taken, (first, seen), self.heads.clone())
    }

    /// All samples, and the numbers of those that the last heads have not seen.
    fn parts(&self) -> (Parts<'_>, Vec<u32>) {
        let labelled = || self.images.values().filter(|image| image.samples() > 0);
        let by_image = labelled().count() >= HELD_OUT_IMAGES;
        let (mut parts, mut fresh) = (Parts::default(), Vec::new());
        for (number, image) in labelled().enumerate() {
            let held_out = by_image.then_some(number % HELD_OUT_IMAGES == HELD_OUT_IMAGES - 1);
            for window in image.windows.values() {
                let start = parts.len();
                let news = window.fresh.iter().enumerate().filter(|(_, fresh)| **fresh);
                fresh.extend(news.map(|(index, _)| (start + index) as u32));
                parts.push(&window.samples, held_out);
            }
        }
        (parts, fresh)
    }

    /// Drops the features that were not used for the longest until the rest fits into the memory for them.
    fn forget(&mut self) {
        let windows = || self.images.values().flat_map(|image| image.windows.values());
        let mut held: usize = windows().map(Window::map_bytes).sum();
        if held <= self.feature_memory {
            return;
        }
        let mut used: Vec<u64> =
            windows().filter_map(|window| window.maps.as_ref().map(|(_, used)| *used)).collect();
        used.sort_unstable();
        for oldest in used {
            for window in self.images.values_mut().flat_map(|image| image.windows.values_mut()) {
                if held > self.feature_memory && window.maps.as_ref().is_some_and(|(_, used)| *used <= oldest)
                {
                    held -= window.map_bytes();
                    window.maps = None;
                }
            }
            if held <= self.feature_memory {
                break;
            }
        }
    }
}

fn check_classes(classes: &[Class]) -> Result<()> {
    if (2..=255).contains(&classes.len()) {
        Ok(())
    } else {
        Err(Error::invalid("classes", format!("{}; 2 to 255 can be told apart", classes.len())))
    }
}

fn check_labels(
    labels: &[u8],
    (height, width): (usize, usize),
    pixels: &Pixels,
    classes: usize,
) -> std::result::Result<(), String> {
    if (height, width) != pixels.size() {
        let (rows, columns) = pixels.size();
        return Err(format!(
            "the label image has {width} x {height} pixels, the image {columns} x {rows}; they must be of one size"
        ));
    }
    if labels.len() != height * width {
        return Err(format!("{} labels for {width} x {height} pixels; one a pixel is needed", labels.len()));
    }
    let beyond = |label: u8| usize::from(label) >= classes && label != UNLABELLED;
    match labels.iter().copied().find(|&label| beyond(label)) {
        Some(label) => Err(format!(
            "label {label} is no class: there are {classes}, from 0 on, and {UNLABELLED} means unlabelled"
        )),
        None => Ok(()),
    }
}

/// For each window with labels the pixels that are sampled, ascending: at most `room` in all.
fn draw(
    scaled: &[u8],
    grid: &WindowGrid,
    options: &FitOptions,
    room: usize,
) -> std::result::Result<BTreeMap<usize, Vec<u32>>, String> {
    let mut density = Density::new(options);
    let windows: Vec<(usize, Vec<u32>)> = grid
        .positions()
        .map(|position| labelled_in(scaled, grid, position))
        .enumerate()
        .filter(|(_, pixels)| !pixels.is_empty())
        .collect();
    let wanted: usize = windows.iter().map(|(_, pixels)| density.of(pixels.len() as u32)).sum();
    if wanted > room {
        density.share = room as f64 / wanted as f64;
    }
    if wanted > 0 && windows.iter().all(|(_, pixels)| density.of(pixels.len() as u32) == 0) {
        return Err(format!(
            "of the {} samples that max_samples allows none is left for these labels",
            options.max_samples
        ));
    }
    let drawn = windows.into_iter().map(|(index, mut pixels)| {
        let count = density.of(pixels.len() as u32);
        if count < pixels.len() {
            let chance =
                |pixel: &u32| Random::new(options.seed, u64::from(*pixel) << 32 | index as u64).next();
            if count > 0 {
                pixels.select_nth_unstable_by_key(count - 1, chance);
            }
            pixels.truncate(count);
            pixels.sort_unstable();
        }
        (index, pixels)
    });
    Ok(drawn.collect())
}

/// Makes windows from labels and features.
struct Builder<'a> {
    scaled: &'a [u8],
    grid: &'a WindowGrid,
    channels: usize,
}

impl Builder<'_> {
    /// A window with these sampled `pixels`, whose features are those of `old` or come from `maps`.
    fn window(&mut self, pixels: &[u32], old: &Window, maps: Option<&WindowFeatures>) -> Result<Window> {
        let mut samples = Samples::new(self.channels)?;
        samples.reserve(pixels.len())?;
        let mut fresh = Vec::with_capacity(pixels.len());
        let (width, square) = (self.grid.width(), (self.grid.window() / 2).max(1));
        for &pixel in pixels {
            let (y, x) = (pixel as usize / width, pixel as usize % width);
            let held_out = (y / square + 2 * (x / square)).is_multiple_of(4);
            let label = self.scaled[pixel as usize];
            let known = old.pixels.binary_search(&pixel).ok();
            fresh.push(known.is_none_or(|at| old.samples.label(at) != label || old.fresh[at]));
            match (known, maps) {
                (Some(at), _) => {
                    samples.push(label, held_out, |to| to.copy_from_slice(old.samples.features(at)));
                }
                (None, Some(maps)) => {
                    let row = y.wrapping_add_signed(-maps.top);
                    let column = x.wrapping_add_signed(-maps.left);
                    samples.push(label, held_out, |to| maps.pixel(row, column, to));
                }
                (None, None) => return Err(Error::invalid("features", "those of a window are missing")),
            }
        }
        Ok(Window { pixels: pixels.to_vec(), samples, fresh, maps: None })
    }
}
