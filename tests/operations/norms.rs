//! Group norm: moments, its coefficients, and both beside the convolution that reads them.

use mdm::plan::{Conv, Norm, Op, Resample, Source, TensorId};
use proptest::prelude::*;

use crate::problem::{Map, Problem, cases, read};

fn check_small_norm(
    batch: usize,
    (height, width): (usize, usize),
    parts: &[usize],
    averaged: bool,
    silu: bool,
    modulated: bool,
) {
    const OUTPUTS: usize = 8;
    let mut problem = Problem::new(batch);
    let channels: usize = parts.iter().sum();
    let parts: Vec<TensorId> = parts.iter().map(|&own| problem.input(height, width, own)).collect();
    let resample = if averaged { Resample::AverageDown } else { Resample::None };
    let x = read(&problem, &Source { parts: parts.clone(), norm: None, resample: Resample::None });
    let (norm_weight, factors) = problem.param(&[channels]);
    let (norm_bias, summands) = problem.param(&[channels]);
    let scale_shift = modulated.then(|| problem.input(1, 1, 2 * channels));
    let modulation = scale_shift.map(|id| problem.values(id).values);
    let (weight, weights) = problem.param(&[OUTPUTS, channels, 1, 1]);

    let members = channels / 32;
    let mut normalised = x;
    for sample in 0..batch {
        let moments = moments_of(&normalised, sample, height * width);
        for c in 0..channels {
            let group = &moments[c / members * members..][..members];
            let mean = group.iter().map(|own| own.0).sum::<f64>() / members as f64;
            let variance =
                group.iter().map(|own| own.1 + (own.0 - mean).powi(2)).sum::<f64>() / members as f64;
            let mut scale = factors[c] / (variance + 1e-5).sqrt();
            let mut shift = summands[c] - mean * scale;
            if let Some(modulation) = &modulation {
                let own = &modulation[sample * 2 * channels..];
                scale *= 1.0 + own[c];
                shift = shift * (1.0 + own[c]) + own[channels + c];
            }
            for pixel in 0..height * width {
                let value = &mut normalised.values[(sample * height * width + pixel) * channels + c];
                *value = *value * scale + shift;
                if silu {
                    *value /= 1.0 + (-*value).exp();
                }
            }
        }
    }
    let (out_height, out_width) = if averaged { (height / 2, width / 2) } else { (height, width) };
    let mut expected = Vec::new();
    for sample in 0..batch {
        for (y, x) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y as isize, x as isize))) {
            let at = |c: usize| {
                if !averaged {
                    return normalised.at(sample, y, x, c);
                }
                let taps = [(0, 0), (0, 1), (1, 0), (1, 1)];
                taps.iter().map(|(i, j)| normalised.at(sample, 2 * y + i, 2 * x + j, c)).sum::<f64>() / 4.0
            };
            let pixel: Vec<f64> = (0..channels).map(at).collect();
            expected.extend(
                weights.chunks(channels).map(|row| row.iter().zip(&pixel).map(|(w, x)| w * x).sum::<f64>()),
            );
        }
    }

    let mut ops = Vec::new();
    let mut moments = Vec::new();
    for &input in &parts {
        let output = problem.tensor(1, 1, 2 * problem.tensors[input].channels);
        ops.push(Op::Moments { input, output });
        moments.push(output);
    }
    let coefficients = problem.tensor(1, 1, 2 * channels);
    ops.push(Op::NormCoefficients {
        moments,
        weight: norm_weight,
        bias: norm_bias,
        scale_shift,
        output: coefficients,
    });
    let output = problem.tensor(out_height, out_width, OUTPUTS);
    let source = Source { parts, norm: Some(Norm { coefficients, silu }), resample };
    ops.push(Op::Conv(Conv {
        source,
        weight,
        bias: None,
        sample_bias: None,
        residual: None,
        kernel: 1,
        stride: 1,
        output,
    }));
    problem.check_last(ops, &expected, 1e-5);
}

/// Mean and biased variance of each channel of a sample.
fn moments_of(x: &Map, sample: usize, pixels: usize) -> Vec<(f64, f64)> {
    let of_channel = |c: usize| {
        let values = || (0..pixels).map(|p| x.values[(sample * pixels + p) * x.channels + c]);
        let mean = values().sum::<f64>() / pixels as f64;
        (mean, values().map(|v| (v - mean).powi(2)).sum::<f64>() / pixels as f64)
    };
    (0..x.channels).map(of_channel).collect()
}

fn check_moments(batch: usize, height: usize, width: usize, channels: usize) {
    let mut problem = Problem::new(batch);
    let input = problem.input(height, width, channels);
    let x = problem.values(input);
    let mut expected = Vec::new();
    for sample in 0..batch {
        let (means, variances): (Vec<f64>, Vec<f64>) =
            moments_of(&x, sample, height * width).into_iter().unzip();
        expected.extend(means);
        expected.extend(variances);
    }
    let output = problem.tensor(1, 1, 2 * channels);
    problem.check(Op::Moments { input, output }, &expected, 2e-6);
}

