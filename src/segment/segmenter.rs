//! Images in, label images out.

use std::time::Instant;

use super::band::{Band, BandContent, BandWriter};
use super::blend::Blender;
use super::head::{fold_heads, head_shape};
use super::rescale::Scaling;
use super::sliding::{Settings, SlidingNetwork};
use crate::engine::DeviceInfo;
use crate::image::{ImageSource, ImageView};
use crate::intensity::{IntensityRange, IntensityReport};
use crate::memory::{product, zeros};
use crate::model::{Metadata, Model};
use crate::plan::Combine;
use crate::{Control, Device, Error, Result};

/// How images are segmented.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentOptions {
    /// Size of an image's pixel in micrometres; `None` believes the image.
    pub microns_per_pixel: Option<f64>,
    /// How stored values become what the network sees; `None` takes the model's, and gives the best results for images like those
    /// that it was fitted on.
    pub range: Option<IntensityRange>,
    /// Windows that go through the network at a time, at least 1; `None` takes what suits the device, as far as its memory
    /// goes. More cost memory and may be faster; results are the same.
    pub batch: Option<usize>,
    /// Side of a window in pixels at the model's scale, rounded up to what the network can divide; `None` takes the model's.
    pub window: Option<usize>,
    /// Part of a window shared with its neighbour, in [0, 1); `None` takes the model's.
    pub overlap: Option<f64>,
    /// How an ensemble becomes one answer.
    pub combine: Combine,
    /// Whether class probabilities are wanted, 4 bytes a pixel and class.
    pub probabilities: bool,
    /// Whether the heads' disagreement is wanted, 4 bytes a pixel.
    pub uncertainty: bool,
    /// Decides which patches are hidden, or the noise that is added.
    pub seed: u64,
    /// Whether windows are corrupted before the network sees them; `None` does as the model says.
    pub corrupt: Option<bool>,
    /// Class that a class-conditional backbone is told, the same as when its heads were fitted; others ignore it.
    pub class: u32,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self {
            microns_per_pixel: None,
            range: None,
            batch: None,
            window: None,
            overlap: None,
            combine: Combine::Mean,
            probabilities: false,
            uncertainty: false,
            seed: 0,
            corrupt: None,
            class: 0,
        }
    }
}

/// What is said where probabilities are not finite.
fn not_finite(device: &DeviceInfo) -> &'static str {
    if device.precision == "f16" {
        "are not finite: values of the network overflowed in f16; open the device in f32 (--precision f32)"
    } else {
        "are not finite: values of the network overflowed; its weights do not suit it or the image"
    }
}

/// How a segmentation went.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// Windows that went through the network.
    pub windows: usize,
    /// Pixels that the network saw per pixel of the image, along a side.
    pub scale: f64,
    /// Why that scale.
    pub scaling: Scaling,
    /// Rows that the network saw.
    pub scaled_height: usize,
    /// Columns that the network saw.
    pub scaled_width: usize,
    /// How stored values became what the network saw, and what looks wrong about them.
    pub intensities: IntensityReport,
    /// Wall-clock time.
    pub seconds: f64,
}

/// A segmented image.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmentation {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`: the index of the most probable class, the first of equals.
    pub labels: Vec<u8>,
    /// `[height, width, classes]`, where asked for. They add up to 1.
    pub probabilities: Option<Vec<f32>>,
    /// `[height, width]`, where asked for: how much the heads disagree, in nats (entropy of their mean minus mean of
    /// their entropies).
    pub uncertainty: Option<Vec<f32>>,
    /// How it went.
    pub report: RunReport,
}

/// Segments images with one model on one device.
///
/// It keeps the network's memory from image to image. It belongs to one thread at a time; several may exist, and those
/// made from one [`Model`] share its weights.
pub struct Segmenter {
    network: SlidingNetwork,
    content: BandContent,
}

