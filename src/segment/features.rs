//! What a backbone sees in an image: a pixel's features.

use super::sliding::{Scaled, Settings, SlidingNetwork};
use super::window::{WindowGrid, WindowPosition};
use crate::image::{ImageSource, ImageView};
use crate::intensity::IntensityRange;
use crate::memory::{product, reserve};
use crate::model::{FeatureConfig, Model};
use crate::{Control, Device, Error, Result};

/// How features are taken.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct FeatureOptions {
    /// Size of an image's pixel in micrometres; `None` believes the image.
    pub microns_per_pixel: Option<f64>,
    /// How stored values become what the network sees; `None` takes the model's.
    pub range: Option<IntensityRange>,
    /// Windows that go through the network at a time, at least 1; `None` takes what suits the device, as far as its memory
    /// goes. More cost memory and may be faster; results are the same.
    pub batch: Option<usize>,
    /// Side of a window in pixels at the model's scale, rounded up to what the network can divide; `None` takes the model's.
    pub window: Option<usize>,
    /// Part of a window shared with its neighbour, in [0, 1); `None` takes the model's.
    pub overlap: Option<f64>,
    /// Decides which patches are hidden, or the noise that is added.
    pub seed: u64,
    /// Whether windows are corrupted before the network sees them; `None` does as the model says.
    pub corrupt: Option<bool>,
    /// Class that a class-conditional backbone is told; others ignore it.
    pub class: u32,
    /// Which activations are the features; `None` takes the model's.
    pub features: Option<FeatureConfig>,
}

/// Extracts features of images with one backbone on one device.
///
/// It keeps the network's memory from image to image. It belongs to one thread at a time; several may exist, and those
/// made from one [`Model`] share its weights.
pub struct Features {
    network: SlidingNetwork,
    /// Height, width and channels of each map of a window, slot-major.
    shapes: Vec<(usize, usize, usize)>,
}

impl Features {
    /// Checks the options; memory for the network is taken with the first image.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the model has no backbone or contradicts itself, or if an option is out of range.
    pub fn new(model: &Model, device: &Device, options: FeatureOptions) -> Result<Self> {
        let settings = Settings {
            microns_per_pixel: options.microns_per_pixel,
            range: options.range,
            batch: options.batch,
            window: options.window,
            overlap: options.overlap,
            seed: options.seed,
            corrupt: options.corrupt,
            class: options.class,
            features: options.features.unwrap_or_else(|| model.metadata().features.clone()),
        };
        let network = SlidingNetwork::new(model, device, settings, |_| Ok(None))?;
        let side = network.window();
        let features = network.features();
        let of_block = |block: &usize| {
            let (channels, factor) = model.metadata().unet.block_shape(*block);
            (side / factor, side / factor, channels)
        };
        let shapes = features.timesteps.iter().flat_map(|_| features.blocks.iter().map(of_block)).collect();
        Ok(Self { network, shapes })
    }

    /// Features of a pixel.
    pub fn channels(&self) -> usize {
        self.shapes.iter().map(|(_, _, channels)| channels).sum()
    }

    /// Which activations are the features.
    pub fn config(&self) -> &FeatureConfig {
        self.network.features()
    }

    /// How stored values become what the network sees.
    pub fn range(&self) -> &IntensityRange {
        self.network.range()
    }

    /// Side of a window in pixels at the model's scale.
    pub fn window(&self) -> usize {
        self.network.window()
    }

    /// The windows that an image is cut into, at the model's scale.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a scale that cannot be.
    pub fn grid(&self, image: &dyn ImageSource) -> Result<WindowGrid> {
        self.network.grid(&self.network.scaled(image.height(), image.width(), image.microns_per_pixel())?)
    }

    /// Height and width of an image at the model's scale, where features are taken.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a scale that cannot be.
    pub fn scaled_size(&self, image: &ImageView<'_>) -> Result<(usize, usize)> {
        let Scaled { height, width, .. } =
            self.network.scaled(image.height(), image.width(), image.microns_per_pixel())?;
        Ok((height, width))
    }

    /// Pixels at the model's scale per pixel of the image, along a side: the centre of row y at the model's scale lies at
    /// (y + 0.5) / scale rows of the image, counted from its upper edge; likewise for columns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a scale that cannot be.
    pub fn scale(&self, image: &ImageView<'_>) -> Result<f64> {
        Ok(self.network.scaled(image.height(), image.width(), image.microns_per_pixel())?.scale)
    }

    /// Hands the features of all windows of an image in memory to `visit`, row by row.
    ///
    /// # Errors
    /// [`Error::Image`] for an image that cannot be used, [`Error::Invalid`] for a scale that cannot be,
    /// [`Error::OutOfMemory`], [`Error::Cancelled`], and errors of `visit`.
    pub fn extract(
        &mut self,
        image: &ImageView<'_>,
        control: &Control<'_>,
        visit: &mut dyn FnMut(WindowFeatures) -> Result<()>,
    ) -> Result<()> {
        self.extract_from(&mut image.clone(), control, visit)
    }

