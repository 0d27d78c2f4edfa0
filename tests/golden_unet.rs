//! The whole network against the golden files, on every instruction set and every GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::engine::{DeviceKind, Inputs, Precision, WeightCache};
use mdm::model::UnetConfig;
use mdm::plan::{Plan, PlanOptions};
use mdm::{Control, Device};
use support::{Golden, Seeded, bf16_cpu, channels_last, gpus, image, relative_error};

const TOLERANCE: f64 = 1e-5;

/// Activations and weights are rounded to 11 bits after every operation.
const F16_TOLERANCE: f64 = 1e-2;

/// Inputs and weights of some convolutions are rounded to 8 bits.
const BF16_TOLERANCE: f64 = 1e-2;

/// Smaller networks run on every instruction set, the largest on the best alone.
const LARGE: usize = 100;

fn check(golden: &Golden, device: &Device, set: &str, tolerance: f64) {
    let config: UnetConfig = serde_json::from_value(golden.meta["config"].clone()).unwrap();
    let timesteps: Vec<f32> = golden.i64("t").unwrap().into_iter().map(|t| t as f32).collect();
    let classes: Vec<u32> =
        golden.i64("y").map_or_else(Vec::new, |y| y.into_iter().map(|y| u32::try_from(y).unwrap()).collect());
    let (batch, channels) = (timesteps.len(), config.in_channels);
    let (height, width, x) = match golden.f32("x") {
        Some(x) => {
            let shape = golden.shape("x");
            (shape[2], shape[3], x)
        }
        None => {
            let size = config.image_size;
            (size, size, image("x", batch * channels * size * size, golden.salt()))
        }
    };
    let x = channels_last(&x, batch, channels, height * width);
    let options = PlanOptions {
        batch,
        height,
        width,
        timestep_slots: 1,
        corruption: None,
        blocks: (0..config.decoder_blocks()).collect(),
        image: true,
        head: None,
    };
    let plan = Plan::new(&config, options.clone()).unwrap();
    let weights = Seeded::new(&plan, golden.salt());
    let mut network = device.engine().prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
    let inputs = Inputs { images: &[&x], timesteps: &[&timesteps], classes: &classes, noise: &[] };
    let mut outputs = Vec::new();
    network
        .run(&inputs, &Control::none(), &mut |_, values| {
            outputs.push(values.to_vec());
            Ok(())
        })
        .unwrap();

    let mut compared = 0;
    for (index, values) in outputs.iter().enumerate() {
        let name =
            if index < options.blocks.len() { format!("output_blocks.{index}") } else { "out".to_owned() };
        let tensor = &plan.tensors[plan.outputs[index]];
        let (pixels, c) = (tensor.height * tensor.width, tensor.channels);
        let error = if let Some(expected) = golden.f32(&name) {
            relative_error(values, &channels_last(&expected, batch, c, pixels))
        } else if let Some(expected) = golden.f32(&format!("{name}.value")) {
            let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let expected_norm = f64::from(golden.f32(&format!("{name}.norm")).unwrap()[0]);
            assert!((norm / expected_norm - 1.0).abs() < tolerance, "{} {name}: norm {norm}", golden.name);
            let sampled: Vec<f32> = golden
                .i64(&format!("{name}.index"))
                .unwrap()
                .into_iter()
                .map(|at| {
                    let at = usize::try_from(at).unwrap();
                    let (sample, channel, pixel) = (at / (c * pixels), at / pixels % c, at % pixels);
                    values[(sample * pixels + pixel) * c + channel]
                })
                .collect();
            relative_error(&sampled, &expected)
        } else {
            continue;
        };
        println!("{set:10} {} {name}: {error:.2e}", golden.name);
        assert!(error < tolerance, "{} {name} on {set}: relative error {error:.2e}", golden.name);
        compared += 1;
    }
    assert!(compared > 0, "{} holds nothing to compare with", golden.name);
}

#[test]
fn networks_agree_with_the_golden_files() {
    for golden in Golden::all("unet_") {
        let devices = Device::cpu_instruction_sets(None).unwrap();
        let count = if is_large(&golden) { 1 } else { devices.len() };
        for device in &devices[..count] {
            check(&golden, device, device.info().instruction_set, TOLERANCE);
        }
    }
}

#[test]
fn networks_in_bf16_agree_with_the_golden_files() {
    let Some(device) = bf16_cpu(2) else { return println!("skipped: this processor has no bf16") };
    for golden in Golden::all("unet_") {
        check(&golden, &device, "bf16", BF16_TOLERANCE);
    }
}

/// The largest network takes minutes on a software adapter; `MDM_TEST_LARGE` runs it there too.
#[test]
fn networks_on_gpus_agree_with_the_golden_files() {
    let all = std::env::var_os("MDM_TEST_LARGE").is_some();
    for golden in Golden::all("unet_") {
        for (name, precision, device) in gpus() {
            if is_large(&golden) && device.info().kind == DeviceKind::SoftwareGpu && !all {
                println!("skipped: {} on {name}, see MDM_TEST_LARGE", golden.name);
                continue;
            }
            let tolerance = if *precision == Precision::F16 { F16_TOLERANCE } else { TOLERANCE };
            check(&golden, device, &format!("{name} {precision:?}"), tolerance);
        }
    }
}

fn is_large(golden: &Golden) -> bool {
    golden.meta["config"]["model_channels"].as_u64().unwrap() as usize > LARGE
}
