//! Windows are cut out of an image that is read, and brought to the model's scale, row by row.

use std::ops::Range;

use super::rescale::{Filter, Resampler};
use super::window::{WindowGrid, WindowPosition};
use crate::engine::canvas::{inside, offset};
use crate::image::{ImageSource, check_channels, convert_channels};
use crate::intensity::{IntensityReport, IntensitySample, IntensityScale, SeenIntensities};
use crate::memory::{product, zeros};
use crate::{Error, Result};

/// Values that are read from a source at a time, if a row has fewer.
const READ_VALUES: usize = 1 << 16;

/// Reads an image's rows with a model's number of channels.
struct Reader<'a> {
    source: &'a mut dyn ImageSource,
    /// How stored values are scaled; none where the source does that.
    scale: Option<IntensityScale>,
    /// Stored values that were read.
    sample: IntensitySample,
    channels: usize,
    next: usize,
    read: Vec<f32>,
    /// Rows of `read` that are not yet delivered.
    pending: Range<usize>,
    row: Vec<f32>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a mut dyn ImageSource, scale: Option<IntensityScale>, channels: usize) -> Result<Self> {
        let (width, given) = (source.width(), source.channels());
        check_channels(given, channels)?;
        let row_len = product(&[width, given], "a row of the image")?;
        let rows = (READ_VALUES / row_len.max(1)).clamp(1, source.height());
        Ok(Self {
            scale,
            sample: IntensitySample::new(given),
            channels,
            next: 0,
            read: zeros(row_len * rows, "rows of the image")?,
            pending: 0..0,
            row: zeros(product(&[width, channels], "a row of the image")?, "a row of the image")?,
            source,
        })
    }

    fn next(&mut self) -> Result<&[f32]> {
        let given = self.source.channels();
        let row_len = self.source.width() * given;
        if self.pending.is_empty() {
            let rows = (self.read.len() / row_len).min(self.source.height() - self.next);
            self.read_rows(self.next..self.next + rows, rows * row_len)?;
            self.pending = 0..rows;
        }
        let row = &self.read[self.pending.start * row_len..][..row_len];
        self.pending.start += 1;
        self.next += 1;
        convert_channels(row, given, &mut self.row, self.channels);
        Ok(&self.row)
    }

    fn read_rows(&mut self, rows: Range<usize>, len: usize) -> Result<()> {
        let (first, width) = (rows.start, self.source.width());
        let values = &mut self.read[..len];
        if let (Some(scale), Some(stored)) = (&self.scale, self.source.stored()) {
            stored.read_stored(rows, values)?;
            self.sample.add(values);
            return scale.apply(values, first, width);
        }
        self.source.read_rows(rows, values)?;
        if let Some(bad) = values.iter().position(|value| !value.is_finite()) {
            let pixel = bad / self.source.channels();
            let (row, column) = (first + pixel / width, pixel % width);
            return Err(Error::Image(format!("the value at row {row}, column {column} is not a number")));
        }
        Ok(())
    }
}

/// Cuts the windows of a grid out of an image. It holds as many rows as a window has, however tall the image.
pub(super) struct Cutter<'a> {
    reader: Reader<'a>,
    resampler: Resampler,
    window: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Row y of the scaled image at `y % held`.
    rows: Vec<f32>,
    held: usize,
    /// Rows before this one were read.
    read: usize,
}

impl<'a> Cutter<'a> {
    /// Cuts windows of `grid`, which covers the image at `scale`, with `channels` channels, whose values are scaled by
    /// `intensities`.
    pub(super) fn new(
        source: &'a mut dyn ImageSource,
        intensities: Option<IntensityScale>,
        grid: &WindowGrid,
        scale: f64,
        channels: usize,
    ) -> Result<Self> {
        let from = (source.height(), source.width());
        let to = (grid.height(), grid.width());
        let held = grid.window().min(grid.height());
        let len = product(&[held, grid.width(), channels], "a band of the image")?;
        Ok(Self {
            reader: Reader::new(source, intensities, channels)?,
            resampler: Resampler::new(from, to, 1.0 / scale, channels, Filter::AreaOrBilinear)?,
            window: grid.window(),
            height: grid.height(),
            width: grid.width(),
            channels,
            rows: zeros(len, "a band of the image")?,
            held,
            read: 0,
        })
    }

