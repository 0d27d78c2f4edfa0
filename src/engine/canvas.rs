//! Where the results of overlapping windows add up.

use std::any::Any;
use std::ops::Range;

use crate::memory::{product, zeros};
use crate::{Error, Result};

const BAND: &str = "a band of blended windows";

/// What a canvas looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct CanvasShape {
    /// Rows of the whole image.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Values a pixel.
    pub channels: usize,
    /// Rows that are held at a time, at least a window's or all of the image.
    pub held: usize,
    /// A window's weight at row y and column x is `bell[y] * bell[x]`; its length is the window's side.
    pub bell: Vec<f32>,
    /// The least that a weight can be.
    pub least_weight: f32,
}

impl CanvasShape {
    /// Values that are held: each pixel has one more, the sum of its weights.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where that exceeds what can be addressed.
    pub fn values(&self) -> Result<usize> {
        product(&[self.held, self.width, self.channels + 1], BAND)
    }

    fn weight(&self, y: usize, x: usize) -> f32 {
        (self.bell[y] * self.bell[x]).max(self.least_weight)
    }
}

/// Where a window lies in the image; its upper left corner may lie outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanvasPlace {
    /// First row.
    pub top: isize,
    /// First column.
    pub left: isize,
}

/// Sums of overlapping windows with their weights, of which some rows are held at a time. Made by
/// [`Engine::canvas`](super::Engine::canvas), so that they can stay where the windows are computed.
pub trait Canvas: Send {
    /// Adds a window `[window, window, channels]`.
    ///
    /// # Errors
    /// Those of the device.
    fn add(&mut self, values: &[f32], place: CanvasPlace) -> Result<()>;

    /// Hands out the weighted means of `rows`, `[rows, width, channels]`, and empties them.
    ///
    /// # Errors
    /// Those of the device and of `read`.
    fn take(&mut self, rows: Range<usize>, read: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>;

    /// For the engine that made it.
    fn as_any(&mut self) -> &mut dyn Any;
}

/// Adds the windows of a batch one by one.
pub(crate) fn blend_on_host(values: &[f32], canvas: &mut dyn Canvas, places: &[CanvasPlace]) -> Result<()> {
    if places.is_empty() || !values.len().is_multiple_of(places.len()) {
        return Err(Error::invalid("windows", format!("{} places for a batch", places.len())));
    }
    let windows = values.chunks_exact(values.len() / places.len());
    windows.zip(places).try_for_each(|(window, place)| canvas.add(window, *place))
}

/// A canvas in the host's memory.
pub(crate) struct HostCanvas {
    shape: CanvasShape,
    sums: Vec<f32>,
    rows: Vec<f32>,
}

impl HostCanvas {
    pub(crate) fn new(shape: CanvasShape) -> Result<Self> {
        let sums = zeros(shape.values()?, BAND)?;
        Ok(Self { shape, sums, rows: Vec::new() })
    }
}

impl Canvas for HostCanvas {
    fn add(&mut self, values: &[f32], place: CanvasPlace) -> Result<()> {
        let shape = &self.shape;
        let (window, channels) = (shape.bell.len(), shape.channels);
        if values.len() != window * window * channels {
            return Err(Error::invalid("window", format!("{} values", values.len())));
        }
        let columns = inside(place.left, window, shape.width);
        for y in inside(place.top, window, shape.height) {
            let own_y = offset(y, place.top);
            let start = (y % shape.held * shape.width + columns.start) * (channels + 1);
            let sums = self.sums[start..].chunks_exact_mut(channels + 1).take(columns.len());
            for (x, sums) in columns.clone().zip(sums) {
                let own_x = offset(x, place.left);
                let weight = shape.weight(own_y, own_x);
                let (totals, weights) = sums.split_at_mut(channels);
                for (total, value) in totals.iter_mut().zip(&values[(own_y * window + own_x) * channels..]) {
                    *total += weight * value;
                }
                weights[0] += weight;
            }
        }
        Ok(())
    }

    fn take(&mut self, rows: Range<usize>, read: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let CanvasShape { width, channels, held, .. } = self.shape;
        // A row at a time: what is taken needs no memory of its own.
        if self.rows.is_empty() {
            self.rows = zeros(width * channels, "a blended row")?;
        }
        for y in rows {
            let sums = &mut self.sums[y % held * width * (channels + 1)..][..width * (channels + 1)];
            for (out, sums) in self.rows.chunks_exact_mut(channels).zip(sums.chunks_exact(channels + 1)) {
                for (out, sum) in out.iter_mut().zip(sums) {
                    // A pixel that no window covered has no weight; it becomes 0.
                    *out = sum / sums[channels].max(f32::MIN_POSITIVE);
                }
            }
            sums.fill(0.0);
            read(&self.rows)?;
        }
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// The part of a window's side that lies in the image.
pub(crate) fn inside(start: isize, window: usize, size: usize) -> Range<usize> {
    let end = start.saturating_add_unsigned(window).max(0).cast_unsigned().min(size);
    start.max(0).cast_unsigned().min(end)..end
}

/// Where an image's row or column that a window covers lies in the window.
pub(crate) fn offset(pixel: usize, start: isize) -> usize {
    (pixel as isize - start).cast_unsigned()
}
