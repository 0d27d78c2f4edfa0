//! Random decisions that follow from a seed and a number.

use mdm::corruption::NoiseKey;

// Timesteps, by which corruption draws, are smaller than any of these.
const DECISIONS: u32 = 1 << 31;
const ORDER: u32 = 2 << 30 | 1 << 29;
const PARAMETERS: u32 = 3 << 30;

/// What sample number `number` is corrupted by.
pub(crate) fn corruption(seed: u64, number: u64) -> NoiseKey {
    NoiseKey { seed, top: (number as u32).cast_signed(), left: ((number >> 32) as u32).cast_signed() }
}

/// Uniform numbers in [0, 1) for what is decided about sample `number` in its `attempt`th attempt.
pub(crate) fn decisions<const N: usize>(seed: u64, number: u64, attempt: u32) -> [f32; N] {
    let mut values = [0.0; N];
    corruption(seed, number).uniform(DECISIONS + attempt, &mut values);
    values
}

/// The order of `count` images in their `epoch`th round.
pub(crate) fn order(seed: u64, epoch: u64, count: usize) -> Vec<u32> {
    let mut keys = vec![0.0; count];
    corruption(seed, epoch).uniform(ORDER, &mut keys);
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by_key(|&index| (keys[index as usize].to_bits(), index));
    order
}

/// Uniform numbers in [-reach, reach) for parameter number `index`.
pub(crate) fn parameter(seed: u64, index: usize, reach: f32, out: &mut [f32]) {
    corruption(seed, index as u64).uniform(PARAMETERS, out);
    out.iter_mut().for_each(|value| *value = reach * (2.0 * *value - 1.0));
}

/// A whole number below `count`, from a uniform one.
pub(crate) fn below(uniform: f32, count: usize) -> usize {
    ((f64::from(uniform) * count as f64) as usize).min(count.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_image_in_another_order() {
        let (first, second) = (order(3, 0, 100), order(3, 1, 100));
        assert_ne!(first, second);
        assert_eq!(first, order(3, 0, 100));
        for mut order in [first, second] {
            order.sort_unstable();
            assert!(order.into_iter().eq(0..100));
        }
    }
}
