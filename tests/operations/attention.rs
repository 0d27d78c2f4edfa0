//! Attention.

use mdm::plan::Op;
use proptest::prelude::*;

use crate::problem::{Problem, cases};

fn check_attention(
    batch: usize,
    (height, width): (usize, usize),
    heads: usize,
    per_head: usize,
    qkv_first: bool,
) {
    let mut problem = Problem::new(batch);
    let (channels, pixels) = (heads * per_head, height * width);
    let qkv = problem.input(height, width, 3 * channels);
    // Scores of some size, so that the softmax is not flat.
    problem.given[0].1.iter_mut().for_each(|v| *v *= 3.0);
    let x = problem.values(qkv);
    let value = |sample: usize, pixel: usize, role: usize, head: usize, c: usize| {
        let channel =
            if qkv_first { role * channels + head * per_head + c } else { (head * 3 + role) * per_head + c };
        x.values[(sample * pixels + pixel) * 3 * channels + channel]
    };
    let mut expected = vec![0.0; batch * pixels * channels];
    for sample in 0..batch {
        for head in 0..heads {
            for query in 0..pixels {
                let scores: Vec<f64> = (0..pixels)
                    .map(|key| {
                        let products = (0..per_head)
                            .map(|c| value(sample, query, 0, head, c) * value(sample, key, 1, head, c));
                        products.sum::<f64>() / (per_head as f64).sqrt()
                    })
                    .collect();
                let highest = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                for c in 0..per_head {
                    let mixed = scores
                        .iter()
                        .enumerate()
                        .map(|(key, s)| (s - highest).exp() / sum * value(sample, key, 2, head, c));
                    expected[(sample * pixels + query) * channels + head * per_head + c] = mixed.sum();
                }
            }
        }
    }
    let output = problem.tensor(height, width, channels);
    problem.check(Op::Attention { qkv, heads, qkv_first, output }, &expected, 5e-6);
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn attention(
        batch in 1usize..3, height in 1usize..14, width in 1usize..14, heads in 1usize..4, per_head in 1usize..70,
        qkv_first in any::<bool>()
    ) {
        check_attention(batch, (height, width), heads, per_head, qkv_first);
    }

    #[test]
    fn attention_on_matrix_units(
        batch in 1usize..3, height in 1usize..14, width in 1usize..21, heads in 1usize..4, per_head in 1usize..17,
        qkv_first in any::<bool>()
    ) {
        check_attention(batch, (height, width), heads, 8 * per_head, qkv_first);
    }
}
