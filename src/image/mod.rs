//! Pixels as a host application holds them.

mod format;
mod view;

use std::ops::Range;

use crate::intensity::{IntensitySample, Limits};
use crate::{Error, Result};

pub use format::PixelFormat;
pub use view::ImageView;

/// There must be a pixel, and positions in an image are also used as 32-bit counters.
pub(crate) fn check_size(width: usize, height: usize) -> Result<()> {
    const LARGEST: usize = 1 << 30;
    if width == 0 || height == 0 {
        return Err(Error::Image(format!("{width} x {height} pixels: there is nothing to look at")));
    }
    if width > LARGEST || height > LARGEST {
        return Err(Error::Image(format!(
            "{width} x {height} pixels; sides of up to {LARGEST} are possible"
        )));
    }
    Ok(())
}

/// An image that is read row by row, for images that do not fit into memory or are decoded as they are needed.
pub trait ImageSource {
    /// Columns; constant, at least 1.
    fn width(&self) -> usize;

    /// Rows; constant, at least 1.
    fn height(&self) -> usize;

    /// Channels that [`read_rows`](Self::read_rows) delivers: 1 (grey), 3 (red, green, blue), or those of the model's input.
    fn channels(&self) -> usize;

    /// Size of a pixel in micrometres, where it is known.
    fn microns_per_pixel(&self) -> Option<f64> {
        None
    }

    /// Writes `rows` as `[rows, width, channels]`, scaled from the sample's range to [-1, 1].
    ///
    /// During one call of a consumer rows are asked for in ascending order and no row twice, so a decoder need
    /// not be able to go back.
    fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Values as they are stored, so that a model's [`IntensityRange`](crate::intensity::IntensityRange) can be applied. A source
    /// that has none, the default, scales its values itself: a model sees what [`read_rows`](Self::read_rows) delivers, whatever
    /// range it was fitted with.
    fn stored(&mut self) -> Option<&mut dyn StoredValues> {
        None
    }
}

/// The values of an [`ImageSource`] as they are stored.
pub trait StoredValues {
    /// The values of the samples' type that stand for black and white where nothing else is said.
    fn full_range(&self) -> Limits;

    /// The values that stand for black and white in each channel of this image, where its file or camera says so.
    fn declared_ranges(&self) -> Option<&[Limits]> {
        None
    }

    /// Writes `rows` as `[rows, width, channels]`, as they are stored. This is called instead of
    /// [`read_rows`](ImageSource::read_rows), and in the same order.
    ///
    /// # Errors
    /// Those of the source.
    fn read_stored(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Offers pixels that stand for the whole image to `sample`, before any row is read: all of them, or those of a smaller
    /// version of the image. Only percentiles need it. Returns whether it did; a source that can be read only once cannot.
    ///
    /// # Errors
    /// Those of the source.
    fn survey(&mut self, _sample: &mut IntensitySample) -> Result<bool> {
        Ok(false)
    }
}

/// Red, green and blue in luminance (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Whether images of `given` channels can be brought to `wanted`: grey to any number, red, green and blue to grey.
///
/// # Errors
/// [`Error::Image`] where they cannot.
pub fn check_channels(given: usize, wanted: usize) -> Result<()> {
    if given == wanted || matches!((given, wanted), (1, _) | (3, 1)) {
        return Ok(());
    }
    Err(Error::Image(format!(
        "it has {given} channels and the model's input {wanted}: give an image with 1 or {wanted}"
    )))
}

/// Pixels of `given` channels as pixels of `wanted` ones, which [can be had](check_channels).
pub fn convert_channels(pixels: &[f32], given: usize, out: &mut [f32], wanted: usize) {
    if given == wanted {
        out.copy_from_slice(pixels);
    } else if given == 1 {
        for (out, grey) in out.chunks_exact_mut(wanted).zip(pixels) {
            out.fill(*grey);
        }
    } else {
        for (out, colour) in out.iter_mut().zip(pixels.chunks_exact(3)) {
            *out = colour.iter().zip(LUMA).map(|(value, weight)| value * weight).sum();
        }
    }
}