impl Segmenter {
    /// Checks the model and the options; memory for the network is taken with the first image.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the model has no heads, no backbone, more than 255 classes or contradicts itself, or if an option
    /// is out of range.
    pub fn new(model: &Model, device: &Device, options: SegmentOptions) -> Result<Self> {
        let features = model.metadata().features.clone();
        let shape = head_shape(model.heads(), features.normalise, options.combine, options.uncertainty)?;
        if shape.classes > Metadata::MOST_CLASSES {
            return Err(Error::invalid(
                "model",
                format!("has {} classes; a label image can hold {}", shape.classes, Metadata::MOST_CLASSES),
            ));
        }
        let settings = Settings {
            microns_per_pixel: options.microns_per_pixel,
            range: options.range,
            batch: options.batch,
            window: options.window,
            overlap: options.overlap,
            seed: options.seed,
            corrupt: options.corrupt,
            class: options.class,
            features,
        };
        let head = |settings: &Settings| {
            let groups = model.metadata().unet.feature_groups(&settings.features.blocks);
            let channels: Vec<usize> = groups.into_iter().map(|(_, channels)| channels).collect();
            let weights = fold_heads(model.heads(), settings.features.timesteps.len(), &channels)?;
            Ok(Some((shape, weights)))
        };
        let network = SlidingNetwork::new(model, device, settings, head)?;
        let content = BandContent {
            classes: shape.classes,
            probabilities: options.probabilities,
            uncertainty: options.uncertainty,
        };
        Ok(Self { network, content })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.content.classes
    }

    /// Side of a window in pixels at the model's scale.
    pub fn window(&self) -> usize {
        self.network.window()
    }

    /// Segments an image in memory. Beside the image and the result it takes the network's memory and a band of rows.
    ///
    /// # Errors
    /// [`Error::Image`] for an image that cannot be used, [`Error::Invalid`] for a scale that cannot be,
    /// [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub fn segment(&mut self, image: &ImageView<'_>, control: &Control<'_>) -> Result<Segmentation> {
        let (height, width) = (image.height(), image.width());
        let BandContent { classes, probabilities, uncertainty } = self.content;
        let result = |wanted: bool, values| {
            let len = product(&[height, width, values], "the result")?;
            if wanted { zeros(len, "the result").map(Some) } else { Ok(None) }
        };
        let mut labels = zeros(product(&[height, width], "the result")?, "the result")?;
        let mut probabilities: Option<Vec<f32>> = result(probabilities, classes)?;
        let mut uncertainty: Option<Vec<f32>> = result(uncertainty, 1)?;
        let mut copy = |band: Band<'_>| {
            let start = band.top * width;
            labels[start..][..band.labels.len()].copy_from_slice(band.labels);
            if let (Some(all), Some(band)) = (&mut probabilities, band.probabilities) {
                all[start * classes..][..band.len()].copy_from_slice(band);
            }
            if let (Some(all), Some(band)) = (&mut uncertainty, band.uncertainty) {
                all[start..][..band.len()].copy_from_slice(band);
            }
            Ok(())
        };
        let report = self.segment_bands(&mut image.clone(), &mut copy, control)?;
        Ok(Segmentation { width, height, labels, probabilities, uncertainty, report })
    }

    /// Segments an image that is read as it is needed, and hands out the result from top to bottom as soon as it is there.
    /// Memory does not depend on the image's height.
    ///
    /// # Errors
    /// As [`segment`](Self::segment), and those of `source` and `sink`.
    pub fn segment_bands(
        &mut self,
        source: &mut dyn ImageSource,
        sink: &mut dyn FnMut(Band<'_>) -> Result<()>,
        control: &Control<'_>,
    ) -> Result<RunReport> {
        let began = Instant::now();
        let (height, width) = (source.height(), source.width());
        let scaled = self.network.scaled(height, width, source.microns_per_pixel())?;
        let grid = self.network.grid(&scaled)?;
        let channels = self.content.classes + usize::from(self.content.uncertainty);
        let mut blender = Blender::on(self.network.device().engine(), &grid, channels, self.network.batch())?;
        let mut writer = BandWriter::new(
            (scaled.height, scaled.width),
            (height, width),
            scaled.scale,
            self.content,
            not_finite(self.network.device().info()),
            sink,
        )?;
        let intensities =
            self.network.run(source, &scaled, control, &mut |network, inputs, control, batch| {
                blender.add_run(network, inputs, control, batch, &mut |row| writer.push(row))
            })?;
        blender.finish(&mut |row| writer.push(row))?;
        writer.finish()?;
        Ok(RunReport {
            windows: grid.count(),
            scale: scaled.scale,
            scaling: scaled.scaling,
            scaled_height: scaled.height,
            scaled_width: scaled.width,
            intensities,
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}
