//! Between an image's scale and the model's, row by row.

use std::collections::VecDeque;
use std::ops::Range;

use crate::memory::reserve;
use crate::{Error, Result};

/// Scales closer to 1 than this are taken as 1: resampling would cost more detail than it brings agreement.
const TOLERANCE: f64 = 0.05;

/// Beyond these an image's pixel size is taken for a mistake.
const SCALES: Range<f64> = 1.0 / 64.0..16.0;

/// Why an image was, or was not, resampled for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scaling {
    /// It was resampled to the model's micrometres per pixel.
    Rescaled,
    /// Its micrometres per pixel are within 5 % of the model's, so that it was used as it is.
    Close,
    /// Nobody says how large its pixels are, so that it was used as it is.
    ImageUnknown,
    /// Nobody says at what scale the model was trained, so that the image was used as it is.
    ModelUnknown,
}

/// Scaled pixels per image pixel, and why, from the micrometres per pixel of both.
///
/// # Errors
/// [`Error::Invalid`] for micrometres that are not positive, and for scales below 1/64 or above 16.
pub fn scale_between(image: Option<f64>, model: Option<f64>) -> Result<(f64, Scaling)> {
    for microns in [image, model].into_iter().flatten() {
        if !(microns > 0.0 && microns.is_finite()) {
            return Err(Error::invalid("microns per pixel", format!("{microns} is not a size")));
        }
    }
    let Some(image) = image else { return Ok((1.0, Scaling::ImageUnknown)) };
    let Some(model) = model else { return Ok((1.0, Scaling::ModelUnknown)) };
    let scale = image / model;
    if (scale - 1.0).abs() <= TOLERANCE {
        return Ok((1.0, Scaling::Close));
    }
    if !(SCALES.start..=SCALES.end).contains(&scale) {
        return Err(Error::invalid(
            "microns per pixel",
            format!(
                "the image has {image} and the model {model}, a factor of {scale:.3e} in size, but only 1/64 to 16 \
                 is possible; is it given in micrometres?"
            ),
        ));
    }
    Ok((scale, Scaling::Rescaled))
}

/// A side of `size` pixels at `scale`: what is left of a scaled pixel at the end is dropped, but one pixel is the least.
///
/// # Errors
/// [`Error::Image`] if that is more than an image can have.
pub fn scaled_side(size: usize, scale: f64) -> Result<usize> {
    // The last digits of a quotient of micrometres must not decide whether the last pixel is whole.
    let side = (size as f64 * scale + 1e-6).floor().max(1.0) as usize;
    crate::image::check_size(side, side)?;
    Ok(side)
}

/// How values between or across pixels are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The mean over a pixel's area where the size shrinks (a box filter with fractional ends), bilinear where it grows.
    AreaOrBilinear,
    /// Bilinear, pixel centres at half integers (align_corners = false).
    Bilinear,
}

impl Filter {
    /// Which of `from` old pixels make up new pixel `i`, which is `ratio` of them long: the first, and their weights.
    fn taps(self, from: usize, ratio: f64, i: usize, weights: &mut Vec<f32>) -> usize {
        weights.clear();
        let last = (from - 1) as f64;
        if self == Self::AreaOrBilinear && ratio > 1.0 {
            let start = (i as f64 * ratio).min(last);
            let end = ((i + 1) as f64 * ratio).min(from as f64);
            let first = start.floor();
            let mut pixel = first;
            while pixel < end {
                let overlap = end.min(pixel + 1.0) - start.max(pixel);
                weights.push((overlap / (end - start)) as f32);
                pixel += 1.0;
            }
            return first as usize;
        }
        let position = ((i as f64 + 0.5) * ratio - 0.5).clamp(0.0, last);
        let fraction = position.fract() as f32;
        weights.push(1.0 - fraction);
        if fraction > 0.0 && position < last {
            weights.push(fraction);
        }
        position as usize
    }
}

/// Resamples an image whose rows are pushed one after the other and pulled at their new size.
#[derive(Debug)]
pub struct Resampler {
    filter: Filter,
    channels: usize,
    /// Old pixels along a new one.
    ratio: f64,
    old_height: usize,
    new_height: usize,
    new_width: usize,
    /// For each new column its first old column and the end of its weights.
    columns: Vec<(usize, usize)>,
    column_weights: Vec<f32>,
    row_weights: Vec<f32>,
    /// Rows at their new width, from old row `first` on.
    rows: VecDeque<Vec<f32>>,
    first: usize,
    spare: Vec<Vec<f32>>,
    next: usize,
}

