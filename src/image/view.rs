//! Images in memory.

use std::ops::Range;

use super::{ImageSource, PixelFormat, StoredValues, check_size};
use crate::intensity::{IntensityRange, IntensitySample, Limits};
use crate::memory::{product, zeros};
use crate::{Error, Result};

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
    /// The values of the type that they were stored in.
    full: Limits,
    /// The values that stand for black and white in each channel, where somebody said so.
    ranges: Option<[Limits; MOST_COLOURS]>,
}

/// Colours of a pixel, at most.
const MOST_COLOURS: usize = 3;

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
        let view = Self {
            data,
            width,
            height,
            row_stride,
            plane_stride: None,
            format,
            microns_per_pixel: None,
            full: format.full_range(),
            ranges: None,
        };
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

    /// Declares which stored values stand for black and white in this image, as a camera of 12 bits does in 16-bit samples (0 and
    /// 4095). It is believed unless the model, or whoever uses it, has a range of its own: see
    /// [`IntensityRange`](crate::intensity::IntensityRange).
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `low` is less than `high` and both are finite.
    pub fn with_range(self, low: f64, high: f64) -> Result<Self> {
        self.with_ranges(&[Limits { low, high }; MOST_COLOURS][..self.format.colours()])
    }

    /// As [`with_range`](Self::with_range), for each channel without alpha by itself.
    ///
    /// # Errors
    /// As `with_range`, and for another number of channels than the image has.
    pub fn with_ranges(mut self, ranges: &[Limits]) -> Result<Self> {
        let colours = self.format.colours();
        if ranges.len() != colours {
            let given = ranges.len();
            return Err(Error::invalid("range", format!("is given for {given} of {colours} channels")));
        }
        let mut all = [self.full; MOST_COLOURS];
        for (to, from) in all.iter_mut().zip(ranges) {
            *to = Limits::new(from.low, from.high)?;
        }
        self.ranges = Some(all);
        Ok(self)
    }

    /// Says that samples were converted from another type, such as 12-bit numbers, whose range this is; it takes the place of
    /// [`PixelFormat::full_range`].
    ///
    /// # Errors
    /// As [`with_range`](Self::with_range).
    pub fn with_full_range(mut self, low: f64, high: f64) -> Result<Self> {
        self.full = Limits::new(low, high)?;
        Ok(self)
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

    /// The stored values that stand for black and white in each channel, where the image declares them.
    pub fn ranges(&self) -> Option<&[Limits]> {
        Some(&self.ranges.as_ref()?[..self.format.colours()])
    }

    /// The range of the type that samples were stored in.
    pub fn full_range(&self) -> Limits {
        self.full
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
            .field("ranges", &self.ranges())
            .finish_non_exhaustive()
    }
}

/// Values that a survey reads at a time, if a row has fewer.
const SURVEY_VALUES: usize = 1 << 16;

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
        let first = rows.start;
        self.read_stored(rows, out)?;
        match IntensityRange::Declared.scale(self)? {
            Some(scale) => scale.apply(out, first, self.width),
            None => Ok(()),
        }
    }

    fn stored(&mut self) -> Option<&mut dyn StoredValues> {
        Some(self)
    }
}

