//! Operations of the time embedding.

use mdm::plan::Op;
use proptest::prelude::*;

use crate::problem::{Problem, cases, silu};

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn sinusoids(batch in 1usize..4, half in 1usize..100) {
        let mut problem = Problem::new(batch);
        let timesteps = problem.input(1, 1, 1);
        problem.given[0].1.iter_mut().enumerate().for_each(|(i, t)| *t = (50 + 317 * i) as f32);
        let t = problem.values(timesteps).values;
        let mut expected = Vec::new();
        for t in t {
            let angle = |k: usize| t * (-(10_000f64.ln()) * k as f64 / half as f64).exp();
            expected.extend((0..half).map(|k| angle(k).cos()));
            expected.extend((0..half).map(|k| angle(k).sin()));
        }
        let output = problem.tensor(1, 1, 2 * half);
        problem.check(Op::Sinusoid { timesteps, output }, &expected, 1e-6);
    }

    #[test]
    fn vectors(batch in 1usize..4, inputs in 1usize..90, outputs in 1usize..90, silu_first in any::<bool>()) {
        let mut problem = Problem::new(batch);
        let input = problem.input(1, 1, inputs);
        let (weight, weights) = problem.param(&[outputs, inputs]);
        let (bias, biases) = problem.param(&[outputs]);
        let x = problem.values(input);
        let mut expected = Vec::new();
        for sample in 0..batch {
            for out in 0..outputs {
                let products = (0..inputs).map(|i| {
                    let value = x.values[sample * inputs + i];
                    weights[out * inputs + i] * if silu_first { silu(value) } else { value }
                });
                expected.push(biases[out] + products.sum::<f64>());
            }
        }
        let output = problem.tensor(1, 1, outputs);
        problem.check(Op::Linear { input, silu: silu_first, weight, bias, label_embedding: None, output }, &expected, 3e-6);
    }
}
