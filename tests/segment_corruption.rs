//! Masks and noise against reference values.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::model::{MaskRule, NoiseSchedule};
use mdm::segment::corruption::{alphas_cumprod, hidden_patches, hide, q_sample};
use support::{Golden, relative_error};

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
                let mask: Vec<f32> = noise
                    .chunks_exact(patches)
                    .flat_map(|noise| hide(noise, hidden))
                    .map(|hidden| f32::from(u8::from(hidden)))
                    .collect();
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
            q_sample(x, noise, schedules[used][t as usize]);
        }
        let error = relative_error(&x, &golden.f32("x_t").unwrap());
        assert!(error < 1e-6, "{}: x_t {error}", golden.name);
    }
}
