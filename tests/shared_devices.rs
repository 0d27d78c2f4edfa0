//! A CPU device and a weight cache that several callers share.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::engine::{Inputs, WeightCache};
use mdm::model::UnetConfig;
use mdm::plan::{Plan, PlanOptions};
use mdm::{Control, Device};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use support::{Seeded, image};

const SIDE: usize = 32;

fn features(device: &Device, width: usize, cache: &WeightCache) -> Vec<f32> {
    let config = UnetConfig {
        model_channels: width,
        num_head_channels: Some(32),
        image_size: SIDE,
        ..UnetConfig::mdm_paper()
    };
    let options = PlanOptions {
        batch: 1,
        height: SIDE,
        width: SIDE,
        timestep_slots: 1,
        corruption: None,
        blocks: vec![2],
        image: false,
        head: None,
    };
    let plan = Plan::new(&config, options).unwrap();
    let weights = Seeded::new(&plan, 1);
    let mut network = device.engine().prepare(plan.clone(), &weights, cache).unwrap();
    let window = image("window", 3 * SIDE * SIDE, 1);
    let inputs = Inputs { images: &[&window], timesteps: &[&[50.0]], classes: &[], noise: &[] };
    let mut result = Vec::new();
    network
        .run(&inputs, &Control::none(), &mut |_, values| {
            result = values.to_vec();
            Ok(())
        })
        .unwrap();
    result
}

#[test]
fn a_cache_tells_networks_of_other_shapes_apart() {
    let device = Device::cpu(Some(2)).unwrap();
    let own = |width| features(&device, width, &WeightCache::default());
    let shared = WeightCache::default();
    for width in [32, 64, 32] {
        assert_eq!(features(&device, width, &shared), own(width), "width {width}");
    }
}

#[test]
fn workers_of_a_host_share_a_device_and_a_cache() {
    let (device, shared) = (Device::cpu(Some(2)).unwrap(), WeightCache::default());
    let expected = features(&device, 32, &WeightCache::default());
    let host = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let all: Vec<_> =
        host.install(|| (0..8).into_par_iter().map(|_| features(&device, 32, &shared)).collect());
    assert!(all.iter().all(|one| *one == expected));
}
