//! Runs a network on every window of an image.

use super::cut::Cutter;
use super::rescale::{Scaling, scale_between, scaled_side};
use super::window::{WindowGrid, WindowPosition};
use crate::corruption::NoiseKey;
use crate::engine::{DeviceKind, Inputs, Network};
use crate::image::ImageSource;
use crate::intensity::{IntensityRange, IntensityReport};
use crate::memory::{product, reserve, zeros};
use crate::model::{FeatureConfig, Layered, MapWeights, Metadata, Model, WeightSource};
use crate::plan::{CorruptionOptions, HEAD_PREFIX, HeadShape, Plan, PlanOptions};
use crate::{Control, Device, Error, Result};

/// Windows at a time where nobody says otherwise: one on the host, whose cores share the work of a window; on a GPU enough
/// to fill it, and to make its weights and its calls worth their while.
pub fn default_batch(kind: DeviceKind) -> usize {
    match kind {
        DeviceKind::Cpu | DeviceKind::SoftwareGpu => 1,
        DeviceKind::DiscreteGpu
        | DeviceKind::IntegratedGpu
        | DeviceKind::VirtualGpu
        | DeviceKind::OtherGpu => 16,
    }
}

/// What segmentation and feature extraction have in common.
pub(super) struct Settings {
    pub(super) microns_per_pixel: Option<f64>,
    pub(super) range: Option<IntensityRange>,
    pub(super) batch: Option<usize>,
    pub(super) window: Option<usize>,
    pub(super) overlap: Option<f64>,
    pub(super) seed: u64,
    pub(super) corrupt: Option<bool>,
    pub(super) class: u32,
    pub(super) features: FeatureConfig,
}

/// How an image was brought to the model's scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaled {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) scale: f64,
    pub(super) scaling: Scaling,
}

/// Is given the network and its inputs for a batch of windows, with their positions, and runs it.
pub(super) type RunBatch<'a> =
    dyn FnMut(&mut dyn Network, &Inputs<'_>, &Control<'_>, &[WindowPosition]) -> Result<()> + 'a;

/// A network, and how images are given to it.
pub(super) struct SlidingNetwork {
    model: Model,
    device: Device,
    head: Option<(HeadShape, MapWeights)>,
    settings: Settings,
    window: usize,
    overlap: f64,
    corrupt: bool,
    /// Windows at a time.
    batch: usize,
    full: Option<Box<dyn Network>>,
    /// For the windows that are left over when an image's number of windows is no multiple of the batch.
    rest: Option<Box<dyn Network>>,
    /// A batch of windows.
    images: Vec<f32>,
    /// For each of the features' timesteps, one a window.
    timesteps: Vec<Vec<f32>>,
    classes: Vec<u32>,
    noise: Vec<NoiseKey>,
}

impl SlidingNetwork {
    /// `head` is called once the settings were found to fit the backbone.
    pub(super) fn new(
        model: &Model,
        device: &Device,
        settings: Settings,
        head: impl FnOnce(&Settings) -> Result<Option<(HeadShape, MapWeights)>>,
    ) -> Result<Self> {
        let metadata = model.metadata();
        let unet = &metadata.unet;
        metadata.validate()?;
        settings.features.validate(unet, &metadata.corruption)?;
        if let Some(range) = &settings.range {
            range.validate()?;
        }
        if settings.batch == Some(0) {
            return Err(Error::invalid("batch", "must be at least one window"));
        }
        if unet.num_classes.is_some_and(|classes| settings.class as usize >= classes) {
            return Err(Error::invalid("class", format!("the backbone has no class {}", settings.class)));
        }
        let asked = settings.window.unwrap_or(metadata.window);
        if asked == 0 || asked > Metadata::LARGEST_WINDOW {
            return Err(Error::invalid(
                "window",
                format!("{asked} pixels; 1 to {} are possible", Metadata::LARGEST_WINDOW),
            ));
        }
        let corrupt = settings.corrupt.unwrap_or(metadata.corruption.corrupt_features);
        let window = asked.next_multiple_of(unet.deepest_downsampling());
        let overlap = settings.overlap.unwrap_or(metadata.overlap);
        WindowGrid::new(1, 1, window, overlap)?;
        model.backbone()?;
        let head = head(&settings)?;
        let slots = settings.features.timesteps.len();
        Ok(Self {
            model: model.clone(),
            device: device.clone(),
            head,
            window,
            overlap,
            corrupt,
            batch: settings.batch.unwrap_or_else(|| default_batch(device.info().kind)),
            full: None,
            rest: None,
            images: Vec::new(),
            timesteps: vec![Vec::new(); slots],
            classes: Vec::new(),
            noise: Vec::new(),
            settings,
        })
    }

