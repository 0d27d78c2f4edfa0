//! Overlapping windows become one image, a band at a time.

use super::memory::{product, zeros};
use super::window::{Importance, WindowGrid, WindowPosition};
use crate::{Error, Result};

/// Averages overlapping windows, weighted by [`Importance`]. It holds as many rows as a window has, however tall the image.
pub struct Blender {
    width: usize,
    height: usize,
    channels: usize,
    importance: Importance,
    /// Rows of the image, row y at `y % held`: for each pixel the weighted sums of its channels and the sum of weights.
    sums: Vec<f32>,
    held: usize,
    /// Rows before this one were handed out.
    finished: usize,
    row: Vec<f32>,
}

impl Blender {
    /// Blends windows of `grid` with `channels` values a pixel.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(grid: &WindowGrid, channels: usize) -> Result<Self> {
        let held = grid.window().min(grid.height());
        let len = product(&[held, grid.width(), channels + 1], "a band of blended windows")?;
        Ok(Self {
            width: grid.width(),
            height: grid.height(),
            channels,
            importance: Importance::new(grid.window()),
            sums: zeros(len, "a band of blended windows")?,
            held,
            finished: 0,
            row: zeros(grid.width() * channels, "a blended row")?,
        })
    }

    /// Adds `values`, a window `[window, window, channels]`. The rows `[width, channels]` above it are handed to `emit`,
    /// each once and in order.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a window that reaches above rows already handed out or below the image by more than padding;
    /// errors of `emit`.
    pub fn add(
        &mut self,
        position: WindowPosition,
        values: &[f32],
        emit: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let window = self.importance.window();
        if values.len() != window * window * self.channels {
            return Err(Error::invalid("window", format!("{} values", values.len())));
        }
        let rows = inside(position.top, window, self.height);
        let columns = inside(position.left, window, self.width);
        if rows.start < self.finished || rows.end > rows.start + self.held {
            return Err(Error::invalid("window", format!("row {} comes too late", position.top)));
        }
        self.emit_above(rows.start, emit)?;
        for y in rows {
            let in_window = offset(y, position.top);
            let skipped = offset(columns.start, position.left);
            let weights = self.importance.row(in_window).skip(skipped);
            let values = values[(in_window * window + skipped) * self.channels..].chunks_exact(self.channels);
            let stride = self.channels + 1;
            let sums = &mut self.sums[(y % self.held * self.width + columns.start) * stride..];
            for ((sums, values), weight) in
                sums.chunks_exact_mut(stride).take(columns.len()).zip(values).zip(weights)
            {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += weight * value;
                }
                sums[self.channels] += weight;
            }
        }
        Ok(())
    }

    /// Hands out what is left once the last window was added.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn finish(mut self, emit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.emit_above(self.height, emit)
    }

    fn emit_above(&mut self, end: usize, emit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let stride = self.channels + 1;
        while self.finished < end {
            let sums =
                &mut self.sums[self.finished % self.held * self.width * stride..][..self.width * stride];
            for (out, sums) in self.row.chunks_exact_mut(self.channels).zip(sums.chunks_exact(stride)) {
                for (out, sum) in out.iter_mut().zip(sums) {
                    // A pixel that no window covered has no weight; it becomes 0.
                    *out = sum / sums[self.channels].max(f32::MIN_POSITIVE);
                }
            }
            sums.fill(0.0);
            self.finished += 1;
            emit(&self.row)?;
        }
        Ok(())
    }
}

/// The part of a window's side that lies in the image.
pub(super) fn inside(start: isize, window: usize, size: usize) -> std::ops::Range<usize> {
    let end = start.saturating_add_unsigned(window).max(0).cast_unsigned().min(size);
    start.max(0).cast_unsigned().min(end)..end
}

/// Where an image's row or column that a window covers lies in the window.
pub(super) fn offset(pixel: usize, start: isize) -> usize {
    (pixel as isize - start).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_constant_stays_a_constant_and_every_row_comes_once(
            height in 1usize..70, width in 1usize..70, window in 1usize..32, overlap in 0.0f64..0.8, channels in 1usize..4
        ) {
            let grid = WindowGrid::new(height, width, window, overlap).unwrap();
            let mut blender = Blender::new(&grid, channels).unwrap();
            let values = vec![0.3; window * window * channels];
            let mut rows = 0;
            let mut check = |row: &[f32]| {
                rows += 1;
                assert_eq!(row.len(), width * channels);
                assert!(row.iter().all(|value| (value - 0.3).abs() < 1e-6));
                Ok(())
            };
            for position in grid.positions() {
                blender.add(position, &values, &mut check).unwrap();
            }
            blender.finish(&mut check).unwrap();
            prop_assert_eq!(rows, height);
        }
    }

    #[test]
    fn a_window_out_of_order_is_an_error() {
        let grid = WindowGrid::new(40, 8, 8, 0.0).unwrap();
        let mut blender = Blender::new(&grid, 1).unwrap();
        let values = [0.0; 64];
        let mut ignore = |_: &[f32]| Ok(());
        blender.add(WindowPosition { top: 8, left: 0 }, &values, &mut ignore).unwrap();
        assert!(blender.add(WindowPosition { top: 0, left: 0 }, &values, &mut ignore).is_err());
        assert!(blender.add(WindowPosition { top: 8, left: 0 }, &values[1..], &mut ignore).is_err());
    }
}