#[test]
fn moments_of_large_maps() {
    check_moments(1, 200, 191, 64);
    check_moments(2, 190, 200, 36);
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn moments(batch in 1usize..3, height in 1usize..40, width in 1usize..40, channels in 1usize..150) {
        check_moments(batch, height, width, channels);
    }

    #[test]
    fn moments_in_fours(batch in 1usize..3, height in 1usize..40, width in 1usize..40, packs in 1usize..40) {
        check_moments(batch, height, width, 4 * packs);
    }

    /// Moments and coefficients that one convolution reads, which a GPU computes in the call that writes its input.
    #[test]
    fn norms_of_small_maps(
        batch in 1usize..3, half_height in 1usize..17, half_width in 2usize..17, members in 1usize..7, cut in 0usize..8,
        averaged in any::<bool>(), silu in any::<bool>(), modulated in any::<bool>(),
    ) {
        let (height, width) = (2 * half_height, 2 * half_width);
        let channels = 32 * members;
        let parts = if cut == 0 { vec![channels] } else { vec![4 * cut * members, channels - 4 * cut * members] };
        check_small_norm(batch, (height, width), &parts, averaged, silu, modulated);
    }

    /// Moments that are computed for the norm alone: of one tensor, of the first of two, of both.
    #[test]
    fn norms(
        batch in 1usize..3, height in 1usize..20, width in 1usize..20, parts in prop::collection::vec(1usize..4, 1..3),
        given in any::<bool>(),
    ) {
        let mut problem = Problem::new(batch);
        let pixels = height * width;
        let channels: usize = parts.iter().map(|n| 32 * n).sum();
        let inputs: Vec<TensorId> = parts.iter().map(|n| problem.input(height, width, 32 * n)).collect();
        let (weight, weights) = problem.param(&[channels]);
        let (bias, biases) = problem.param(&[channels]);
        let (mut ops, mut moments, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        for (index, &input) in inputs.iter().enumerate() {
            let x = problem.values(input);
            let own: Vec<(f64, f64)> = (0..batch).flat_map(|sample| moments_of(&x, sample, pixels)).collect();
            if index == 1 && given {
                let id = problem.input(1, 1, 2 * x.channels);
                let rows = own.chunks(x.channels);
                let values = rows.flat_map(|row| row.iter().map(|own| own.0).chain(row.iter().map(|own| own.1)));
                problem.given.last_mut().unwrap().1 = values.map(|v| v as f32).collect();
                moments.push(id);
            } else {
                let output = problem.tensor(1, 1, 2 * x.channels);
                ops.push(Op::Moments { input, output });
                moments.push(output);
            }
            columns.push(own);
        }
        let mut expected = Vec::new();
        for sample in 0..batch {
            let all: Vec<(f64, f64)> = columns.iter().zip(&parts)
                .flat_map(|(own, n)| own[sample * 32 * n..][..32 * n].to_vec()).collect();
            let members = channels / 32;
            let (mut scales, mut shifts) = (Vec::new(), Vec::new());
            for c in 0..channels {
                let group = &all[c / members * members..][..members];
                let mean = group.iter().map(|own| own.0).sum::<f64>() / members as f64;
                let variance = group.iter().map(|own| own.1 + (own.0 - mean).powi(2)).sum::<f64>() / members as f64;
                let scale = weights[c] / (variance + 1e-5).sqrt();
                scales.push(scale);
                shifts.push(biases[c] - mean * scale);
            }
            expected.extend(scales);
            expected.extend(shifts);
        }
        let output = problem.tensor(1, 1, 2 * channels);
        // Tiny images have tiny variances, which magnify errors.
        let tolerance = if pixels < 4 { 1e-3 } else { 1e-5 };
        ops.push(Op::NormCoefficients { moments, weight, bias, scale_shift: None, output });
        problem.check_last(ops, &expected, tolerance);
    }

    #[test]
    fn norm_coefficients(batch in 1usize..3, parts in prop::collection::vec(1usize..4, 1..3), modulated in any::<bool>()) {
        let mut problem = Problem::new(batch);
        let channels: usize = parts.iter().map(|n| 32 * n).sum();
        let moments: Vec<TensorId> = parts.iter().map(|n| {
            let id = problem.input(1, 1, 64 * n);
            // Variances are not negative.
            problem.given.last_mut().unwrap().1.iter_mut().for_each(|v| *v = v.abs());
            id
        }).collect();
        let (weight, weights) = problem.param(&[channels]);
        let (bias, biases) = problem.param(&[channels]);
        let scale_shift = modulated.then(|| problem.input(1, 1, 2 * channels));
        let modulation = scale_shift.map(|id| problem.values(id));
        let mut expected = Vec::new();
        for sample in 0..batch {
            let (mut means, mut variances) = (Vec::new(), Vec::new());
            for &id in &moments {
                let map = problem.values(id);
                let row = &map.values[sample * map.channels..][..map.channels];
                means.extend_from_slice(&row[..map.channels / 2]);
                variances.extend_from_slice(&row[map.channels / 2..]);
            }
            let width = channels / 32;
            let (mut scales, mut shifts) = (Vec::new(), Vec::new());
            for c in 0..channels {
                let group = c / width * width..(c / width + 1) * width;
                let mean = group.clone().map(|i| means[i]).sum::<f64>() / width as f64;
                let square = group.map(|i| variances[i] + means[i] * means[i]).sum::<f64>() / width as f64;
                let inverse = 1.0 / (square - mean * mean + 1e-5).sqrt();
                let (mut scale, mut shift) = (weights[c] * inverse, biases[c] - mean * weights[c] * inverse);
                if let Some(modulation) = &modulation {
                    let row = &modulation.values[sample * 2 * channels..];
                    scale *= 1.0 + row[c];
                    shift = shift * (1.0 + row[c]) + row[channels + c];
                }
                scales.push(scale);
                shifts.push(shift);
            }
            expected.extend(scales);
            expected.extend(shifts);
        }
        let output = problem.tensor(1, 1, 2 * channels);
        problem.check(Op::NormCoefficients { moments, weight, bias, scale_shift, output }, &expected, 2e-6);
    }
}