impl StoredValues for ImageView<'_> {
    fn full_range(&self) -> Limits {
        self.full
    }

    fn declared_ranges(&self) -> Option<&[Limits]> {
        self.ranges()
    }

    fn read_stored(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let colours = self.format.colours();
        let row_len = self.width * colours;
        if rows.end > self.height || rows.start > rows.end || out.len() != rows.len() * row_len {
            return Err(Error::invalid(
                "rows",
                format!("{rows:?} of {} into {} values of {row_len} a row", self.height, out.len()),
            ));
        }
        let (sample, order) = (self.format.sample(), self.format.order());
        let interleaved_like_the_result = order.len() == self.format.samples() && order.is_sorted();
        for (y, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            let row = |start: usize| &self.data[start + y * self.row_stride..][..self.row_bytes()];
            match self.plane_stride {
                None if interleaved_like_the_result => sample.read(row(0), 1, out.iter_mut()),
                None => {
                    for (channel, &at) in order.iter().enumerate() {
                        let bytes = &row(0)[at * self.format.bytes_per_sample()..];
                        let out = out.iter_mut().skip(channel).step_by(colours);
                        sample.read(bytes, self.format.samples(), out);
                    }
                }
                Some(stride) => {
                    for (channel, &plane) in order.iter().enumerate() {
                        let out = out.iter_mut().skip(channel).step_by(colours);
                        sample.read(row(plane * stride), 1, out);
                    }
                }
            }
        }
        Ok(())
    }

    fn survey(&mut self, sample: &mut IntensitySample) -> Result<bool> {
        let row_len = self.width * self.format.colours();
        let rows = (SURVEY_VALUES / row_len).clamp(1, self.height);
        let mut values = zeros(product(&[rows, row_len], "rows of the image")?, "rows of the image")?;
        for top in (0..self.height).step_by(rows) {
            let rows = top..self.height.min(top + rows);
            let values = &mut values[..rows.len() * row_len];
            self.read_stored(rows, values)?;
            sample.add(values);
        }
        Ok(true)
    }
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
        /// Samples at these parts of a type's range, 0 to 1.
        fn at<const N: usize>(parts: &[f64], sample: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
            parts.iter().flat_map(|part| sample(*part)).collect()
        }
        let u8 = |part: f64| [(part * 255.0) as u8];
        let u16 = |part: f64| ((part * 65535.0) as u16).to_ne_bytes();
        let i16 = |part: f64| ((part * 65535.0 - 32768.0) as i16).to_ne_bytes();
        let u32 = |part: f64| ((part * f64::from(u32::MAX)) as u32).to_ne_bytes();
        let i32 = |part: f64| ((part * f64::from(u32::MAX) - 2f64.powi(31)) as i32).to_ne_bytes();
        let f16 = |part: f64| half::f16::from_f64(part).to_ne_bytes();
        let f32 = |part: f64| (part as f32).to_ne_bytes();
        let grey = [0.0, 1.0];
        let rgb = [0.0, 1.0, 0.2, 1.0, 0.0, 0.2];
        let rgba = [0.0, 1.0, 0.2, 0.4, 1.0, 0.0, 0.2, 0.4];
        let bgra = [0.2, 1.0, 0.0, 0.4, 0.2, 0.0, 1.0, 0.4];
        let cases: [(PixelFormat, Vec<u8>); 19] = [
            (PixelFormat::Grey8, at(&grey, u8)),
            (PixelFormat::Grey16, at(&grey, u16)),
            (PixelFormat::GreyI16, at(&grey, i16)),
            (PixelFormat::GreyU32, at(&grey, u32)),
            (PixelFormat::GreyI32, at(&grey, i32)),
            (PixelFormat::GreyF16, at(&grey, f16)),
            (PixelFormat::GreyF32, at(&grey, f32)),
            (PixelFormat::GreyF64, at(&grey, f64::to_ne_bytes)),
            (PixelFormat::Rgb8, at(&rgb, u8)),
            (PixelFormat::Rgb16, at(&rgb, u16)),
            (PixelFormat::RgbI16, at(&rgb, i16)),
            (PixelFormat::RgbU32, at(&rgb, u32)),
            (PixelFormat::RgbI32, at(&rgb, i32)),
            (PixelFormat::RgbF16, at(&rgb, f16)),
            (PixelFormat::RgbF32, at(&rgb, f32)),
            (PixelFormat::RgbF64, at(&rgb, f64::to_ne_bytes)),
            (PixelFormat::Rgba8, at(&rgba, u8)),
            (PixelFormat::Bgra8, at(&bgra, u8)),
            (PixelFormat::Rgba16, at(&rgba, u16)),
        ];
        for (format, data) in cases {
            let got = rows(ImageView::new(&data, 2, 1, format).unwrap()).unwrap();
            let want: &[f32] =
                if format.colours() == 1 { &[-1.0, 1.0] } else { &[-1.0, 1.0, -0.6, 1.0, -1.0, -0.6] };
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                // A half has eleven bits.
                assert!((got - want).abs() < 1e-3, "{format:?}: {got} {want}");
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
}
