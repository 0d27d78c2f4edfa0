//! From blended probabilities at the model's scale to labels at the image's.

use super::rescale::{Filter, Resampler};
use crate::memory::{product, zeros};
use crate::{Error, Result};

/// Values of probabilities that a band holds, unless a row has more.
const BAND_VALUES: usize = 1 << 18;

/// Some rows of a result, at the size of the image.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    /// Its first row in the image.
    pub top: usize,
    /// Rows.
    pub height: usize,
    /// Columns: those of the image.
    pub width: usize,
    /// Classes.
    pub classes: usize,
    /// `[height, width]`: the index of the most probable class, the first of equals.
    pub labels: &'a [u8],
    /// `[height, width, classes]`, where asked for. They add up to 1.
    pub probabilities: Option<&'a [f32]>,
    /// `[height, width]`, where asked for: how much the heads disagree, in nats (entropy of their mean minus mean of
    /// their entropies).
    pub uncertainty: Option<&'a [f32]>,
}

/// What a band holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct BandContent {
    pub(super) classes: usize,
    pub(super) probabilities: bool,
    pub(super) uncertainty: bool,
}

/// Takes rows of class probabilities at the model's scale and hands out bands at the image's.
pub(super) struct BandWriter<'a> {
    content: BandContent,
    resampler: Resampler,
    row: Vec<f32>,
    width: usize,
    rows: usize,
    top: usize,
    filled: usize,
    labels: Vec<u8>,
    probabilities: Vec<f32>,
    uncertainty: Vec<f32>,
    /// What to do where probabilities are not finite.
    advice: &'static str,
    sink: &'a mut dyn FnMut(Band<'_>) -> Result<()>,
}

impl<'a> BandWriter<'a> {
    /// From and to sizes are (height, width); `scale` is the number of pixels of the former along one of the latter.
    pub(super) fn new(
        from: (usize, usize),
        to: (usize, usize),
        scale: f64,
        content: BandContent,
        advice: &'static str,
        sink: &'a mut dyn FnMut(Band<'_>) -> Result<()>,
    ) -> Result<Self> {
        let (height, width) = to;
        let channels = content.classes + usize::from(content.uncertainty);
        let row_len = product(&[width, channels], "a row of probabilities")?;
        let rows = (BAND_VALUES / row_len.max(1)).clamp(1, height);
        let wanted =
            |wanted: bool, len| if wanted { zeros(len, "a band of the result") } else { Ok(Vec::new()) };
        Ok(Self {
            content,
            resampler: Resampler::new(from, to, scale, channels, Filter::Bilinear)?,
            row: zeros(row_len, "a row of probabilities")?,
            width,
            rows,
            top: 0,
            filled: 0,
            labels: zeros(rows * width, "a band of labels")?,
            probabilities: wanted(content.probabilities, rows * width * content.classes)?,
            uncertainty: wanted(content.uncertainty, rows * width)?,
            advice,
            sink,
        })
    }

    /// Takes the next row `[width, classes]`, with one value more a pixel where there is uncertainty.
    pub(super) fn push(&mut self, row: &[f32]) -> Result<()> {
        self.resampler.push(row)?;
        while self.resampler.pull(&mut self.row) {
            self.take_row()?;
            if self.filled == self.rows {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Hands out the rows that do not fill a band.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()
    }

    fn take_row(&mut self) -> Result<()> {
        let BandContent { classes, probabilities, uncertainty } = self.content;
        let stride = classes + usize::from(uncertainty);
        let start = self.filled * self.width;
        for (label, pixel) in self.labels[start..].iter_mut().zip(self.row.chunks_exact(stride)) {
            *label = argmax(&pixel[..classes]).ok_or_else(|| Error::tensor("probabilities", self.advice))?;
        }
        if probabilities {
            let out = self.probabilities[start * classes..].chunks_exact_mut(classes);
            for (out, pixel) in out.zip(self.row.chunks_exact(stride)) {
                out.copy_from_slice(&pixel[..classes]);
            }
        }
        if uncertainty {
            for (out, pixel) in self.uncertainty[start..].iter_mut().zip(self.row.chunks_exact(stride)) {
                *out = pixel[classes];
            }
        }
        self.filled += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let pixels = self.filled * self.width;
        let BandContent { classes, probabilities, uncertainty } = self.content;
        (self.sink)(Band {
            top: self.top,
            height: self.filled,
            width: self.width,
            classes,
            labels: &self.labels[..pixels],
            probabilities: probabilities.then(|| &self.probabilities[..pixels * classes]),
            uncertainty: uncertainty.then(|| &self.uncertainty[..pixels]),
        })?;
        self.top += self.filled;
        self.filled = 0;
        Ok(())
    }
}

/// The most probable class, the first of equals; none where a probability is not finite. There are at most 255 classes.
fn argmax(probabilities: &[f32]) -> Option<u8> {
    let (mut best, mut label) = (f32::NEG_INFINITY, 0);
    // Not a number as soon as one of them is not finite.
    let mut zeros = 0.0;
    for (class, &probability) in probabilities.iter().enumerate() {
        zeros += 0.0 * probability;
        if probability > best {
            (best, label) = (probability, class as u8);
        }
    }
    (zeros == 0.0).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_once_in_order_and_at_the_size_asked_for() {
        let (from, to) = ((40, 1500), (83, 3001));
        let content = BandContent { classes: 3, probabilities: true, uncertainty: true };
        let (mut next, mut bands) = (0, 0);
        let mut sink = |band: Band<'_>| {
            assert_eq!((band.top, band.width, band.classes), (next, to.1, 3));
            assert_eq!(band.labels.len(), band.height * to.1);
            assert_eq!(band.probabilities.unwrap().len(), band.height * to.1 * 3);
            assert!(band.uncertainty.unwrap().iter().all(|value| (value - 0.125).abs() < 1e-6));
            for (label, pixel) in band.labels.iter().zip(band.probabilities.unwrap().chunks(3)) {
                assert!(pixel.iter().all(|value| *value <= pixel[usize::from(*label)]));
            }
            next += band.height;
            bands += 1;
            Ok(())
        };
        let mut writer = BandWriter::new(from, to, 0.5, content, "", &mut sink).unwrap();
        for y in 0..from.0 {
            let row: Vec<f32> = (0..from.1)
                .flat_map(|x| {
                    let left = ((x * y) as f32).sin().abs();
                    [left, (1.0 - left) / 2.0, (1.0 - left) / 2.0, 0.125]
                })
                .collect();
            writer.push(&row).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(next, to.0);
        assert!(bands > 1);
    }

    #[test]
    fn the_first_of_equal_classes_wins() {
        assert_eq!(argmax(&[0.25, 0.5, 0.5]), Some(1));
        assert_eq!(argmax(&[0.5, 0.5]), Some(0));
    }

    #[test]
    fn what_is_not_finite_is_no_class() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..3 {
                let mut probabilities = [0.5, 0.25, 0.25];
                probabilities[place] = bad;
                assert_eq!(argmax(&probabilities), None);
            }
        }
    }
}
