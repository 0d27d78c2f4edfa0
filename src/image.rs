//! Pixels as a host application holds them.

use std::ops::Range;

use crate::{Error, Result};

/// Layout of one pixel. 16-bit and f32 samples have the machine's byte order.
///
/// Alpha is ignored: neither composed onto a background nor divided out of premultiplied colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// One channel, 0..=255.
    Grey8,
    /// One channel, 0..=65535.
    Grey16,
    /// One channel, 0.0..=1.0.
    GreyF32,
    /// Red, green, blue, 0..=255.
    Rgb8,
    /// Red, green, blue, 0..=65535.
    Rgb16,
    /// Red, green, blue, 0.0..=1.0.
    RgbF32,
    /// Red, green, blue, alpha, 0..=255.
    Rgba8,
    /// Blue, green, red, alpha, 0..=255.
    Bgra8,
    /// Red, green, blue, alpha, 0..=65535.
    Rgba16,
}

impl PixelFormat {
    /// Bytes of a pixel.
    pub fn bytes_per_pixel(self) -> usize {
        match self {
            Self::Grey8 => 1,
            Self::Grey16 => 2,
            Self::Rgb8 => 3,
            Self::GreyF32 | Self::Rgba8 | Self::Bgra8 => 4,
            Self::Rgb16 => 6,
            Self::Rgba16 => 8,
            Self::RgbF32 => 12,
        }
    }

    /// Channels without alpha: 1 or 3.
    pub fn colours(self) -> usize {
        self.order().len()
    }

    /// Where grey, or red, green and blue are among a pixel's samples.
    fn order(self) -> &'static [usize] {
        match self {
            Self::Grey8 | Self::Grey16 | Self::GreyF32 => &[0],
            Self::Bgra8 => &[2, 1, 0],
            Self::Rgb8 | Self::Rgb16 | Self::RgbF32 | Self::Rgba8 | Self::Rgba16 => &[0, 1, 2],
        }
    }

    /// Channels with alpha.
    fn samples(self) -> usize {
        match self {
            Self::Rgba8 | Self::Bgra8 | Self::Rgba16 => 4,
            _ => self.colours(),
        }
    }

    /// Bytes of a sample.
    fn bytes_per_sample(self) -> usize {
        self.bytes_per_pixel() / self.samples()
    }
}

/// An image in memory that belongs to somebody else. Copies are views of the same pixels.
#[derive(Clone, Copy)]
pub struct ImageView<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
    row_stride: usize,
    /// Bytes from one channel's plane to the next; channels are interleaved where there is no number.
    plane_stride: Option<usize>,
    format: PixelFormat,
    microns_per_pixel: Option<f64>,
}

impl<'a> ImageView<'a> {
    /// Views `data` as `height` rows of `width` pixels without gaps, the topmost row first. More bytes than that are allowed.
    ///
    /// # Errors
    /// [`Error::Image`] if a side is zero, if `data` is too short, or if the size cannot be expressed.
    pub fn new(data: &'a [u8], width: usize, height: usize, format: PixelFormat) -> Result<Self> {
        check_size(width, height)?;
        let row_stride = width.checked_mul(format.bytes_per_pixel()).ok_or_else(|| {
            Error::Image(format!("{width} x {height} pixels are more than can be addressed"))
        })?;
        let view =
            Self { data, width, height, row_stride, plane_stride: None, format, microns_per_pixel: None };
        view.check_length()?;
        Ok(view)
    }

