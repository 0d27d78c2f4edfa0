//! Masks and noise against reference values, and how plans make them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::corruption::{NoiseKey, alphas_cumprod, hidden_patches, hide, q_sample, signal_and_spread};
use mdm::engine::{Inputs, WeightCache};
use mdm::model::{Corruption, CorruptionKind, MaskRule, NoiseSchedule, UnetConfig};
use mdm::plan::{CorruptionOptions, Op, Plan, PlanOptions};
use mdm::{Control, Device};
use support::{Golden, Seeded, image, relative_error};

fn size(case: &serde_json::Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

#[test]
fn both_rules_hide_the_patches_of_the_reference() {
    for golden in Golden::all("masking") {
        for (number, case) in golden.meta["cases"].as_array().unwrap().iter().enumerate() {
            let patches = size(case, "patches");
            let patch = size(case, "patch");
            assert_eq!(patches, (size(case, "height") / patch) * (size(case, "width") / patch));
            let noise = golden.f32(&format!("{number}.noise")).unwrap();
            for (rule, name) in [(MaskRule::Paper, "paper"), (MaskRule::Official, "official")] {
                let hidden = hidden_patches(rule, size(case, "t") as u32, size(case, "T") as u32, patches);
                let mut mask = vec![0.0; noise.len()];
                for (noise, mask) in noise.chunks_exact(patches).zip(mask.chunks_exact_mut(patches)) {
                    for &patch in hide(noise, hidden, &mut vec![0; patches]) {
                        mask[patch as usize] = 1.0;
                    }
                }
                assert_eq!(
                    mask,
                    golden.f32(&format!("{number}.{name}.mask")).unwrap(),
                    "{} {case} {name}",
                    golden.name
                );
            }
        }
    }
}

#[test]
fn schedules_and_noisy_images_are_those_of_the_reference() {
    for golden in Golden::all("ddpm_q_sample") {
        let timesteps = size(&golden.meta, "T") as u32;
        let schedules = [NoiseSchedule::Linear, NoiseSchedule::Cosine].map(|s| alphas_cumprod(s, timesteps));
        let names = ["linear", "cosine"];
        for (schedule, name) in schedules.iter().zip(names) {
            let got: Vec<f32> = schedule.iter().map(|value| *value as f32).collect();
            let error = relative_error(&got, &golden.f32(&format!("alphas_cumprod_{name}")).unwrap());
            assert!(error < 1e-6, "{}: {name} {error}", golden.name);
        }
        let used = names.iter().position(|name| golden.meta["schedule"] == *name).unwrap();
        let (mut x, noise, t) =
            (golden.f32("x0").unwrap(), golden.f32("noise").unwrap(), golden.i64("t").unwrap());
        let sample = x.len() / t.len();
        for ((x, noise), t) in x.chunks_exact_mut(sample).zip(noise.chunks_exact(sample)).zip(t) {
            q_sample(x, noise, signal_and_spread(schedules[used][t as usize]));
        }
        let error = relative_error(&x, &golden.f32("x_t").unwrap());
        assert!(error < 1e-6, "{}: x_t {error}", golden.name);
    }
}

const WINDOW: usize = 16;

fn plan(kind: CorruptionKind, timesteps: &[u32]) -> mdm::Result<Plan> {
    let process = Corruption { kind, timesteps: 1000, corrupt_features: true };
    plan_of(Some(CorruptionOptions { process, timesteps: timesteps.to_vec() }), 2)
}

fn plan_of(corruption: Option<CorruptionOptions>, timestep_slots: usize) -> mdm::Result<Plan> {
    let config = UnetConfig {
        image_size: WINDOW,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        num_head_channels: Some(16),
        ..UnetConfig::mdm_paper()
    };
    let options = PlanOptions {
        batch: 2,
        height: WINDOW,
        width: WINDOW,
        timestep_slots,
        corruption,
        blocks: vec![0, 2],
        image: false,
        head: None,
    };
    Plan::new(&config, options)
}

const MASK: CorruptionKind = CorruptionKind::Mask { patch: 5, rule: MaskRule::Paper };
const NOISE: CorruptionKind = CorruptionKind::Gaussian { schedule: NoiseSchedule::Cosine };

#[test]
fn timesteps_out_of_range_are_errors() {
    assert!(plan(MASK, &[0, 1000]).is_ok());
    assert!(plan(MASK, &[0, 1001]).is_err());
    assert!(plan(CorruptionKind::Mask { patch: 5, rule: MaskRule::Official }, &[0, 1000]).is_err());
    assert!(plan(NOISE, &[0, 999]).is_ok());
    assert!(plan(NOISE, &[0, 1000]).is_err());
    assert!(plan(NOISE, &[0]).is_err(), "as many as slots");
    assert!(plan(CorruptionKind::Mask { patch: 0, rule: MaskRule::Paper }, &[0, 0]).is_err());
    let process = Corruption { timesteps: 0, ..Corruption::default() };
    assert!(plan_of(Some(CorruptionOptions { process, timesteps: vec![0, 0] }), 2).is_err());
}

#[test]
fn every_slot_sees_the_image_corrupted_at_its_timestep() {
    let keys = [3, 4].map(|left| NoiseKey { seed: 1, top: 0, left });
    let x = image("x", 2 * WINDOW * WINDOW * 3, 0);
    let times = [[300.0; 2], [700.0; 2]];
    for kind in [MASK, NOISE] {
        let whole = plan(kind, &[300, 700]).unwrap();
        assert_eq!(whole.images.len(), 1);
        let outputs = run(&whole, &x, &[&times[0], &times[1]], &keys).unwrap();
        assert!(run(&whole, &x, &[&times[0], &times[1]], &[]).is_err(), "noise keys are missing");
        let clean = plan_of(None, 1).unwrap();
        assert!(run(&clean, &x, &[&times[0]], &keys).is_err(), "noise keys are not used");
        let corruptions = whole.ops.iter().filter(|op| matches!(op, Op::Mask { .. } | Op::AddNoise { .. }));
        let mut slots = 0;
        for ((op, times), outputs) in corruptions.zip(&times).zip(outputs.chunks_exact(2)) {
            let seen = corrupted(op.clone(), &whole, &x, &keys);
            assert!(run(&clean, &seen, &[times], &[]).unwrap() == outputs, "{op:?}");
            slots += 1;
        }
        assert_eq!(slots, 2);
        assert!(run(&clean, &x, &[&times[0]], &[]).unwrap() != outputs[..2]);
    }
}

/// What `op`, an operation of `plan` on its image, makes of `x`.
fn corrupted(op: Op, plan: &Plan, x: &[f32], keys: &[NoiseKey]) -> Vec<f32> {
    let outputs = vec![op.output()];
    let (tensors, images) = (plan.tensors.clone(), plan.images.clone());
    let alone =
        Plan::assemble(plan.config.clone(), 2, tensors, plan.params.clone(), vec![op], images, outputs);
    run(&alone.unwrap(), x, &[], keys).unwrap().remove(0)
}

fn run(plan: &Plan, x: &[f32], timesteps: &[&[f32]], noise: &[NoiseKey]) -> mdm::Result<Vec<Vec<f32>>> {
    let device = Device::cpu(Some(2)).unwrap();
    let weights = Seeded::new(plan, 0);
    let mut network = device.engine().prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
    let inputs = Inputs { images: &[x], timesteps, classes: &[], noise };
    let mut outputs = Vec::new();
    let mut read = |_: usize, values: &[f32]| {
        outputs.push(values.to_vec());
        Ok(())
    };
    network.run(&inputs, &Control::none(), &mut read)?;
    Ok(outputs)
}
