//! Heads, and the norm of features that they divide by.

use mdm::plan::{Combine, HeadShape, Op, TensorId};
use proptest::prelude::*;

use crate::problem::{Map, Problem, cases};

fn check_head(batch: usize, sizes: &[(usize, usize)], (height, width): (usize, usize), shape: HeadShape) {
    let mut problem = Problem::new(batch);
    let HeadShape { heads, hidden, classes, normalise, uncertainty, .. } = shape;
    let sums: Vec<TensorId> = sizes.iter().map(|&(h, w)| problem.input(h, w, heads * hidden.0)).collect();
    let norm = normalise.then(|| problem.input(1, 1, 1));
    let (first_bias, b1) = problem.param(&[heads * hidden.0]);
    let (second, w2) = problem.param(&[heads, hidden.1, hidden.0]);
    let (second_bias, b2) = problem.param(&[heads * hidden.1]);
    let (third, w3) = problem.param(&[heads, classes, hidden.1]);
    let (third_bias, b3) = problem.param(&[heads * classes]);
    let maps: Vec<Map> = sums.iter().map(|&id| problem.values(id)).collect();
    let norms = norm.map(|id| {
        problem.given.last_mut().unwrap().1.iter_mut().for_each(|v| *v = v.abs() + 0.5);
        problem.values(id).values
    });
    let mut expected = Vec::new();
    for sample in 0..batch {
        for y in 0..height {
            for x in 0..width {
                let mut mean = vec![0.0; classes];
                let mut entropies = 0.0;
                for head in 0..heads {
                    let first: Vec<f64> = (0..hidden.0)
                        .map(|i| {
                            let c = head * hidden.0 + i;
                            let sum: f64 = maps
                                .iter()
                                .map(|map| bilinear(map, sample, (y, x), (height, width), c))
                                .sum();
                            (sum / norms.as_ref().map_or(1.0, |norms| norms[sample]) + b1[c]).max(0.0)
                        })
                        .collect();
                    let middle: Vec<f64> = (0..hidden.1)
                        .map(|i| {
                            let row = &w2[(head * hidden.1 + i) * hidden.0..][..hidden.0];
                            (row.iter().zip(&first).map(|(w, v)| w * v).sum::<f64>()
                                + b2[head * hidden.1 + i])
                                .max(0.0)
                        })
                        .collect();
                    let logits: Vec<f64> = (0..classes)
                        .map(|i| {
                            let row = &w3[(head * classes + i) * hidden.1..][..hidden.1];
                            row.iter().zip(&middle).map(|(w, v)| w * v).sum::<f64>() + b3[head * classes + i]
                        })
                        .collect();
                    let highest = logits.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = logits.iter().map(|l| (l - highest).exp()).sum();
                    let p: Vec<f64> = logits.iter().map(|l| (l - highest).exp() / total).collect();
                    entropies += entropy(&p) / heads as f64;
                    mean.iter_mut().zip(&p).for_each(|(mean, p)| *mean += p / heads as f64);
                }
                let disagreement = entropy(&mean) - entropies;
                expected.extend(mean);
                if uncertainty {
                    expected.push(disagreement);
                }
            }
        }
    }
    let output = problem.tensor(height, width, classes + usize::from(uncertainty));
    let params = [first_bias, second, second_bias, third, third_bias];
    problem.check(
        Op::Head { partial_sums: sums, feature_norm: norm, shape, params, output },
        &expected,
        5e-6,
    );
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter().map(|p| if *p > 0.0 { p * p.ln() } else { 0.0 }).sum::<f64>()
}

/// The map upsampled to `size`, align_corners = false.
fn bilinear(map: &Map, sample: usize, at: (usize, usize), size: (usize, usize), c: usize) -> f64 {
    let place = |at: usize, size: usize, from: usize| {
        let position = ((at as f64 + 0.5) * from as f64 / size as f64 - 0.5).max(0.0);
        let first = (position as usize).min(from - 1);
        (first as isize, (first + 1).min(from - 1) as isize, position - first as f64)
    };
    let (y0, y1, fy) = place(at.0, size.0, map.height);
    let (x0, x1, fx) = place(at.1, size.1, map.width);
    let row = |y: isize| map.at(sample, y, x0, c) * (1.0 - fx) + map.at(sample, y, x1, c) * fx;
    row(y0) * (1.0 - fy) + row(y1) * fy
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn feature_norm(batch in 1usize..3, scale in 1usize..4, side in 1usize..9, channels in 1usize..40) {
        let mut problem = Problem::new(batch);
        let (height, width) = (side * scale + 1, side * scale + 3);
        let blocks = vec![problem.input(side, side + 1, channels), problem.input(height, width, 3)];
        let mut squares = vec![0.0; batch];
        for &id in &blocks {
            let map = problem.values(id);
            for (sample, sum) in squares.iter_mut().enumerate() {
                for y in 0..height {
                    for x in 0..width {
                        for c in 0..map.channels {
                            *sum += bilinear(&map, sample, (y, x), (height, width), c).powi(2);
                        }
                    }
                }
            }
        }
        let expected: Vec<f64> = squares.into_iter().map(f64::sqrt).collect();
        let output = problem.tensor(1, 1, 1);
        problem.check(Op::FeatureNorm { blocks, size: (height, width), output }, &expected, 2e-6);
    }

    #[test]
    fn heads(
        batch in 1usize..3, side in 1usize..8, heads in 1usize..4, hidden in (1usize..50, 1usize..40), classes in 1usize..7,
        normalise in any::<bool>(), uncertainty in any::<bool>()
    ) {
        let (height, width) = (2 * side + 1, 3 * side);
        let sizes = [(side, side + 1), (height, width)];
        let shape = HeadShape { heads, hidden, classes, normalise, combine: Combine::Mean, uncertainty };
        check_head(batch, &sizes, (height, width), shape);
    }

    #[test]
    fn heads_of_patches(
        batch in 1usize..3, sizes in prop::collection::vec((1usize..20, 1usize..25), 1..6), height in 1usize..20,
        width in 1usize..40, heads in 1usize..4, hidden in (1usize..20, 1usize..80), classes in 1usize..11,
        normalise in any::<bool>(), uncertainty in any::<bool>()
    ) {
        let hidden = (4 * hidden.0, hidden.1);
        let shape = HeadShape { heads, hidden, classes, normalise, combine: Combine::Mean, uncertainty };
        check_head(batch, &sizes, (height, width), shape);
    }
}
