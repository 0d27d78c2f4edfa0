//! Random numbers that are a function of where they are used, not of when.

use std::f64::consts::TAU;

/// What the random numbers of one window follow from: Philox 4x32-10 (Salmon et al. 2011) with the seed as its key and
/// `[block, top, left, timestep]` as its counter, which gives a block of four numbers. Nothing depends on the order or the
/// batch in which windows are processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    /// The same seed gives the same numbers.
    pub seed: u64,
    /// First row of the window in the scaled image.
    pub top: i32,
    /// First column of the window in the scaled image.
    pub left: i32,
}

impl NoiseKey {
    /// Fills `out` with uniform numbers in [0, 1), multiples of 2^-24: the upper 24 of each 32 random bits.
    pub fn uniform(&self, timestep: u32, out: &mut [f32]) {
        for (index, out) in out.chunks_mut(4).enumerate() {
            let values = self.block(timestep, index).map(|bits| (bits >> 8) as f32 / (1 << 24) as f32);
            out.copy_from_slice(&values[..out.len()]);
        }
    }

    /// Fills `out` with normally distributed numbers of mean 0 and variance 1, from block `first` of four numbers on.
    ///
    /// Box and Muller's transform turns two numbers of 32 random bits, `u` and `v` in units of 2^32 with half a unit added,
    /// into `sqrt(-2 ln u)` times the cosine, then the sine, of `2 pi v`.
    pub fn normal(&self, timestep: u32, first: usize, out: &mut [f32]) {
        // Never 0, whose logarithm is infinite.
        let unit = |bits: u32| (f64::from(bits) + 0.5) / 4_294_967_296.0;
        for (index, out) in out.chunks_mut(4).enumerate() {
            let [a, b, c, d] = self.block(timestep, first + index).map(unit);
            let mut values = [0.0; 4];
            for (pair, (u, v)) in values.chunks_exact_mut(2).zip([(a, b), (c, d)]) {
                let radius = (-2.0 * u.ln()).sqrt();
                pair.copy_from_slice(&[(radius * (TAU * v).cos()) as f32, (radius * (TAU * v).sin()) as f32]);
            }
            out.copy_from_slice(&values[..out.len()]);
        }
    }

    /// Four numbers of 32 random bits. The index of a block is below 2^32 for every window that fits into memory.
    fn block(&self, timestep: u32, index: usize) -> [u32; 4] {
        philox(
            [index as u32, self.top.cast_unsigned(), self.left.cast_unsigned(), timestep],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let a = MULTIPLIERS[0] * u64::from(counter[0]);
        let b = MULTIPLIERS[1] * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox(counter, key), want);
        }
    }

    #[test]
    fn normal_numbers_have_the_moments_of_a_normal_distribution() {
        let key = NoiseKey { seed: 7, top: 204, left: -3 };
        let mut values = vec![0.0; 100_001];
        key.normal(50, 0, &mut values);
        let count = values.len() as f64;
        let moment = |power| values.iter().map(|v| f64::from(*v).powi(power)).sum::<f64>() / count;
        for (power, want, tolerance) in [(1, 0.0, 0.02), (2, 1.0, 0.03), (3, 0.0, 0.05), (4, 3.0, 0.15)] {
            assert!((moment(power) - want).abs() < tolerance, "moment {power}: {}", moment(power));
        }
    }

    #[test]
    fn normal_numbers_start_at_any_block() {
        let key = NoiseKey { seed: 7, top: 204, left: -3 };
        let (mut all, mut end) = ([0.0; 30], [0.0; 18]);
        key.normal(50, 0, &mut all);
        key.normal(50, 3, &mut end);
        assert_eq!(all[12..], end);
    }

    #[test]
    fn every_part_of_a_position_matters() {
        let base = NoiseKey { seed: 7, top: 204, left: 408 };
        let mut values = [0.0; 8];
        base.uniform(50, &mut values);
        for (other, timestep) in [
            (NoiseKey { seed: 8, ..base }, 50),
            (NoiseKey { seed: 7 + (1 << 32), ..base }, 50),
            (base, 51),
            (NoiseKey { top: 205, ..base }, 50),
            (NoiseKey { left: 204, top: 408, ..base }, 50),
        ] {
            let mut others = [0.0; 8];
            other.uniform(timestep, &mut others);
            assert_ne!(values, others, "{other:?} {timestep}");
        }
    }
}
