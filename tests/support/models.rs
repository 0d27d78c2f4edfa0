//! A small model with weights generated from their names.

use std::sync::Arc;

use mdm::Result;
use mdm::model::{BatchNorm, Class, FeatureConfig, Head, Linear, MapWeights, Metadata, Model, UnetConfig};
use mdm::plan::{Plan, PlanOptions};

use super::weight;

pub(crate) const WINDOW: usize = 32;
pub(crate) const CLASSES: usize = 3;

pub(crate) fn unet() -> UnetConfig {
    UnetConfig {
        image_size: WINDOW,
        in_channels: 3,
        out_channels: 3,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        num_heads: 1,
        num_head_channels: Some(32),
        use_scale_shift_norm: true,
        resblock_updown: true,
        use_new_attention_order: false,
        num_classes: None,
    }
}

pub(crate) fn metadata() -> Metadata {
    let class = |name: &str| Class { name: name.to_owned(), colour: [1, 2, 3] };
    Metadata {
        features: FeatureConfig { timesteps: vec![50, 250], blocks: vec![0, 1, 2], normalise: false },
        window: WINDOW,
        overlap: 0.25,
        microns_per_pixel: Some(0.5),
        classes: ["background", "nucleus", "border"].map(class).to_vec(),
        heads: 2,
        ..Metadata::new(unet())
    }
}

pub(crate) fn head(channels: usize, classes: usize, salt: u64) -> Head {
    let linear = |name: &str, inputs, outputs| Linear {
        inputs,
        outputs,
        weight: weight(&format!("{name}.weight"), &[outputs, inputs], salt),
        bias: weight(&format!("{name}.bias"), &[outputs], salt),
    };
    let norm = |name: &str, width| BatchNorm {
        weight: weight(&format!("{name}.weight"), &[width], salt),
        bias: weight(&format!("{name}.bias"), &[width], salt),
        running_mean: weight(&format!("{name}.mean"), &[width], salt),
        running_var: weight(&format!("{name}.variance.weight"), &[width], salt),
    };
    Head {
        linear: [linear("a", channels, 24), linear("b", 24, 16), linear("c", 16, classes)],
        norm: [norm("d", 24), norm("e", 16)],
    }
}

pub(crate) fn model_of(metadata: Metadata, classes: usize) -> Result<Model> {
    changed_model(metadata, classes, |_, _| ())
}

/// Weights of convolutions with factors that they fit f16 with but not what they make, and factors beyond f32.
pub(crate) const OVERFLOWS: [(&str, f32, f32); 3] = [
    ("input_blocks.1.0.in_layers.2.weight", 2e5, 1e30),
    ("middle_block.1.qkv.weight", 2e5, 1e30),
    ("output_blocks.2.0.out_layers.3.weight", 2e5, 1e38),
];

/// The model with one weight of its backbone multiplied.
pub(crate) fn scaled_model(name: &str, scale: f32) -> Model {
    let multiply = |own: &str, values: &mut Vec<f32>| {
        if own == name {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    };
    changed_model(metadata(), CLASSES, multiply).unwrap()
}

fn changed_model(metadata: Metadata, classes: usize, change: impl Fn(&str, &mut Vec<f32>)) -> Result<Model> {
    let options = PlanOptions {
        batch: 1,
        height: WINDOW,
        width: WINDOW,
        timestep_slots: 1,
        corruption: None,
        blocks: (0..metadata.unet.decoder_blocks()).collect(),
        image: false,
        head: None,
    };
    let plan = Plan::new(&metadata.unet, options).unwrap();
    let mut backbone = MapWeights::default();
    for param in &plan.params {
        let mut values = weight(&param.name, &param.shape, 0);
        change(&param.name, &mut values);
        backbone.insert(&param.name, &param.shape, values);
    }
    let of_slot: usize =
        metadata.features.blocks.iter().map(|block| metadata.unet.block_shape(*block).0).sum();
    let channels = of_slot * metadata.features.timesteps.len();
    let heads = (0..metadata.heads as u64).map(|salt| head(channels, classes, salt)).collect();
    Model::from_parts(metadata, Arc::new(backbone), heads)
}

pub(crate) fn model(change: impl FnOnce(&mut Metadata)) -> Model {
    let mut metadata = metadata();
    change(&mut metadata);
    model_of(metadata, CLASSES).unwrap()
}