    /// [`extract`](Self::extract) from an image that is read as it is needed.
    ///
    /// # Errors
    /// As `extract`, and those of `source`.
    pub fn extract_from(
        &mut self,
        source: &mut dyn ImageSource,
        control: &Control<'_>,
        visit: &mut dyn FnMut(WindowFeatures) -> Result<()>,
    ) -> Result<()> {
        let scaled = self.network.scaled(source.height(), source.width(), source.microns_per_pixel())?;
        let grid = self.network.grid(&scaled)?;
        self.visit_at(source, &scaled, &grid, (grid.positions(), grid.count()), control, visit)
    }

    /// [`extract_from`](Self::extract_from) of those windows only that are `wanted`.
    ///
    /// # Errors
    /// As `extract_from`.
    pub fn extract_some(
        &mut self,
        source: &mut dyn ImageSource,
        wanted: &dyn Fn(WindowPosition) -> bool,
        control: &Control<'_>,
        visit: &mut dyn FnMut(WindowFeatures) -> Result<()>,
    ) -> Result<()> {
        let scaled = self.network.scaled(source.height(), source.width(), source.microns_per_pixel())?;
        let grid = self.network.grid(&scaled)?;
        let positions = || grid.positions().filter(|position| wanted(*position));
        self.visit_at(source, &scaled, &grid, (positions(), positions().count()), control, visit)
    }

    fn visit_at(
        &mut self,
        source: &mut dyn ImageSource,
        scaled: &Scaled,
        grid: &WindowGrid,
        positions: (impl Iterator<Item = WindowPosition>, usize),
        control: &Control<'_>,
        visit: &mut dyn FnMut(WindowFeatures) -> Result<()>,
    ) -> Result<()> {
        let window = self.network.window();
        let normalise = self.network.features().normalise;
        let shapes = &self.shapes;
        self.network.run_at(
            source,
            scaled,
            grid,
            positions,
            control,
            &mut |network, inputs, control, batch| {
                let empty = |position: &WindowPosition| WindowFeatures::empty(*position, window, shapes);
                let mut windows: Vec<WindowFeatures> = batch.iter().map(empty).collect();
                network.run(inputs, control, &mut |output, values| {
                    let len = values.len() / batch.len();
                    let maps = windows.iter_mut().map(|features| &mut features.maps[output]);
                    maps.zip(values.chunks_exact(len)).try_for_each(|(map, values)| map.fill(values))
                })?;
                for mut features in windows {
                    if normalise {
                        features.set_norm();
                    }
                    visit(features)?;
                }
                Ok(())
            },
        )?;
        Ok(())
    }
}

/// Features of one window, each decoder block at its own resolution.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowFeatures {
    /// First row of the window in the scaled image; negative where an image smaller than the window is padded.
    pub top: isize,
    /// First column of the window in the scaled image; likewise.
    pub left: isize,
    /// Rows of the window in scaled pixels.
    pub height: usize,
    /// Columns of the window in scaled pixels.
    pub width: usize,
    /// A map for each timestep and block, timesteps outermost, in the order of their channels in a pixel's features.
    pub maps: Vec<FeatureMap>,
    /// What features are divided by: the Frobenius norm of the window's upsampled, concatenated features where the model
    /// normalises, otherwise 1.
    pub norm: f32,
}

/// The output of a decoder block for one window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureMap {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// `[height, width, channels]`.
    pub data: Vec<f32>,
}

impl FeatureMap {
    fn fill(&mut self, values: &[f32]) -> Result<()> {
        if values.len() != product(&[self.height, self.width, self.channels], "a feature map")? {
            return Err(Error::invalid(
                "plan",
                format!(
                    "{} values for a feature map of {} x {} x {}",
                    values.len(),
                    self.height,
                    self.width,
                    self.channels
                ),
            ));
        }
        self.data.clear();
        reserve(&mut self.data, values.len(), "values of a feature map")?;
        self.data.extend_from_slice(values);
        Ok(())
    }

    fn pixel(&self, y: usize, x: usize) -> &[f32] {
        &self.data[(y * self.width + x) * self.channels..][..self.channels]
    }

    /// Sum of the squares of the map's values once it is upsampled to `height` x `width`.
    ///
    /// Upsampling is a linear map U along each side, so that the sum is a quadratic form of the map itself with U'U, which
    /// is tridiagonal, along each side.
    fn upsampled_square_sum(&self, height: usize, width: usize) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let rows = gram(self.height, height);
        let columns = gram(self.width, width);
        let row_product = |a: usize, b: usize| -> f64 {
            let pixel = |x: usize| columns[x].0 * dot(self.pixel(a, x), self.pixel(b, x));
            let pair = |x: usize| {
                columns[x].1
                    * (dot(self.pixel(a, x), self.pixel(b, x + 1))
                        + dot(self.pixel(a, x + 1), self.pixel(b, x)))
            };
            (0..self.width).map(pixel).sum::<f64>() + (0..self.width - 1).map(pair).sum::<f64>()
        };
        let own = (0..self.height).map(|y| rows[y].0 * row_product(y, y)).sum::<f64>();
        own + (0..self.height - 1).map(|y| 2.0 * rows[y].1 * row_product(y, y + 1)).sum::<f64>()
    }
}

