//! Label images, and their pixels at the model's scale.

use std::borrow::Cow;

use mdm::image::ImageView;
use mdm::{Error, Result};

use crate::metrics::UNLABELLED;

/// An image and what its pixels are.
#[derive(Clone, Debug)]
pub struct LabelledImage<'a> {
    /// Named in errors.
    pub name: Cow<'a, str>,
    /// The pixels.
    pub image: ImageView<'a>,
    /// One class index a pixel, row-major without gaps; [`UNLABELLED`] where nobody said.
    pub labels: &'a [u8],
    /// Rows of the label image; must be those of the image.
    pub label_height: usize,
    /// Columns of the label image; must be those of the image.
    pub label_width: usize,
}

/// Labelled images that are held one at a time.
pub trait LabelledImages {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Image `index`. Each is asked for twice: once to check and count all labels, once for its features.
    ///
    /// # Errors
    /// Whatever keeps the image from being read; it ends the fit.
    fn load(&mut self, index: usize) -> Result<LabelledImage<'_>>;
}

impl LabelledImages for &[LabelledImage<'_>] {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn load(&mut self, index: usize) -> Result<LabelledImage<'_>> {
        let image =
            self.get(index).ok_or_else(|| Error::invalid("index", format!("there is no image {index}")))?;
        Ok(image.clone())
    }
}

impl LabelledImage<'_> {
    /// Checks that the label image is as large as the image.
    pub(crate) fn check_size(&self) -> Result<()> {
        let (height, width) = (self.image.height(), self.image.width());
        if (self.label_height, self.label_width) != (height, width) {
            return Err(self.wrong(format!(
                "the label image has {} x {} pixels, the image {width} x {height}; they must be of one size",
                self.label_width, self.label_height
            )));
        }
        if self.labels.len() != height * width {
            return Err(self.wrong(format!(
                "{} labels for {width} x {height} pixels; one a pixel is needed",
                self.labels.len()
            )));
        }
        Ok(())
    }

    /// An error that names the image.
    pub(crate) fn wrong(&self, reason: impl std::fmt::Display) -> Error {
        Error::invalid("labels", format!("{}: {reason}", self.name))
    }

    /// As [`scaled`].
    pub(crate) fn scaled(&self, height: usize, width: usize, ratio: f64) -> Vec<u8> {
        scaled(self.labels, (self.label_height, self.label_width), (height, width), ratio)
    }
}

/// Labels at the model's scale: `to` rows and columns, each as long as `ratio` of the `from` that `labels` have.
///
/// A pixel takes the label of its first image pixel where the ratio is a whole number, else of the one at its
/// centre. Where that is unlabelled it takes the first label there is in its area, so that thin scribbles survive.
pub(crate) fn scaled(labels: &[u8], from: (usize, usize), to: (usize, usize), ratio: f64) -> Vec<u8> {
    let (rows, columns) = (spans(to.0, from.0, ratio), spans(to.1, from.1, ratio));
    let first_label = |row: &Span, column: &Span| {
        (row.start..row.end)
            .flat_map(|row| &labels[row * from.1..][column.start..column.end])
            .copied()
            .find(|&label| label != UNLABELLED)
            .unwrap_or(UNLABELLED)
    };
    let mut scaled = Vec::with_capacity(to.0 * to.1);
    for row in &rows {
        for column in &columns {
            let label = labels[row.nearest * from.1 + column.nearest];
            scaled.push(if label == UNLABELLED { first_label(row, column) } else { label });
        }
    }
    scaled
}

/// A label image as it is kept: strokes are a few runs, whatever the image's size.
#[derive(Clone, Debug, Default)]
pub(crate) struct LabelRuns(Vec<(u32, u8)>);

impl LabelRuns {
    /// Those of at most `u32::MAX` labels.
    pub(crate) fn new(labels: &[u8]) -> Self {
        let mut end = 0;
        let runs = labels.chunk_by(|label, next| label == next).map(|run| {
            end += run.len() as u32;
            (end, run[0])
        });
        Self(runs.collect())
    }

    /// All labels, a byte each.
    pub(crate) fn labels(&self) -> Vec<u8> {
        let mut labels = Vec::with_capacity(self.0.last().map_or(0, |(end, _)| *end as usize));
        for &(end, label) in &self.0 {
            labels.resize(end as usize, label);
        }
        labels
    }
}

/// What a scaled pixel covers along one side.
struct Span {
    start: usize,
    end: usize,
    nearest: usize,
}

fn spans(scaled: usize, size: usize, ratio: f64) -> Vec<Span> {
    // A quotient of micrometres that is a whole number but for its last digits.
    let whole = (ratio - ratio.round()).abs() < 1e-9 && ratio >= 0.5;
    let ratio = if whole { ratio.round() } else { ratio };
    let at = |position: f64| (position as usize).min(size - 1);
    let span = |index: usize| {
        let start = at(index as f64 * ratio);
        let end = ((index + 1) as f64 * ratio) as usize;
        let nearest = if whole { start } else { at((index as f64 + 0.5) * ratio) };
        Span { start, end: end.clamp(start + 1, size), nearest }
    };
    (0..scaled).map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_reductions_take_every_nth_pixel() {
        let labels: Vec<u8> = (0..35).collect();
        assert_eq!(scaled(&labels, (5, 7), (2, 3), 2.0), [0, 2, 4, 14, 16, 18]);
        assert_eq!(scaled(&labels, (5, 7), (2, 3), 1.999_999_999_9), [0, 2, 4, 14, 16, 18]);
        assert_eq!(scaled(&labels, (5, 7), (5, 7), 1.0), labels);
    }

    #[test]
    fn other_scales_take_the_nearest_pixel() {
        assert_eq!(scaled(&[0, 1, 2, 3, 4, 5], (1, 6), (1, 4), 1.5), [0, 2, 3, 5]);
        assert_eq!(scaled(&[7, 8], (1, 2), (2, 4), 0.5), [7, 7, 8, 8, 7, 7, 8, 8]);
    }

    #[test]
    fn runs_have_the_same_labels() {
        let strokes = [vec![UNLABELLED; 300], vec![1; 20], vec![0], vec![1], vec![UNLABELLED; 78]].concat();
        for labels in [vec![], vec![3], strokes] {
            let runs = LabelRuns::new(&labels);
            assert!(runs.0.len() <= 5);
            assert_eq!(runs.labels(), labels);
        }
    }

    #[test]
    fn thin_scribbles_survive() {
        let mut labels = [UNLABELLED; 16];
        labels[5] = 1;
        labels[8] = 2;
        labels[13] = 3;
        assert_eq!(scaled(&labels, (4, 4), (2, 2), 2.0), [1, UNLABELLED, 2, UNLABELLED]);
    }
}