impl Resampler {
    /// Resamples `[height, width, channels]` between two sizes, each (height, width). A new pixel is as long as `ratio` old
    /// ones, and the first ones begin together; the last ones may not end together.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a ratio that is not positive, or sides of zero; [`Error::OutOfMemory`].
    pub fn new(
        from: (usize, usize),
        to: (usize, usize),
        ratio: f64,
        channels: usize,
        filter: Filter,
    ) -> Result<Self> {
        if !(ratio > 0.0 && ratio.is_finite()) || [from.0, from.1, to.0, to.1, channels].contains(&0) {
            return Err(Error::invalid("size", format!("{from:?} to {to:?} by a factor of {ratio}")));
        }
        // A quotient of micrometres that is a whole number but for its last digits.
        let ratio = if (ratio - ratio.round()).abs() < 1e-9 { ratio.round() } else { ratio };
        let mut columns = Vec::new();
        reserve(&mut columns, to.1, "columns")?;
        let mut column_weights = Vec::new();
        let mut weights = Vec::new();
        for column in 0..to.1 {
            let first = filter.taps(from.1, ratio, column, &mut weights);
            reserve(&mut column_weights, weights.len(), "column weights")?;
            column_weights.extend_from_slice(&weights);
            columns.push((first, column_weights.len()));
        }
        Ok(Self {
            filter,
            channels,
            ratio,
            old_height: from.0,
            new_height: to.0,
            new_width: to.1,
            columns,
            column_weights,
            row_weights: weights,
            rows: VecDeque::new(),
            first: 0,
            spare: Vec::new(),
            next: 0,
        })
    }

    /// Values in a pulled row.
    pub fn row_len(&self) -> usize {
        self.new_width * self.channels
    }

