//! What is done to a window before the network sees it: patches are hidden or noise is added.

mod noise;

use std::f64::consts::FRAC_PI_2;

pub use noise::NoiseKey;

use crate::model::{MaskRule, NoiseSchedule};

/// How many of `patches` patches are hidden at `timestep` of `timesteps`.
pub fn hidden_patches(rule: MaskRule, timestep: u32, timesteps: u32, patches: usize) -> usize {
    // The rules are stated, and were run in training, as these very expressions in f64, whose roundings matter.
    let (t, all, n) = (f64::from(timestep), f64::from(timesteps), patches as f64);
    let hidden = match rule {
        MaskRule::Paper => (t / (all + 1.0) * n) as usize,
        MaskRule::Official => patches - ((n * (1.0 - t / all)) as usize).min(patches),
    };
    hidden.min(patches)
}

/// Which patches are hidden when `hidden` of them are, in no particular order: those with the largest `noise`, which is not
/// negative, the later of equals first. `order` is memory for it, one number a patch.
pub fn hide<'a>(noise: &[f32], hidden: usize, order: &'a mut [u32]) -> &'a [u32] {
    let hidden = hidden.min(order.len());
    let Some(last) = hidden.checked_sub(1) else { return &[] };
    order.iter_mut().zip(0..).for_each(|(patch, index)| *patch = index);
    let rank = |patch: u32| (noise[patch as usize].to_bits(), patch);
    order.select_nth_unstable_by_key(last, |&patch| std::cmp::Reverse(rank(patch)));
    &order[..hidden]
}

/// The cumulative products of alpha of a DDPM with `timesteps` steps.
pub fn alphas_cumprod(schedule: NoiseSchedule, timesteps: u32) -> Vec<f64> {
    let count = f64::from(timesteps);
    let beta = |step: u32| {
        let step = f64::from(step);
        match schedule {
            NoiseSchedule::Linear => {
                // Stated for a thousand steps and stretched for any other number.
                let scale = 1000.0 / count;
                let (first, last) = (scale * 1e-4, scale * 0.02);
                (first + (last - first) * step / (count - 1.0).max(1.0)).min(0.999)
            }
            NoiseSchedule::Cosine => {
                let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                (1.0 - alpha_bar((step + 1.0) / count) / alpha_bar(step / count)).min(0.999)
            }
        }
    };
    (0..timesteps)
        .scan(1.0, |product, step| {
            *product *= 1.0 - beta(step);
            Some(*product)
        })
        .collect()
}

/// What a noisy image has of the image and of the noise: the square roots of `alpha_cumprod` and of what it lacks to 1.
pub fn signal_and_spread(alpha_cumprod: f64) -> (f32, f32) {
    (alpha_cumprod.sqrt() as f32, (1.0 - alpha_cumprod).sqrt() as f32)
}

/// `signal * x + spread * noise`, in place.
pub fn q_sample(x: &mut [f32], noise: &[f32], (signal, spread): (f32, f32)) {
    for (x, noise) in x.iter_mut().zip(noise) {
        *x = signal * *x + spread * noise;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_are_hidden_and_the_later_of_equals(
            noise in prop::collection::vec(0u8..9, 0..50), hidden in 0usize..60
        ) {
            let noise: Vec<f32> = noise.into_iter().map(|value| f32::from(value) / 9.0).collect();
            let mut sorted: Vec<u32> = (0..noise.len() as u32).collect();
            sorted.sort_by(|&a, &b| noise[a as usize].total_cmp(&noise[b as usize]));
            let mut want: Vec<u32> = sorted.into_iter().rev().take(hidden).collect();
            let mut order = vec![0; noise.len()];
            let mut got = hide(&noise, hidden, &mut order).to_vec();
            want.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, want);
        }
    }
}
