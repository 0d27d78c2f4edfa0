//! Pictures that a random backbone can tell apart.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;

use mdm::image::{ImageView, PixelFormat};
use mdm::model::{Corruption, FeatureConfig, MapWeights, Metadata, Model, UnetConfig};
use mdm::plan::{Plan, PlanOptions};
use mdm_train::fit::LabelledImage;

use crate::support::{uniform, weight};

/// Side of the windows.
pub(crate) const WINDOW: usize = 32;

/// A random one.
pub(crate) fn backbone(microns_per_pixel: Option<f64>) -> Model {
    let unet = UnetConfig {
        image_size: WINDOW,
        model_channels: 32,
        channel_mult: vec![1, 1],
        num_res_blocks: 1,
        attention_ds: vec![],
        num_head_channels: Some(32),
        ..UnetConfig::mdm_paper()
    };
    let blocks = vec![1, 2];
    let options = PlanOptions {
        batch: 1,
        height: WINDOW,
        width: WINDOW,
        timestep_slots: 1,
        corruption: None,
        blocks: blocks.clone(),
        image: true,
        head: None,
    };
    let mut weights = MapWeights::default();
    for param in Plan::new(&unet, options).unwrap().params {
        let values = weight(&param.name, &param.shape, 0);
        weights.insert(param.name, &param.shape, values);
    }
    let metadata = Metadata {
        corruption: Corruption { corrupt_features: false, ..Corruption::default() },
        features: FeatureConfig { timesteps: vec![50], blocks, normalise: false },
        window: WINDOW,
        overlap: 0.2,
        microns_per_pixel,
        ..Metadata::new(unet)
    };
    Model::from_parts(metadata, Arc::new(weights), Vec::new()).unwrap()
}

/// A grey image with bright discs on a dark, noisy ground, and where they are.
#[derive(Clone)]
pub(crate) struct Picture {
    pub(crate) name: String,
    pub(crate) pixels: Vec<u8>,
    pub(crate) labels: Vec<u8>,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Picture {
    pub(crate) fn new(name: &str, height: usize, width: usize) -> Self {
        let discs: Vec<f64> = uniform(name, 12, 7);
        let inside = |y: usize, x: usize| {
            discs.chunks_exact(2).any(|disc| {
                let (dy, dx) = (y as f64 - disc[0] * height as f64, x as f64 - disc[1] * width as f64);
                dy * dy + dx * dx < 49.0
            })
        };
        let labels: Vec<u8> =
            (0..height * width).map(|at| u8::from(inside(at / width, at % width))).collect();
        let noise = uniform(name, height * width, 8);
        let pixels =
            labels.iter().zip(noise).map(|(&label, noise)| 60 + 80 * label + (30.0 * noise) as u8).collect();
        Self { name: name.to_owned(), pixels, labels, height, width }
    }

    pub(crate) fn view(&self) -> ImageView<'_> {
        ImageView::new(&self.pixels, self.width, self.height, PixelFormat::Grey8).unwrap()
    }

    pub(crate) fn labelled(&self) -> LabelledImage<'_> {
        LabelledImage {
            name: (&self.name).into(),
            image: self.view(),
            labels: &self.labels,
            label_height: self.height,
            label_width: self.width,
        }
    }
}
