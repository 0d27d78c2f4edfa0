//! Overlapping windows become one image, a band at a time.

use super::window::{Importance, WindowGrid, WindowPosition};
use crate::engine::canvas::{Canvas, CanvasPlace, CanvasShape, HostCanvas, inside};
use crate::engine::{Engine, Inputs, Network};
use crate::{Control, Error, Result};

/// Averages overlapping windows, weighted by [`Importance`]. It holds as many rows as a batch of windows has, however tall the
/// image.
pub struct Blender {
    height: usize,
    window: usize,
    row_len: usize,
    held: usize,
    canvas: Box<dyn Canvas>,
    /// Rows before this one were handed out.
    finished: usize,
}

/// Is given finished rows `[width, channels]`, each once and in order.
pub type Emit<'a> = dyn FnMut(&[f32]) -> Result<()> + 'a;

impl Blender {
    /// Blends windows of `grid` with `channels` values a pixel in the host's memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(grid: &WindowGrid, channels: usize) -> Result<Self> {
        let shape = shape(grid, channels, 1);
        let held = shape.held;
        Ok(Self::with(grid, channels, held, Box::new(HostCanvas::new(shape)?)))
    }

    /// The same where `engine` computes, with room for `batch` windows that follow each other.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and those of the device.
    pub fn on(engine: &dyn Engine, grid: &WindowGrid, channels: usize, batch: usize) -> Result<Self> {
        let shape = shape(grid, channels, batch);
        let held = shape.held;
        Ok(Self::with(grid, channels, held, engine.canvas(shape)?))
    }

    fn with(grid: &WindowGrid, channels: usize, held: usize, canvas: Box<dyn Canvas>) -> Self {
        let (height, window) = (grid.height(), grid.window());
        let row_len = grid.width() * channels;
        Self { height, window, row_len, held, canvas, finished: 0 }
    }

    /// Adds `values`, a window `[window, window, channels]`. The rows above it are handed to
    /// `emit`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a window that reaches above rows already handed out or below the image by more than padding;
    /// errors of `emit` and of the device.
    pub fn add(&mut self, position: WindowPosition, values: &[f32], emit: &mut Emit<'_>) -> Result<()> {
        self.reach(position, emit)?;
        self.canvas.add(values, CanvasPlace { top: position.top, left: position.left })
    }

    /// Runs `network` and adds its windows, whose upper left corners are `positions`; rows above them are handed to `emit`
    /// as by [`add`](Self::add).
    ///
    /// # Errors
    /// As `add`, and those of [`Network::run`].
    pub fn add_run(
        &mut self,
        network: &mut dyn Network,
        inputs: &Inputs<'_>,
        control: &Control<'_>,
        positions: &[WindowPosition],
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        // A batch may begin in one row of windows and end in another; it is added in one go only where all its rows fit.
        let fits = |blender: &Self, position: &WindowPosition| {
            let rows = inside(position.top, blender.window, blender.height);
            rows.end <= blender.finished + blender.held
        };
        if let Some(first) = positions.first() {
            self.reach(*first, emit)?;
        }
        if positions.iter().all(|position| fits(self, position)) {
            let places: Vec<CanvasPlace> = positions
                .iter()
                .map(|position| CanvasPlace { top: position.top, left: position.left })
                .collect();
            return network.run_onto(inputs, control, &mut *self.canvas, &places);
        }
        network.run(inputs, control, &mut |_, values| {
            for (position, values) in
                positions.iter().zip(values.chunks_exact(values.len() / positions.len()))
            {
                self.add(*position, values, emit)?;
            }
            Ok(())
        })
    }

    /// Hands out what is left once the last window was added.
    ///
    /// # Errors
    /// Those of `emit` and of the device.
    pub fn finish(mut self, emit: &mut Emit<'_>) -> Result<()> {
        self.emit_above(self.height, emit)
    }

    /// Makes room for a window.
    fn reach(&mut self, position: WindowPosition, emit: &mut Emit<'_>) -> Result<()> {
        let rows = inside(position.top, self.window, self.height);
        if rows.start < self.finished || rows.end > rows.start + self.held {
            return Err(Error::invalid("window", format!("row {} comes too late", position.top)));
        }
        self.emit_above(rows.start, emit)
    }

    fn emit_above(&mut self, end: usize, emit: &mut Emit<'_>) -> Result<()> {
        let rows = self.finished..end.max(self.finished);
        self.finished = rows.end;
        let row_len = self.row_len;
        self.canvas.take(rows, &mut |rows| rows.chunks_exact(row_len).try_for_each(&mut *emit))
    }
}

fn shape(grid: &WindowGrid, channels: usize, batch: usize) -> CanvasShape {
    let importance = Importance::new(grid.window());
    // Rows of windows that a batch can touch. The last row may be closer to the one before it than others are.
    let touched = ((batch.max(1) - 1).div_ceil(grid.columns()) + 1).min(grid.rows());
    let step = if grid.rows() > 1 { (grid.top(1) - grid.top(0)).unsigned_abs() } else { 0 };
    let held = step.saturating_mul(touched - 1).saturating_add(grid.window());
    CanvasShape {
        height: grid.height(),
        width: grid.width(),
        channels,
        held: held.min(grid.height()),
        bell: importance.bell().to_vec(),
        least_weight: Importance::LEAST_WEIGHT,
    }
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
    fn a_batch_has_room() {
        let grid = WindowGrid::new(100, 40, 16, 0.25).unwrap();
        assert_eq!((grid.rows(), grid.columns()), (8, 3));
        let held = |batch| shape(&grid, 1, batch).held;
        assert_eq!((held(1), held(2), held(4), held(5), held(1000)), (16, 28, 28, 40, 100));
        let positions: Vec<WindowPosition> = grid.positions().collect();
        for batch in 1..=positions.len() {
            for windows in positions.windows(batch) {
                let rows = windows[batch - 1].top + 16 - windows[0].top;
                assert!(rows as usize <= held(batch), "{batch}");
            }
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