    /// Takes the next row `[width, channels]` of the old size.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn push(&mut self, row: &[f32]) -> Result<()> {
        let mut new = self.spare.pop().unwrap_or_default();
        new.clear();
        let len = self.row_len();
        if self.ratio == 1.0 && row.len() == len {
            reserve(&mut new, len, "values of a row")?;
            new.extend_from_slice(row);
        } else {
            reserve(&mut new, len, "values of a row")?;
            new.resize(len, 0.0);
            let mut start = 0;
            for (out, &(first, end)) in new.chunks_exact_mut(self.channels).zip(&self.columns) {
                let pixels = row[first * self.channels..].chunks_exact(self.channels);
                for (pixel, weight) in pixels.zip(&self.column_weights[start..end]) {
                    for (out, value) in out.iter_mut().zip(pixel) {
                        *out += weight * value;
                    }
                }
                start = end;
            }
        }
        self.rows.push_back(new);
        Ok(())
    }

    /// Writes the next row of the new size and says true, or says false if more rows must be pushed before.
    pub fn pull(&mut self, out: &mut [f32]) -> bool {
        if self.next == self.new_height {
            return false;
        }
        let first = self.filter.taps(self.old_height, self.ratio, self.next, &mut self.row_weights);
        // Rows that no further one needs, including those between the ranges of two.
        while self.first < first {
            let Some(row) = self.rows.pop_front() else { return false };
            self.spare.push(row);
            self.first += 1;
        }
        if self.rows.len() < self.row_weights.len() {
            return false;
        }
        out.fill(0.0);
        for (row, weight) in self.rows.iter().zip(&self.row_weights) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += weight * value;
            }
        }
        self.next += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resample(
        image: &[f32],
        from: (usize, usize),
        to: (usize, usize),
        ratio: f64,
        channels: usize,
        filter: Filter,
    ) -> Vec<f32> {
        let mut resampler = Resampler::new(from, to, ratio, channels, filter).unwrap();
        let mut row = vec![f32::NAN; resampler.row_len()];
        let mut out = Vec::new();
        for pushed in image.chunks_exact(from.1 * channels) {
            resampler.push(pushed).unwrap();
            while resampler.pull(&mut row) {
                out.extend_from_slice(&row);
            }
        }
        assert_eq!(out.len(), to.0 * to.1 * channels, "every row comes out once the last went in");
        out
    }

    fn scaled(size: (usize, usize), scale: f64) -> (usize, usize) {
        (scaled_side(size.0, scale).unwrap(), scaled_side(size.1, scale).unwrap())
    }

    proptest! {
        #[test]
        fn a_constant_stays_a_constant_there_and_back(
            size in (1usize..40, 1usize..40), scale in 0.02f64..5.0, channels in 1usize..4
        ) {
            let small = scaled(size, scale);
            let image = vec![0.7; size.0 * size.1 * channels];
            let there = resample(&image, size, small, 1.0 / scale, channels, Filter::AreaOrBilinear);
            let back = resample(&there, small, size, scale, channels, Filter::Bilinear);
            for value in there.iter().chain(&back) {
                prop_assert!((value - 0.7).abs() < 1e-6, "{}", value);
            }
        }

        #[test]
        fn shrinking_keeps_the_mean(blocks in (1usize..8, 1usize..8), new in 1usize..6, more in 1usize..6) {
            let old = new + more;
            let (from, to) = ((blocks.0 * old, blocks.1 * old), (blocks.0 * new, blocks.1 * new));
            let image: Vec<f32> = (0..from.0 * from.1).map(|i| (i as f32 * 1.7).sin()).collect();
            let mean = |image: &[f32]| image.iter().map(|v| f64::from(*v)).sum::<f64>() / image.len() as f64;
            let ratio = old as f64 / new as f64;
            let small = resample(&image, from, to, ratio, 1, Filter::AreaOrBilinear);
            prop_assert!((mean(&image) - mean(&small)).abs() < 1e-5);
        }
    }

    #[test]
    fn halving_averages_squares_of_four_and_drops_an_odd_end() {
        for (height, width) in [(6, 10), (7, 11)] {
            let image: Vec<f32> = (0..height * width * 2).map(|i| ((i * i) % 17) as f32).collect();
            let size = scaled((height, width), 0.5);
            assert_eq!(size, (3, 5));
            let half = resample(&image, (height, width), size, 2.0, 2, Filter::AreaOrBilinear);
            for (i, got) in half.iter().enumerate() {
                let (y, x, channel) = (i / 10, i / 2 % 5, i % 2);
                let at = |dy, dx| image[((2 * y + dy) * width + 2 * x + dx) * 2 + channel];
                assert_eq!(*got, (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 4.0);
            }
        }
    }

    #[test]
    fn enlarging_is_bilinear_between_pixel_centres() {
        let wide = resample(&[0.0, 1.0], (1, 2), (1, 4), 0.5, 1, Filter::AreaOrBilinear);
        assert_eq!(wide, [0.0, 0.25, 0.75, 1.0]);
        let tall = resample(&[0.0, 1.0], (2, 1), (4, 1), 0.5, 1, Filter::Bilinear);
        assert_eq!(tall, [0.0, 0.25, 0.75, 1.0]);
        let dropped = resample(&[0.0, 1.0], (1, 2), (1, 5), 0.5, 1, Filter::Bilinear);
        assert_eq!(dropped, [0.0, 0.25, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn memory_does_not_depend_on_height() {
        let mut resampler = Resampler::new((10_000, 8), (2_500, 2), 4.0, 1, Filter::AreaOrBilinear).unwrap();
        let mut out = [0.0; 2];
        for _ in 0..10_000 {
            resampler.push(&[1.0; 8]).unwrap();
            while resampler.pull(&mut out) {}
            assert!(resampler.rows.len() + resampler.spare.len() <= 6);
        }
    }

    #[test]
    fn impossible_ratios_are_errors() {
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Resampler::new((2, 2), (2, 2), ratio, 1, Filter::Bilinear).is_err());
        }
        assert!(Resampler::new((0, 2), (2, 2), 1.0, 1, Filter::Bilinear).is_err());
    }

    #[test]
    fn scales_are_trusted_only_where_both_sides_say_something() {
        assert_eq!(scale_between(None, Some(0.5)).unwrap(), (1.0, Scaling::ImageUnknown));
        assert_eq!(scale_between(Some(0.5), None).unwrap(), (1.0, Scaling::ModelUnknown));
        assert_eq!(scale_between(Some(0.52), Some(0.5)).unwrap(), (1.0, Scaling::Close));
        assert_eq!(scale_between(Some(0.25), Some(0.5)).unwrap(), (0.5, Scaling::Rescaled));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 500.0, 1e-9] {
            assert!(scale_between(Some(bad), Some(0.5)).is_err(), "{bad}");
        }
        assert_eq!(scaled_side(775, 0.62 / 1.24).unwrap(), 387);
        assert_eq!(scaled_side(6, 0.1 / 0.3).unwrap(), 2);
        assert_eq!(scaled_side(1, 0.1).unwrap(), 1);
        assert!(scaled_side(1 << 30, 2.0).is_err());
    }
}