    /// What is to be said about the values of the rows that were read, to a model that has `seen` others.
    pub(super) fn intensities(&self, seen: Option<&SeenIntensities>) -> IntensityReport {
        let Reader { scale, sample, .. } = &self.reader;
        scale.as_ref().map_or_else(IntensityReport::default, |scale| scale.report(sample, seen))
    }

    /// Writes the window `[window, window, channels]` at `position`, zeros where it leaves the image.
    ///
    /// Windows must be asked for by ascending row.
    pub(super) fn cut(&mut self, position: WindowPosition, out: &mut [f32]) -> Result<()> {
        let rows = inside(position.top, self.window, self.height);
        let columns = inside(position.left, self.window, self.width);
        let row_len = self.width * self.channels;
        while self.read < rows.end {
            let row = &mut self.rows[self.read % self.held * row_len..][..row_len];
            while !self.resampler.pull(row) {
                self.resampler.push(self.reader.next()?)?;
            }
            self.read += 1;
        }
        out.fill(0.0);
        for y in rows {
            let row = &self.rows[y % self.held * row_len..][..row_len];
            let pixels = &row[columns.start * self.channels..columns.end * self.channels];
            let start = offset(y, position.top) * self.window + offset(columns.start, position.left);
            out[start * self.channels..][..pixels.len()].copy_from_slice(pixels);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageView, PixelFormat};

    fn value(y: usize, x: usize) -> f32 {
        f32::from(((y * 7 + x * 3) % 256) as u8) / 127.5 - 1.0
    }

    fn grey(height: usize, width: usize) -> Vec<u8> {
        (0..height * width).map(|i| ((i / width * 7 + i % width * 3) % 256) as u8).collect()
    }

    #[test]
    fn windows_hold_the_image_and_zeros_around_it() {
        for (height, width) in [(1, 1), (7, 50), (50, 7), (41, 67)] {
            let data = grey(height, width);
            let mut view = ImageView::new(&data, width, height, PixelFormat::Grey8).unwrap();
            let grid = WindowGrid::new(height, width, 16, 0.25).unwrap();
            let mut cutter = Cutter::new(&mut view, None, &grid, 1.0, 3).unwrap();
            let mut window = vec![f32::NAN; 16 * 16 * 3];
            for position in grid.positions() {
                cutter.cut(position, &mut window).unwrap();
                for (i, got) in window.iter().enumerate() {
                    let y = position.top + (i / 48) as isize;
                    let x = position.left + (i / 3 % 16) as isize;
                    let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
                    let want = if inside { value(y as usize, x as usize) } else { 0.0 };
                    assert_eq!(*got, want, "{height} x {width}, {position:?}, {y}, {x}");
                }
            }
        }
    }

    #[test]
    fn colours_become_luminance_for_a_grey_model() {
        let mut view = ImageView::new(&[255, 0, 0, 0, 255, 0], 2, 1, PixelFormat::Rgb8).unwrap();
        let mut reader = Reader::new(&mut view, None, 1).unwrap();
        let row = reader.next().unwrap();
        assert!(
            (row[0] - (0.299 - 0.701)).abs() < 1e-6 && (row[1] - (0.587 - 0.413)).abs() < 1e-6,
            "{row:?}"
        );
    }

    #[test]
    fn other_channels_are_an_error() {
        let mut view = ImageView::new(&[255, 0, 0], 1, 1, PixelFormat::Rgb8).unwrap();
        let grid = WindowGrid::new(1, 1, 16, 0.25).unwrap();
        assert!(matches!(Cutter::new(&mut view, None, &grid, 1.0, 4), Err(Error::Image(_))));
    }

    #[test]
    fn a_source_that_delivers_nan_is_an_error() {
        struct Broken;
        impl ImageSource for Broken {
            fn width(&self) -> usize {
                4
            }
            fn height(&self) -> usize {
                3
            }
            fn channels(&self) -> usize {
                3
            }
            fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
                out.fill(0.0);
                if rows.contains(&2) {
                    out[out.len() - 1] = f32::NAN;
                }
                Ok(())
            }
        }
        let grid = WindowGrid::new(3, 4, 16, 0.25).unwrap();
        let mut source = Broken;
        let mut cutter = Cutter::new(&mut source, None, &grid, 1.0, 3).unwrap();
        let position = grid.positions().next().unwrap();
        let error = cutter.cut(position, &mut vec![0.0; 16 * 16 * 3]).unwrap_err();
        assert!(error.to_string().contains("row 2, column 3"), "{error}");
    }
}
