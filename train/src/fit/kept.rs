//! An image that is kept with its labels, and what is known of its windows.

use std::ops::Range;

use mdm::image::{ImageSource, ImageView};
use mdm::intensity::{IntensityRange, IntensityReport, IntensityScale};
use mdm::segment::WindowFeatures;
use mdm::{Error, PixelFormat, Result};

use super::samples::Samples;

/// A copy of an image's pixels, in as few bits as they came, and how they are scaled.
#[derive(Clone, PartialEq)]
pub(crate) struct Pixels {
    width: usize,
    height: usize,
    channels: usize,
    microns_per_pixel: Option<f64>,
    scale: IntensityScale,
    values: Values,
}

#[derive(Clone, PartialEq)]
enum Values {
    Bits8(Vec<u8>),
    Bits16(Vec<u16>),
    Float(Vec<f32>),
}

impl Pixels {
    /// Values are scaled by `range`; what is to be said about them comes with the copy.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Image`] for samples out of range, and those of [`IntensityRange::measure`].
    pub(crate) fn new(image: &ImageView<'_>, range: &IntensityRange) -> Result<(Self, IntensityReport)> {
        let mut image = *image;
        let (scale, report) = range.measure(&mut image, None)?;
        let (width, height, channels) = (image.width(), image.height(), image.format().colours());
        let microns_per_pixel = image.microns_per_pixel();
        let row_len = width * channels;
        let mut values = match image.format() {
            PixelFormat::Grey8 | PixelFormat::Rgb8 | PixelFormat::Rgba8 | PixelFormat::Bgra8 => {
                Values::Bits8(room(row_len, height)?)
            }
            PixelFormat::Grey16 | PixelFormat::Rgb16 | PixelFormat::Rgba16 => {
                Values::Bits16(room(row_len, height)?)
            }
            _ => Values::Float(room(row_len, height)?),
        };
        let (Some(scale), Some(stored)) = (scale, image.stored()) else {
            return Err(Error::Image("its values are not to be had as they are stored".into()));
        };
        let mut row = vec![0.0; row_len];
        for y in 0..height {
            stored.read_stored(y..y + 1, &mut row)?;
            match &mut values {
                Values::Bits8(values) => values.extend(row.iter().map(|value| *value as u8)),
                Values::Bits16(values) => values.extend(row.iter().map(|value| *value as u16)),
                Values::Float(values) => values.extend_from_slice(&row),
            }
            // What cannot be scaled is found now.
            scale.apply(&mut row, y, width)?;
        }
        Ok((Self { width, height, channels, microns_per_pixel, scale, values }, report))
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }
}

/// Memory for `rows` rows.
fn room<T>(row_len: usize, rows: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let reserved = row_len.checked_mul(rows).is_some_and(|len| values.try_reserve_exact(len).is_ok());
    if reserved { Ok(values) } else { Err(Error::OutOfMemory("a copy of the image".into())) }
}

impl ImageSource for &Pixels {
    fn width(&self) -> usize {
        self.width
    }

    fn height(&self) -> usize {
        self.height
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn microns_per_pixel(&self) -> Option<f64> {
        self.microns_per_pixel
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row_len = self.width * self.channels;
        let range = rows.start * row_len..rows.end * row_len;
        match &self.values {
            Values::Bits8(values) => {
                for (out, &value) in out.iter_mut().zip(&values[range]) {
                    *out = f32::from(value);
                }
            }
            Values::Bits16(values) => {
                for (out, &value) in out.iter_mut().zip(&values[range]) {
                    *out = f32::from(value);
                }
            }
            Values::Float(values) => out.copy_from_slice(&values[range]),
        }
        self.scale.apply(out, rows.start, self.width)
    }
}

/// Labelled pixels of a window that are sampled, and perhaps its features.
pub(crate) struct Window {
    /// Indices into the scaled image, ascending.
    pub(crate) pixels: Vec<u32>,
    /// One for each pixel.
    pub(crate) samples: Samples,
    /// Whether the last heads have not seen the sample.
    pub(crate) fresh: Vec<bool>,
    /// The features of all its pixels, and when they were last used.
    pub(crate) maps: Option<(WindowFeatures, u64)>,
}

impl Window {
    pub(crate) fn new(channels: usize) -> Result<Self> {
        Ok(Self { pixels: Vec::new(), samples: Samples::new(channels)?, fresh: Vec::new(), maps: None })
    }

    /// Bytes of the features of all its pixels.
    pub(crate) fn map_bytes(&self) -> usize {
        self.maps.as_ref().map_or(0, |(features, _)| bytes(features))
    }
}

/// Bytes of a window's features.
pub(crate) fn bytes(features: &WindowFeatures) -> usize {
    features.maps.iter().map(|map| 4 * map.data.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_values() {
        let bytes: Vec<u8> = (0..=255).cycle().take(6 * 256 * 8).collect();
        for format in [PixelFormat::Grey8, PixelFormat::Bgra8, PixelFormat::Rgb16, PixelFormat::Grey16] {
            let (width, height) = (256, 3);
            let mut view = ImageView::new(&bytes, width, height, format).unwrap().with_microns_per_pixel(0.5);
            let (copy, _) = Pixels::new(&view, &IntensityRange::Declared).unwrap();
            let mut expected = vec![0.0; width * height * format.colours()];
            view.read_rows(0..height, &mut expected).unwrap();
            let mut found = vec![f32::NAN; expected.len()];
            (&copy).read_rows(0..height, &mut found).unwrap();
            assert_eq!(found, expected, "{format:?}");
            assert_eq!((&copy).microns_per_pixel(), Some(0.5));
        }
    }
}