    /// Side of a window in scaled pixels.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Windows that are run at a time.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn features(&self) -> &FeatureConfig {
        &self.settings.features
    }

    /// How stored values become what the network sees.
    pub(super) fn range(&self) -> &IntensityRange {
        self.settings.range.as_ref().unwrap_or(&self.model.metadata().intensity_range)
    }

    /// Size at the model's scale of an image of `height` x `width` pixels.
    pub(super) fn scaled(&self, height: usize, width: usize, microns: Option<f64>) -> Result<Scaled> {
        crate::image::check_size(width, height)?;
        let microns = self.settings.microns_per_pixel.or(microns);
        let (scale, scaling) = scale_between(microns, self.model.metadata().microns_per_pixel)?;
        Ok(Scaled { height: scaled_side(height, scale)?, width: scaled_side(width, scale)?, scale, scaling })
    }

    /// The windows of an image of that size.
    pub(super) fn grid(&self, scaled: &Scaled) -> Result<WindowGrid> {
        WindowGrid::new(scaled.height, scaled.width, self.window, self.overlap)
    }

    /// Has `run` run the network on all windows of `source`, whose size at the model's scale is `scaled`, batch by batch and
    /// row by row.
    ///
    /// Where the device has no memory for a batch, smaller ones are tried.
    pub(super) fn run(
        &mut self,
        source: &mut dyn ImageSource,
        scaled: &Scaled,
        control: &Control<'_>,
        run: &mut RunBatch<'_>,
    ) -> Result<IntensityReport> {
        let grid = self.grid(scaled)?;
        self.run_at(source, scaled, &grid, (grid.positions(), grid.count()), control, run)
    }

    /// [`run`](Self::run) on some windows of the image's grid, given in the grid's order with their number.
    pub(super) fn run_at(
        &mut self,
        source: &mut dyn ImageSource,
        scaled: &Scaled,
        grid: &WindowGrid,
        (mut positions, total): (impl Iterator<Item = WindowPosition>, usize),
        control: &Control<'_>,
        run: &mut RunBatch<'_>,
    ) -> Result<IntensityReport> {
        control.check()?;
        control.report(0, total as u64);
        let channels = self.model.metadata().unet.in_channels;
        let window_len = product(&[self.window, self.window, channels], "a window")?;
        let intensities = self.range().scale(source)?;
        let mut cutter = Cutter::new(source, intensities, grid, scaled.scale, channels)?;
        let mut batch = Vec::new();
        let mut done = 0;
        while done < total {
            let size = self.batch.min(total - done);
            match self.prepare(size) {
                Err(Error::OutOfMemory(_)) if size > 1 => {
                    self.batch = size.div_ceil(2);
                    continue;
                }
                result => result?,
            }
            batch.clear();
            reserve(&mut batch, size, "windows of a batch")?;
            batch.extend(positions.by_ref().take(size));
            self.fill(&mut cutter, &batch, window_len)?;
            control.check()?;
            let network = if size == self.batch { &mut self.full } else { &mut self.rest };
            let Some(network) = network else {
                return Err(Error::invalid("batch", "has no network"));
            };
            let timesteps: Vec<&[f32]> = self.timesteps.iter().map(Vec::as_slice).collect();
            let inputs = Inputs {
                images: &[&self.images],
                timesteps: &timesteps,
                classes: &self.classes,
                noise: &self.noise,
            };
            if let Err(error) = run(&mut **network, &inputs, &control.quiet(), &batch) {
                if matches!(error, Error::DeviceLost(_)) {
                    // They went with the device; the next call makes others.
                    (self.full, self.rest) = (None, None);
                }
                return Err(error);
            }
            done += size;
            control.report(done as u64, total as u64);
        }
        Ok(cutter.intensities(self.model.metadata().intensities_seen.as_ref()))
    }

    /// Cuts a batch of windows into the network's inputs.
    fn fill(&mut self, cutter: &mut Cutter<'_>, batch: &[WindowPosition], window_len: usize) -> Result<()> {
        let len = product(&[batch.len(), window_len], "a batch of windows")?;
        if self.images.len() != len {
            self.images = zeros(len, "a batch of windows")?;
        }
        for (window, position) in self.images.chunks_exact_mut(window_len).zip(batch) {
            cutter.cut(*position, window)?;
        }
        for (timesteps, &timestep) in self.timesteps.iter_mut().zip(&self.settings.features.timesteps) {
            timesteps.clear();
            timesteps.resize(batch.len(), timestep as f32);
        }
        let conditional = self.model.metadata().unet.num_classes.is_some();
        self.classes.clear();
        self.classes.resize(if conditional { batch.len() } else { 0 }, self.settings.class);
        self.noise.clear();
        if self.corrupt {
            let seed = self.settings.seed;
            // Sides of images are at most 2^30.
            self.noise.extend(batch.iter().map(|position| NoiseKey {
                seed,
                top: position.top as i32,
                left: position.left as i32,
            }));
        }
        Ok(())
    }

    /// Makes the network for batches of `size` windows unless it is there.
    fn prepare(&mut self, size: usize) -> Result<()> {
        let slot = if size == self.batch { &mut self.full } else { &mut self.rest };
        let of_use = |network: &dyn Network| network.plan().options.batch == size && !network.is_lost();
        if slot.as_deref().is_some_and(of_use) {
            return Ok(());
        }
        // Its memory is free before the new one's is taken.
        *slot = None;
        let backbone = self.model.backbone()?;
        let Metadata { unet, corruption, .. } = self.model.metadata();
        let timesteps = &self.settings.features.timesteps;
        let corruption = self
            .corrupt
            .then(|| CorruptionOptions { process: corruption.clone(), timesteps: timesteps.clone() });
        let options = PlanOptions {
            batch: size,
            height: self.window,
            width: self.window,
            timestep_slots: timesteps.len(),
            corruption,
            blocks: self.settings.features.blocks.clone(),
            image: false,
            head: self.head.as_ref().map(|(shape, _)| *shape),
        };
        let plan = Plan::new(unet, options)?;
        let layered;
        let weights: &dyn WeightSource = match &self.head {
            Some((_, head)) => {
                layered = Layered { prefix: HEAD_PREFIX, first: head, second: backbone };
                &layered
            }
            None => backbone,
        };
        *slot = Some(self.device.engine().prepare(plan, weights, self.model.weight_cache())?);
        Ok(())
    }
}