    /// As [`new`](Self::new), but each channel of `format` is an image of its own, one after the other in the order of
    /// the format's name.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn planar(data: &'a [u8], width: usize, height: usize, format: PixelFormat) -> Result<Self> {
        let mut view = Self::new(data, width, height, format)?;
        // Both products are less than that of the interleaved image.
        view.row_stride = width * format.bytes_per_sample();
        view.plane_stride = Some(view.row_stride * height);
        Ok(view)
    }

    /// Planes begin every `bytes` bytes. A [`row stride`](Self::with_row_stride) must be given before.
    ///
    /// # Errors
    /// [`Error::Image`] if channels are interleaved, if that is less than a plane, or if the data does not hold that many
    /// planes.
    pub fn with_plane_stride(mut self, bytes: usize) -> Result<Self> {
        if self.plane_stride.is_none() {
            return Err(Error::Image("channels are interleaved and have no plane stride".into()));
        }
        self.plane_stride = Some(bytes);
        self.check_length()?;
        Ok(self)
    }

    /// Rows begin every `bytes` bytes. Planes, where there are such, follow each other without a gap.
    ///
    /// # Errors
    /// [`Error::Image`] if that is less than a row, or if the data does not hold that many rows.
    pub fn with_row_stride(mut self, bytes: usize) -> Result<Self> {
        if bytes < self.row_bytes() {
            return Err(Error::Image(format!(
                "a row stride of {bytes} bytes is less than the {} bytes of a row",
                self.row_bytes()
            )));
        }
        self.row_stride = bytes;
        if self.plane_stride.is_some() {
            self.plane_stride = Some(self.plane_bytes()?);
        }
        self.check_length()?;
        Ok(self)
    }

    /// Says how large a pixel is, in micrometres, so that the image can be brought to the model's scale.
    pub fn with_microns_per_pixel(mut self, microns: f64) -> Self {
        self.microns_per_pixel = Some(microns);
        self
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Layout of a pixel.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Size of a pixel in micrometres, where it is known.
    pub fn microns_per_pixel(&self) -> Option<f64> {
        self.microns_per_pixel
    }

    fn row_bytes(&self) -> usize {
        self.width
            * match self.plane_stride {
                Some(_) => self.format.bytes_per_sample(),
                None => self.format.bytes_per_pixel(),
            }
    }

    /// From the first byte of a plane, or of an interleaved image, to the end of its last row.
    fn plane_bytes(&self) -> Result<usize> {
        (self.height - 1)
            .checked_mul(self.row_stride)
            .and_then(|bytes| bytes.checked_add(self.row_bytes()))
            .ok_or_else(|| self.too_large())
    }

    fn too_large(&self) -> Error {
        Error::Image(format!("{} x {} pixels are more than can be addressed", self.width, self.height))
    }

    fn check_length(&self) -> Result<()> {
        let mut needed = self.plane_bytes()?;
        if let Some(stride) = self.plane_stride {
            if stride < needed && self.format.samples() > 1 {
                return Err(Error::Image(format!(
                    "a plane stride of {stride} bytes is less than the {needed} bytes of a plane"
                )));
            }
            needed = (self.format.samples() - 1)
                .checked_mul(stride)
                .and_then(|bytes| bytes.checked_add(needed))
                .ok_or_else(|| self.too_large())?;
        }
        if self.data.len() < needed {
            return Err(Error::Image(format!(
                "{} x {} pixels of {:?} need {needed} bytes, {} given",
                self.width,
                self.height,
                self.format,
                self.data.len()
            )));
        }
        Ok(())
    }
}

impl std::fmt::Debug for ImageView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageView")
            .field("width", &self.width)
            .field("height", &self.height)
            .field("format", &self.format)
            .field("row_stride", &self.row_stride)
            .field("plane_stride", &self.plane_stride)
            .field("microns_per_pixel", &self.microns_per_pixel)
            .finish_non_exhaustive()
    }
}

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

/// How far f32 samples may be outside 0..=1, as left by somebody's interpolation.
const OVERSHOOT: f32 = 1e-3;

