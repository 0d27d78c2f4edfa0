//! Where sliding windows lie and how much each of their pixels counts, as MONAI's `sliding_window_inference` has it.

use crate::model::Metadata;
use crate::{Error, Result};

/// Smallest weight of a window's pixel relative to its centre, so that no pixel of an image is without weight.
const LEAST_WEIGHT: f32 = 1e-3;

/// Standard deviation of the Gaussian weights, in windows.
const SIGMA: f64 = 0.125;

/// Corner of a window in the image, in pixels; negative where the image is smaller than the window and padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowPosition {
    /// First row.
    pub top: isize,
    /// First column.
    pub left: isize,
}

/// Square windows that cover an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowGrid {
    window: usize,
    tops: Axis,
    lefts: Axis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    window: usize,
    step: usize,
    count: usize,
}

impl Axis {
    fn new(size: usize, window: usize, overlap: f64) -> Self {
        // Truncation is the rule: floor(window * (1 - overlap)).
        let step = ((window as f64 * (1.0 - overlap)) as usize).clamp(1, window);
        let count = size.saturating_sub(window).div_ceil(step) + 1;
        Self { size, window, step, count }
    }

    fn start(&self, index: usize) -> isize {
        if self.size < self.window {
            -(((self.window - self.size) / 2) as isize)
        } else {
            (index * self.step).min(self.size - self.window) as isize
        }
    }
}

impl WindowGrid {
    /// Covers `height` x `width` pixels by windows of `window` pixels, neighbours sharing the part `overlap` of their side.
    /// The last ones are moved back to end at the border.
    ///
    /// # Errors
    /// [`Error::Image`] if a side is zero or too long; [`Error::Invalid`] for a window of zero pixels or an overlap outside 0 to
    /// [`Metadata::MOST_OVERLAP`].
    pub fn new(height: usize, width: usize, window: usize, overlap: f64) -> Result<Self> {
        crate::image::check_size(width, height)?;
        if window == 0 || window > 1 << 30 {
            return Err(Error::invalid("window", format!("{window} pixels")));
        }
        Metadata::check_overlap(overlap)?;
        Ok(Self {
            window,
            tops: Axis::new(height, window, overlap),
            lefts: Axis::new(width, window, overlap),
        })
    }

    /// Side of a window in pixels.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Rows of the image.
    pub fn height(&self) -> usize {
        self.tops.size
    }

    /// Columns of the image.
    pub fn width(&self) -> usize {
        self.lefts.size
    }

    /// Rows of windows.
    pub fn rows(&self) -> usize {
        self.tops.count
    }

    /// Windows in a row.
    pub fn columns(&self) -> usize {
        self.lefts.count
    }

    /// Windows in all.
    pub fn count(&self) -> usize {
        // Sides are at most 2^30.
        self.rows().saturating_mul(self.columns())
    }

    /// First image row of a row of windows.
    pub fn top(&self, row: usize) -> isize {
        self.tops.start(row)
    }

    /// All windows, row by row.
    pub fn positions(&self) -> impl Iterator<Item = WindowPosition> + '_ {
        (0..self.rows()).flat_map(move |row| {
            let top = self.top(row);
            (0..self.columns()).map(move |column| WindowPosition { top, left: self.lefts.start(column) })
        })
    }
}

/// How much the pixels of a window count: a Gaussian around its centre, never below a thousandth.
#[derive(Clone, Debug)]
pub struct Importance {
    bell: Vec<f32>,
}

impl Importance {
    /// Weights for windows of `window` pixels.
    pub fn new(window: usize) -> Self {
        let centre = (window as f64 - 1.0) / 2.0;
        let sigma = SIGMA * window as f64;
        let bell = (0..window).map(|i| (-((i as f64 - centre) / sigma).powi(2) / 2.0).exp() as f32).collect();
        Self { bell }
    }

    /// The least weight of a pixel.
    pub const LEAST_WEIGHT: f32 = LEAST_WEIGHT;

    /// Weights along one side of a window. A pixel's weight is the product of its row's and its column's, at least
    /// [`LEAST_WEIGHT`](Self::LEAST_WEIGHT).
    pub fn bell(&self) -> &[f32] {
        &self.bell
    }

    /// Side of the window.
    pub fn window(&self) -> usize {
        self.bell.len()
    }

    /// Weights of a window's row `y`, left to right.
    pub fn row(&self, y: usize) -> impl Iterator<Item = f32> + '_ {
        let vertical = self.bell[y];
        self.bell.iter().map(move |horizontal| (vertical * horizontal).max(LEAST_WEIGHT))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn windows_cover_every_pixel_and_stay_inside(
            height in 1usize..300, width in 1usize..300, window in 1usize..100, overlap in 0.0f64..0.9
        ) {
            let grid = WindowGrid::new(height, width, window, overlap).unwrap();
            prop_assert_eq!(grid.positions().count(), grid.count());
            let mut rows = vec![false; height];
            let mut columns = vec![false; width];
            for WindowPosition { top, left } in grid.positions() {
                for (start, covered) in [(top, &mut rows), (left, &mut columns)] {
                    let size = covered.len() as isize;
                    let end = start + window as isize;
                    if size >= window as isize {
                        prop_assert!(start >= 0 && end <= size);
                    } else {
                        prop_assert!(start <= 0 && end >= size);
                    }
                    covered[start.max(0) as usize..end.min(size) as usize].fill(true);
                }
            }
            prop_assert!(rows.iter().chain(&columns).all(|covered| *covered));
            let tops: Vec<_> = (0..grid.rows()).map(|row| grid.top(row)).collect();
            prop_assert!(tops.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn impossible_grids_are_errors() {
        assert!(WindowGrid::new(0, 5, 32, 0.2).is_err());
        assert!(WindowGrid::new(5, 5, 0, 0.2).is_err());
        assert!(WindowGrid::new(5, usize::MAX, 32, 0.2).is_err());
        assert!(WindowGrid::new(5, 5, 32, Metadata::MOST_OVERLAP).is_ok());
        for overlap in [1.0, 0.9999, -0.1, f64::NAN] {
            assert!(WindowGrid::new(5, 5, 32, overlap).is_err());
        }
    }
}