/// U'U of bilinear upsampling: for each old pixel its diagonal entry and that with the next pixel.
fn gram(from: usize, to: usize) -> Vec<(f64, f64)> {
    let mut gram = vec![(0.0, 0.0); from];
    for i in 0..to {
        let (first, fraction) = between(i, from, to);
        let (near, far) = (1.0 - f64::from(fraction), f64::from(fraction));
        gram[first].0 += near * near;
        gram[first].1 += near * far;
        if far > 0.0 {
            gram[first + 1].0 += far * far;
        }
    }
    gram
}

/// Pixel `i` of `to` lies `fraction` of the way from the pixel of `from` that is returned to the next; 0 at the last.
fn between(i: usize, from: usize, to: usize) -> (usize, f32) {
    let position = ((i as f32 + 0.5) * (from as f32 / to as f32) - 0.5).clamp(0.0, (from - 1) as f32);
    (position as usize, position.fract())
}

impl WindowFeatures {
    fn empty(position: WindowPosition, window: usize, shapes: &[(usize, usize, usize)]) -> Self {
        let maps = shapes
            .iter()
            .map(|&(height, width, channels)| FeatureMap { height, width, channels, data: Vec::new() })
            .collect();
        Self { top: position.top, left: position.left, height: window, width: window, maps, norm: 1.0 }
    }

    fn set_norm(&mut self) {
        let sum: f64 = self.maps.iter().map(|map| map.upsampled_square_sum(self.height, self.width)).sum();
        // Features that are all zero stay so.
        self.norm = (sum.sqrt() as f32).max(f32::MIN_POSITIVE);
    }

    /// Features of a pixel.
    pub fn channels(&self) -> usize {
        self.maps.iter().map(|map| map.channels).sum()
    }

    /// Writes the features of the window's pixel (`y`, `x`) to `out`: maps interpolated bilinearly (align_corners = false),
    /// concatenated and divided by the norm.
    ///
    /// # Panics
    /// If the pixel is not in the window, or `out` is not as long as there are channels.
    pub fn pixel(&self, y: usize, x: usize, out: &mut [f32]) {
        assert!(y < self.height && x < self.width, "pixel {y}, {x} of {} x {}", self.height, self.width);
        assert_eq!(out.len(), self.channels(), "features of a pixel");
        let mut rest = out;
        for map in &self.maps {
            let (out, others) = rest.split_at_mut(map.channels);
            rest = others;
            let (top, down) = between(y, map.height, self.height);
            let (left, right) = between(x, map.width, self.width);
            let (bottom, end) = ((top + 1).min(map.height - 1), (left + 1).min(map.width - 1));
            let corners = [
                (map.pixel(top, left), (1.0 - down) * (1.0 - right) / self.norm),
                (map.pixel(top, end), (1.0 - down) * right / self.norm),
                (map.pixel(bottom, left), down * (1.0 - right) / self.norm),
                (map.pixel(bottom, end), down * right / self.norm),
            ];
            let [(a, wa), (b, wb), (c, wc), (d, wd)] = corners;
            for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *out = a * wa + b * wb + c * wc + d * wd;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(height: usize, width: usize, channels: usize) -> FeatureMap {
        let data = (0..height * width * channels).map(|i| (i as f32 * 1.3).sin()).collect();
        FeatureMap { height, width, channels, data }
    }

    proptest! {
        #[test]
        fn the_norm_is_that_of_the_upsampled_features(
            sides in (1usize..9, 1usize..9), factor in 1usize..5, channels in 1usize..5
        ) {
            let (height, width) = (sides.0 * factor, sides.1 * factor);
            let maps = vec![map(sides.0, sides.1, channels), map(height, width, 2), map(1, 1, 1)];
            let mut features = WindowFeatures { top: 0, left: 0, height, width, maps, norm: 1.0 };
            let mut pixel = vec![0.0; features.channels()];
            let mut square_sum = |features: &WindowFeatures| {
                let mut sum = 0.0;
                for y in 0..height {
                    for x in 0..width {
                        features.pixel(y, x, &mut pixel);
                        sum += pixel.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                    }
                }
                sum
            };
            let norm = square_sum(&features).sqrt();
            features.set_norm();
            prop_assert!((f64::from(features.norm) - norm).abs() <= 1e-5 * norm);
            prop_assert!((square_sum(&features) - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn features_that_are_all_zero_stay_zero() {
        let maps = vec![FeatureMap { height: 2, width: 2, channels: 1, data: vec![0.0; 4] }];
        let mut features = WindowFeatures { top: 0, left: 0, height: 8, width: 8, maps, norm: 1.0 };
        features.set_norm();
        let mut pixel = [f32::NAN];
        features.pixel(3, 3, &mut pixel);
        assert_eq!(pixel, [0.0]);
    }
}