impl ImageSource for ImageView<'_> {
    fn width(&self) -> usize {
        self.width
    }

    fn height(&self) -> usize {
        self.height
    }

    fn channels(&self) -> usize {
        self.format.colours()
    }

    fn microns_per_pixel(&self) -> Option<f64> {
        self.microns_per_pixel
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row_len = self.width * self.channels();
        if rows.end > self.height || rows.start > rows.end || out.len() != rows.len() * row_len {
            return Err(Error::invalid(
                "rows",
                format!("{rows:?} of {} into {} values of {row_len} a row", self.height, out.len()),
            ));
        }
        if let Some(stride) = self.plane_stride {
            for (y, out) in rows.zip(out.chunks_exact_mut(row_len)) {
                for (channel, &plane) in self.format.order().iter().enumerate() {
                    let row = &self.data[plane * stride + y * self.row_stride..][..self.row_bytes()];
                    self.read_plane(row, y, channel, out)?;
                }
            }
            return Ok(());
        }
        for (y, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            let row = &self.data[y * self.row_stride..][..self.row_bytes()];
            match self.format {
                PixelFormat::Grey8 | PixelFormat::Rgb8 => {
                    for (out, &sample) in out.iter_mut().zip(row) {
                        *out = from_8_bits(sample);
                    }
                }
                PixelFormat::Rgba8 => {
                    for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(4)) {
                        out.copy_from_slice(&[pixel[0], pixel[1], pixel[2]].map(from_8_bits));
                    }
                }
                PixelFormat::Bgra8 => {
                    for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(4)) {
                        out.copy_from_slice(&[pixel[2], pixel[1], pixel[0]].map(from_8_bits));
                    }
                }
                PixelFormat::Grey16 | PixelFormat::Rgb16 => {
                    for (out, sample) in out.iter_mut().zip(row.chunks_exact(2)) {
                        *out = from_16_bits(sample);
                    }
                }
                PixelFormat::Rgba16 => {
                    for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(8)) {
                        for (out, sample) in out.iter_mut().zip(pixel.chunks_exact(2)) {
                            *out = from_16_bits(sample);
                        }
                    }
                }
                PixelFormat::GreyF32 | PixelFormat::RgbF32 => {
                    for (i, (out, sample)) in out.iter_mut().zip(row.chunks_exact(4)).enumerate() {
                        *out = from_float(sample, y, i / self.format.colours())?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl ImageView<'_> {
    /// Row `y` of one channel into its places of `out`.
    fn read_plane(&self, row: &[u8], y: usize, channel: usize, out: &mut [f32]) -> Result<()> {
        let out = out.iter_mut().skip(channel).step_by(self.format.colours());
        match self.format {
            PixelFormat::Grey8 | PixelFormat::Rgb8 | PixelFormat::Rgba8 | PixelFormat::Bgra8 => {
                for (out, &sample) in out.zip(row) {
                    *out = from_8_bits(sample);
                }
            }
            PixelFormat::Grey16 | PixelFormat::Rgb16 | PixelFormat::Rgba16 => {
                for (out, sample) in out.zip(row.chunks_exact(2)) {
                    *out = from_16_bits(sample);
                }
            }
            PixelFormat::GreyF32 | PixelFormat::RgbF32 => {
                for (x, (out, sample)) in out.zip(row.chunks_exact(4)).enumerate() {
                    *out = from_float(sample, y, x)?;
                }
            }
        }
        Ok(())
    }
}

/// The sample at row `y`, column `x`.
fn from_float(sample: &[u8], y: usize, x: usize) -> Result<f32> {
    let sample = f32::from_ne_bytes([sample[0], sample[1], sample[2], sample[3]]);
    // A NaN is in no range.
    if !(-OVERSHOOT..=1.0 + OVERSHOOT).contains(&sample) {
        return Err(Error::Image(format!(
            "the value {sample} at row {y}, column {x} is outside 0..=1: scale the samples first"
        )));
    }
    Ok(2.0 * sample - 1.0)
}

fn from_8_bits(sample: u8) -> f32 {
    f32::from(sample) / 127.5 - 1.0
}

fn from_16_bits(sample: &[u8]) -> f32 {
    f32::from(u16::from_ne_bytes([sample[0], sample[1]])) / 32767.5 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mut view: ImageView<'_>) -> Result<Vec<f32>> {
        let mut out = vec![f32::NAN; view.width() * view.height() * view.channels()];
        view.read_rows(0..view.height(), &mut out)?;
        Ok(out)
    }

    #[test]
    fn every_format_spans_minus_one_to_one() {
        let wide = |values: &[u16]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
        let float = |values: &[f32]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
        let cases: [(PixelFormat, Vec<u8>); 9] = [
            (PixelFormat::Grey8, vec![0, 255]),
            (PixelFormat::Grey16, wide(&[0, 65535])),
            (PixelFormat::GreyF32, float(&[0.0, 1.0])),
            (PixelFormat::Rgb8, vec![0, 255, 51, 255, 0, 51]),
            (PixelFormat::Rgb16, wide(&[0, 65535, 13107, 65535, 0, 13107])),
            (PixelFormat::RgbF32, float(&[0.0, 1.0, 0.2, 1.0, 0.0, 0.2])),
            (PixelFormat::Rgba8, vec![0, 255, 51, 7, 255, 0, 51, 7]),
            (PixelFormat::Bgra8, vec![51, 255, 0, 7, 51, 0, 255, 7]),
            (PixelFormat::Rgba16, wide(&[0, 65535, 13107, 9, 65535, 0, 13107, 9])),
        ];
        for (format, data) in cases {
            let got = rows(ImageView::new(&data, 2, 1, format).unwrap()).unwrap();
            let want: &[f32] =
                if format.colours() == 1 { &[-1.0, 1.0] } else { &[-1.0, 1.0, -0.6, 1.0, -1.0, -0.6] };
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{format:?}: {got} {want}");
            }
        }
    }

    #[test]
    fn row_stride_skips_padding() {
        let data = [0, 255, 9, 255, 0];
        let view = ImageView::new(&data, 2, 2, PixelFormat::Grey8).unwrap().with_row_stride(3).unwrap();
        assert_eq!(rows(view).unwrap(), [-1.0, 1.0, 1.0, -1.0]);
        let view = ImageView::new(&data, 2, 2, PixelFormat::Grey8).unwrap();
        assert!(view.with_row_stride(1).is_err());
        assert!(view.with_row_stride(4).is_err());
        assert!(view.with_row_stride(usize::MAX).is_err());
    }

    #[test]
    fn planes_hold_the_same_pixels() {
        // Two rows of two pixels, one byte between rows and two between planes.
        let plane = |first: u8| [first, first + 1, 99, first + 2, first + 3, 99, 99];
        let data: Vec<u8> = [plane(10), plane(20), plane(30), plane(40)].concat();
        let pixel = |i: u8| [10 + i, 20 + i, 30 + i, 40 + i];
        let interleaved: Vec<u8> = (0..4).flat_map(pixel).collect();
        for format in [PixelFormat::Rgba8, PixelFormat::Bgra8] {
            let view = ImageView::planar(&data, 2, 2, format).unwrap().with_row_stride(3).unwrap();
            let got = rows(view.with_plane_stride(7).unwrap()).unwrap();
            assert_eq!(got, rows(ImageView::new(&interleaved, 2, 2, format).unwrap()).unwrap());
            assert!(view.with_plane_stride(4).is_err());
            assert!(view.with_plane_stride(8).is_err());
            assert!(view.with_plane_stride(usize::MAX).is_err());
        }
        let grey = ImageView::planar(&data, 2, 1, PixelFormat::Grey16).unwrap();
        assert_eq!(
            rows(grey).unwrap(),
            rows(ImageView::new(&data, 2, 1, PixelFormat::Grey16).unwrap()).unwrap()
        );
        let view = ImageView::new(&data, 2, 2, PixelFormat::Rgb8).unwrap();
        assert!(view.with_plane_stride(4).is_err());
        let floats: Vec<u8> = [0.0f32, 0.5, 1.0].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let view = ImageView::planar(&floats, 1, 1, PixelFormat::RgbF32).unwrap();
        assert_eq!(rows(view).unwrap(), [-1.0, 0.0, 1.0]);
    }

    #[test]
    fn impossible_images_are_errors() {
        let data = [0; 12];
        for (width, height, format) in [
            (0, 3, PixelFormat::Grey8),
            (3, 0, PixelFormat::Grey8),
            (5, 1, PixelFormat::Rgb8),
            (usize::MAX, 2, PixelFormat::Rgb8),
            (2, usize::MAX, PixelFormat::Grey8),
            (usize::MAX, usize::MAX, PixelFormat::RgbF32),
        ] {
            assert!(matches!(ImageView::new(&data, width, height, format), Err(Error::Image(_))));
        }
    }

    #[test]
    fn floats_that_are_not_pixels_are_errors() {
        for bad in [f32::NAN, f32::INFINITY, -0.1, 255.0] {
            let data: Vec<u8> = [0.5, 0.5, bad].iter().flat_map(|v: &f32| v.to_ne_bytes()).collect();
            let error = rows(ImageView::new(&data, 1, 3, PixelFormat::GreyF32).unwrap()).unwrap_err();
            assert!(error.to_string().contains("row 2, column 0"), "{error}");
        }
    }
}
