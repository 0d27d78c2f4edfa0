//! What corrupts windows.

use mdm::plan::Op;
use proptest::prelude::*;

use crate::problem::{Problem, cases};
use crate::support::noise::{normal, uniform};

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn mask(
        batch in 1usize..4, height in 1usize..40, width in 1usize..40, channels in 1usize..5, patch in 1usize..12,
        share in 0f64..=1.0, timestep in 0u32..1001, seed in any::<u32>()
    ) {
        let mut problem = Problem::new(batch);
        let image = problem.input(height, width, channels);
        problem.draw_noise(u64::from(seed) << 16);
        let (rows, columns) = (height.div_ceil(patch), width.div_ceil(patch));
        let patches = rows * columns;
        let hidden = (share * patches as f64).round() as usize;
        let mut expected = problem.values(image).values;
        for sample in 0..batch {
            let noise: Vec<f64> = (0..patches).map(|i| uniform(problem.noise[sample], timestep, i)).collect();
            for i in 0..patches {
                let larger = (0..patches).filter(|&j| noise[j] > noise[i] || (noise[j] == noise[i] && j > i));
                if larger.count() >= hidden {
                    continue;
                }
                for (y, x) in (0..patch * patch).map(|p| (i / columns * patch + p / patch, i % columns * patch + p % patch)) {
                    if y < height && x < width {
                        expected[((sample * height + y) * width + x) * channels..][..channels].fill(0.0);
                    }
                }
            }
        }
        let output = problem.tensor(height, width, channels);
        problem.check(Op::Mask { image, patch, hidden, timestep, output }, &expected, 1e-9);
    }

    #[test]
    fn added_noise(
        batch in 1usize..4, height in 1usize..40, width in 1usize..40, channels in 1usize..5,
        signal in 0f32..1.0, timestep in 0u32..1000, seed in any::<u32>()
    ) {
        let mut problem = Problem::new(batch);
        let image = problem.input(height, width, channels);
        problem.draw_noise(u64::from(seed) << 16);
        let spread = (1.0 - signal * signal).sqrt();
        let mut expected = problem.values(image).values;
        for (sample, values) in expected.chunks_exact_mut(height * width * channels).enumerate() {
            for (i, value) in values.iter_mut().enumerate() {
                *value = f64::from(signal) * *value + f64::from(spread) * normal(problem.noise[sample], timestep, i);
            }
        }
        let output = problem.tensor(height, width, channels);
        problem.check(Op::AddNoise { image, signal, spread, timestep, output }, &expected, 1e-6);
    }
}
