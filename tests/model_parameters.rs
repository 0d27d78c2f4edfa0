//! Names and shapes: the list of a configuration, the plan's demands and inference must agree.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use mdm::model::{BackboneOptions, Model, UnetConfig};
use mdm::plan::{Plan, PlanOptions};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use support::Golden;

fn configurations() -> impl Strategy<Value = UnetConfig> {
    let mult = prop::collection::vec(1usize..4, 1..5);
    (mult, 1usize..4, any::<[bool; 8]>(), 1usize..3, prop::option::of(1usize..5), 1usize..5).prop_map(
        |(channel_mult, num_res_blocks, flags, width, num_classes, in_channels)| UnetConfig {
            image_size: 256,
            in_channels,
            out_channels: if flags[0] { in_channels } else { 2 * in_channels },
            model_channels: 32 * width,
            num_res_blocks,
            attention_ds: (0..channel_mult.len())
                .filter(|&level| flags[1 + level])
                .map(|level| 1 << level)
                .collect(),
            num_heads: 1,
            num_head_channels: Some(32),
            use_scale_shift_norm: flags[6],
            // With one level nothing tells.
            resblock_updown: flags[7] && channel_mult.len() > 1,
            use_new_attention_order: false,
            num_classes,
            channel_mult,
        },
    )
}

/// A file of the right size whose values are a hole.
fn write_hollow(path: &Path, config: &UnetConfig) {
    let mut end = 0;
    let infos = config
        .parameters()
        .into_iter()
        .map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            (name, TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
        })
        .collect();
    let header = serde_json::to_vec(&Metadata::new(None, infos).unwrap()).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    std::fs::write(path, &bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_len((bytes.len() + end) as u64).unwrap();
}

fn needed(config: &UnetConfig) -> BTreeMap<String, Vec<usize>> {
    let size = config.deepest_downsampling().max(8);
    let options = PlanOptions {
        batch: 1,
        height: size,
        width: size,
        timestep_slots: 1,
        corruption: None,
        blocks: (0..config.decoder_blocks()).collect(),
        image: true,
        head: None,
    };
    Plan::new(config, options).unwrap().params.into_iter().map(|param| (param.name, param.shape)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn plan_needs_what_the_configuration_lists(config in configurations()) {
        prop_assert_eq!(needed(&config), config.parameters().into_iter().collect());
    }

    #[test]
    fn shapes_tell_the_configuration(config in configurations()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hollow.safetensors");
        write_hollow(&path, &config);
        let options = BackboneOptions { num_head_channels: Some(32), ..BackboneOptions::default() };
        let model = Model::open_with(&path, None, &options).unwrap();
        prop_assert_eq!(&model.metadata().unet, &config);
    }
}

#[test]
fn golden_configurations_are_inferred() {
    for golden in Golden::all("unet_") {
        let config: UnetConfig = serde_json::from_value(golden.meta["config"].clone()).unwrap();
        assert_eq!(needed(&config), config.parameters().into_iter().collect());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hollow.safetensors");
        write_hollow(&path, &config);
        let options = BackboneOptions {
            image_size: Some(config.image_size),
            num_heads: Some(config.num_heads),
            num_head_channels: config.num_head_channels,
            use_new_attention_order: Some(config.use_new_attention_order),
            ..BackboneOptions::default()
        };
        let model = Model::open_with(&path, None, &options).unwrap();
        assert_eq!(model.metadata().unet, config, "{}", golden.name);
    }
}

#[test]
fn the_papers_model_has_311_million_parameters() {
    assert_eq!((UnetConfig::mdm_paper().parameter_count() + 50_000) / 100_000, 3110);
}
