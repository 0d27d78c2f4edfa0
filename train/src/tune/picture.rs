//! A labelled image at the model's scale.

use mdm::image::{ImageSource, check_channels, convert_channels};
use mdm::intensity::{IntensityRange, IntensityReport};
use mdm::segment::rescale::{Filter, Resampler, scale_between, scaled_side};
use mdm::{Error, Result};

use crate::fit::kept::Pixels;
use crate::fit::{LabelledImage, named};
use crate::metrics::UNLABELLED;

/// An image and its labels, and where labels of each class are.
pub(crate) struct Picture {
    pub(crate) name: String,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    /// `[height, width, channels]`, in about [-1, 1].
    pub(crate) pixels: Vec<f32>,
    /// `[height, width]`.
    pub(crate) labels: Vec<u8>,
    /// All channels are alike.
    pub(crate) grey: bool,
    /// Indices of the labelled pixels of each class that occurs.
    pub(crate) places: Vec<(u8, Vec<u32>)>,
    /// Micrometres per pixel of the image as it was given.
    pub(crate) microns_per_pixel: Option<f64>,
    /// What there is to say of its values.
    pub(crate) intensities: IntensityReport,
}

/// What images are brought to.
pub(crate) struct Target<'a> {
    /// Replaces what an image says of its scale.
    pub(crate) image_microns: Option<f64>,
    pub(crate) microns_per_pixel: Option<f64>,
    pub(crate) channels: usize,
    pub(crate) range: &'a IntensityRange,
}

/// What is known of an image beside its pixels.
pub(crate) struct Labelled {
    pub(crate) name: String,
    /// Rows and columns at the model's scale.
    pub(crate) size: (usize, usize),
    /// Pixels of the image per pixel at the model's scale.
    pub(crate) ratio: f64,
    /// `[height, width]` at the model's scale.
    pub(crate) labels: Vec<u8>,
    /// Micrometres per pixel of the image as it is.
    pub(crate) microns_per_pixel: Option<f64>,
    pub(crate) intensities: IntensityReport,
}

impl Picture {
    /// Brings `image` to what a network sees.
    pub(crate) fn new(image: &LabelledImage<'_>, target: &Target<'_>) -> Result<Self> {
        image.check_size()?;
        let microns = target.image_microns.or(image.image.microns_per_pixel());
        let (scale, _) = scale_between(microns, target.microns_per_pixel)?;
        let size = (scaled_side(image.image.height(), scale)?, scaled_side(image.image.width(), scale)?);
        if u32::try_from(size.0 as u64 * size.1 as u64).is_err() {
            return Err(
                image.wrong(format!("{} x {} pixels are too many for one labelled image", size.1, size.0))
            );
        }
        let (pixels, intensities) =
            Pixels::new(&image.image, target.range).map_err(|error| named(&image.name, error))?;
        let labelled = Labelled {
            name: image.name.clone().into_owned(),
            size,
            ratio: 1.0 / scale,
            labels: image.scaled(size.0, size.1, 1.0 / scale),
            microns_per_pixel: microns,
            intensities,
        };
        Self::of(&mut &pixels, labelled, target.channels)
    }

    /// The image in `source`, whose values are scaled, with `channels` channels.
    pub(crate) fn of(source: &mut dyn ImageSource, labelled: Labelled, channels: usize) -> Result<Self> {
        let Labelled { name, size: to, ratio, labels, microns_per_pixel, intensities } = labelled;
        let (from, given) = ((source.height(), source.width()), source.channels());
        check_channels(given, channels)?;
        let mut resampler = Resampler::new(from, to, ratio, channels, Filter::AreaOrBilinear)?;
        let mut pixels: Vec<f32> = Vec::new();
        let len = to.0 * to.1 * channels;
        pixels
            .try_reserve_exact(len)
            .map_err(|_| Error::OutOfMemory(format!("{name}: {} x {} pixels", to.1, to.0)))?;
        let (mut read, mut row) = (vec![0.0; from.1 * given], vec![0.0; from.1 * channels]);
        let mut pulled = vec![0.0; resampler.row_len()];
        for y in 0..from.0 {
            source.read_rows(y..y + 1, &mut read).map_err(|error| named(&name, error))?;
            convert_channels(&read, given, &mut row, channels);
            resampler.push(&row)?;
            while pixels.len() < len && resampler.pull(&mut pulled) {
                pixels.extend_from_slice(&pulled);
            }
        }
        pixels.resize(len, 0.0);
        let mut places: Vec<(u8, Vec<u32>)> = Vec::new();
        for (at, &label) in labels.iter().enumerate().filter(|(_, label)| **label != UNLABELLED) {
            match places.iter_mut().find(|(class, _)| *class == label) {
                Some((_, own)) => own.push(at as u32),
                None => places.push((label, vec![at as u32])),
            }
        }
        places.sort_unstable_by_key(|(class, _)| *class);
        let grey = pixels.chunks_exact(channels).all(|pixel| pixel.iter().all(|value| *value == pixel[0]));
        Ok(Self {
            name,
            height: to.0,
            width: to.1,
            channels,
            pixels,
            labels,
            grey,
            places,
            microns_per_pixel,
            intensities,
        })
    }

    /// Number of labelled pixels.
    pub(crate) fn labelled(&self) -> usize {
        self.places.iter().map(|(_, own)| own.len()).sum()
    }
}
