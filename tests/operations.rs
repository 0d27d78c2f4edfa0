//! One suite for every engine: each operation over generated shapes against a naive reference in f64.
//!
//! An operation is a plan of its own. Every instruction set of the CPU engine runs it, and once more with another number
//! of threads, which must not change a bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::corruption::NoiseKey;
use mdm::engine::{Inputs, Precision, WeightCache};
use mdm::model::{MapWeights, UnetConfig};
use mdm::plan::{Combine, Conv, HeadShape, Norm, Op, Param, Plan, Resample, Source, TensorId, TensorInfo};
use mdm::{Control, Device};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use support::noise::{normal, uniform};
use support::{bf16_cpu, gpus, image};

/// Builds a plan of one operation together with its inputs and parameters.
struct Problem {
    batch: usize,
    config: UnetConfig,
    tensors: Vec<TensorInfo>,
    given: Vec<(TensorId, Vec<f32>)>,
    params: Vec<Param>,
    weights: MapWeights,
    noise: Vec<NoiseKey>,
}

impl Problem {
    fn new(batch: usize) -> Self {
        Self {
            batch,
            config: UnetConfig::mdm_paper(),
            tensors: Vec::new(),
            given: Vec::new(),
            params: Vec::new(),
            weights: MapWeights::default(),
            noise: Vec::new(),
        }
    }

    fn tensor(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        self.tensors.push(TensorInfo::new(height, width, channels));
        self.tensors.len() - 1
    }

    /// A tensor of random values, shifted so that means are not zero.
    fn input(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        let id = self.tensor(height, width, channels);
        let mut values = image(&format!("input{id}"), self.batch * height * width * channels, 1);
        values.iter_mut().for_each(|value| *value += 0.3);
        self.given.push((id, values));
        id
    }

    fn param(&mut self, shape: &[usize]) -> (usize, Vec<f64>) {
        let name = format!("param{}", self.params.len());
        let values = image(&name, shape.iter().product(), 2);
        self.weights.insert(&name, shape, values.clone());
        self.params.push(Param { name, shape: shape.to_vec() });
        (self.params.len() - 1, values.into_iter().map(f64::from).collect())
    }

    /// A noise key for each sample.
    fn draw_noise(&mut self, seed: u64) {
        let sample = 0..self.batch as i32;
        let keys = sample.map(|i| NoiseKey { seed: seed + i as u64 / 2, top: -7 * (i % 2), left: 204 * i });
        self.noise = keys.collect();
    }

    fn values(&self, id: TensorId) -> Map {
        let (_, values) = self.given.iter().find(|(given, _)| *given == id).unwrap();
        let TensorInfo { height, width, channels, .. } = self.tensors[id];
        Map { height, width, channels, values: values.iter().map(|&v| f64::from(v)).collect() }
    }

    /// Runs `op` everywhere and compares it with `expected`, channels last.
    fn check(self, op: Op, expected: &[f64], tolerance: f64) {
        self.check_last(vec![op], expected, tolerance);
    }

    /// Runs `ops` everywhere and compares the last one's result with `expected`, channels last.
    fn check_last(self, ops: Vec<Op>, expected: &[f64], tolerance: f64) {
        let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        let outputs = vec![ops.last().unwrap().output()];
        let (ids, values): (Vec<_>, Vec<_>) = self.given.into_iter().unzip();
        let plan =
            Plan::assemble(self.config, self.batch, self.tensors, self.params, ops, ids, outputs).unwrap();
        let images: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let inputs = Inputs { images: &images, timesteps: &[], classes: &[], noise: &self.noise };
        let run = |device: &Device| {
            let cache = WeightCache::default();
            let mut network = device.engine().prepare(plan.clone(), &self.weights, &cache).unwrap();
            let mut result = Vec::new();
            // Twice, so that what the first run left in memory shows.
            for _ in 0..2 {
                let mut read = |_: usize, values: &[f32]| {
                    result = values.to_vec();
                    Ok(())
                };
                network.run(&inputs, &Control::none(), &mut read).unwrap();
            }
            result
        };
        let devices = |threads| Device::cpu_instruction_sets(Some(threads)).unwrap();
        for (one, three) in devices(1).into_iter().zip(devices(3)) {
            let result = run(&one);
            let error = error(&result, &expected);
            let set = one.info().instruction_set;
            assert!(error < tolerance, "{set}: relative error {error:.2e} in {:?}", plan.ops[0]);
            assert_eq!(result, run(&three), "{set}: threads change the result of {:?}", plan.ops[0]);
        }
        if let (Some(one), Some(three)) = (bf16_cpu(1), bf16_cpu(3)) {
            let result = run(&one);
            let error = error(&result, &expected);
            assert!(error < BF16_TOLERANCE, "bf16: relative error {error:.2e} in {:?}", plan.ops[0]);
            assert_eq!(result, run(&three), "bf16: threads change the result of {:?}", plan.ops[0]);
        }
        for (name, precision, device) in gpus() {
            let error = error(&run(device), &expected);
            let tolerance = if *precision == Precision::F16 { F16_TOLERANCE } else { tolerance };
            assert!(
                error < tolerance,
                "{name} {precision:?}: relative error {error:.2e} in {:?}",
                plan.ops[0]
            );
        }
    }
}

/// What f16 may lose in one operation: inputs, weights and results are rounded to 11 bits.
const F16_TOLERANCE: f64 = 2e-3;

/// The same for products of bf16 values, with 8 bits, and small Winograd tiles.
const BF16_TOLERANCE: f64 = 1e-2;

/// `|a - b|` relative to `b` and to values of order one, whose sums may cancel.
fn error(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / (norm(&mut b.iter().map(|&b| b.into())) + (b.len() as f64).sqrt())
}

/// The same shapes on every machine; the environment's `PROPTEST_CASES` and `PROPTEST_RNG_SEED` try others.
fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        fixed => fixed,
    };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { count };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..default }
}

/// `[batch, height, width, channels]` in f64.
struct Map {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f64>,
}

impl Map {
    /// Zero outside of the image.
    fn at(&self, sample: usize, y: isize, x: isize, c: usize) -> f64 {
        let (Ok(y), Ok(x)) = (usize::try_from(y), usize::try_from(x)) else { return 0.0 };
        if y >= self.height || x >= self.width {
            return 0.0;
        }
        self.values[((sample * self.height + y) * self.width + x) * self.channels + c]
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// A source as one map.
fn read(problem: &Problem, source: &Source) -> Map {
    let parts: Vec<Map> = source.parts.iter().map(|&part| problem.values(part)).collect();
    let channels: usize = parts.iter().map(|part| part.channels).sum();
    let (height, width) = (parts[0].height, parts[0].width);
    let coefficients = source.norm.map(|norm| (problem.values(norm.coefficients), norm.silu));
    let mut values = Vec::new();
    for sample in 0..problem.batch {
        for pixel in 0..height * width {
            let mut c = 0;
            for part in &parts {
                for own in 0..part.channels {
                    let mut value = part.values[(sample * height * width + pixel) * part.channels + own];
                    if let Some((coefficients, activate)) = &coefficients {
                        let row = &coefficients.values[sample * 2 * channels..];
                        value = value * row[c] + row[channels + c];
                        value = if *activate { silu(value) } else { value };
                    }
                    values.push(value);
                    c += 1;
                }
            }
        }
    }
    let whole = Map { height, width, channels, values };
    let (out_height, out_width) = match source.resample {
        Resample::None => return whole,
        Resample::NearestUp => (2 * height, 2 * width),
        Resample::AverageDown => (height / 2, width / 2),
    };
    let mut values = Vec::new();
    for sample in 0..problem.batch {
        for y in 0..out_height as isize {
            for x in 0..out_width as isize {
                for c in 0..channels {
                    values.push(if source.resample == Resample::NearestUp {
                        whole.at(sample, y / 2, x / 2, c)
                    } else {
                        let mean: f64 = [(0, 0), (0, 1), (1, 0), (1, 1)]
                            .iter()
                            .map(|(dy, dx)| whole.at(sample, 2 * y + dy, 2 * x + dx, c))
                            .sum();
                        mean / 4.0
                    });
                }
            }
        }
    }
    Map { height: out_height, width: out_width, channels, values }
}

/// What a generated convolution looks like.
#[derive(Clone, Debug)]
struct ConvShape {
    batch: usize,
    height: usize,
    width: usize,
    parts: Vec<usize>,
    outputs: usize,
    kernel: usize,
    stride: usize,
    norm: Option<bool>,
    resample: Resample,
    bias: bool,
    sample_bias: bool,
    residual: Option<Resample>,
}

fn check_conv(shape: &ConvShape) {
    let mut problem = Problem::new(shape.batch);
    let parts: Vec<TensorId> =
        shape.parts.iter().map(|&channels| problem.input(shape.height, shape.width, channels)).collect();
    let inputs: usize = shape.parts.iter().sum();
    let norm = shape.norm.map(|silu| Norm { coefficients: problem.input(1, 1, 2 * inputs), silu });
    let source = Source { parts, norm, resample: shape.resample };
    let x = read(&problem, &source);
    let (height, width) = (x.height.div_ceil(shape.stride), x.width.div_ceil(shape.stride));
    let (weight, weights) = problem.param(&[shape.outputs, inputs, shape.kernel, shape.kernel]);
    let bias = shape.bias.then(|| problem.param(&[shape.outputs]));
    let sample_bias = shape.sample_bias.then(|| problem.input(1, 1, shape.outputs));
    let residual = shape.residual.map(|resample| {
        let (h, w) = match resample {
            Resample::None => (height, width),
            Resample::NearestUp => (height / 2, width / 2),
            Resample::AverageDown => (2 * height, 2 * width),
        };
        Source { parts: vec![problem.input(h, w, shape.outputs)], norm: None, resample }
    });
    let added = residual.as_ref().map(|residual| read(&problem, residual));
    let shifted = sample_bias.map(|id| problem.values(id));
    let mut expected = Vec::new();
    let reach = (shape.kernel / 2) as isize;
    for sample in 0..shape.batch {
        for y in 0..height {
            for x_out in 0..width {
                for out in 0..shape.outputs {
                    let mut sum = bias.as_ref().map_or(0.0, |(_, bias)| bias[out]);
                    sum += shifted.as_ref().map_or(0.0, |bias| bias.values[sample * shape.outputs + out]);
                    sum += added.as_ref().map_or(0.0, |map| map.at(sample, y as isize, x_out as isize, out));
                    for input in 0..inputs {
                        for ky in 0..shape.kernel {
                            for kx in 0..shape.kernel {
                                let at = ((out * inputs + input) * shape.kernel + ky) * shape.kernel + kx;
                                let from_y = (y * shape.stride + ky) as isize - reach;
                                let from_x = (x_out * shape.stride + kx) as isize - reach;
                                sum += weights[at] * x.at(sample, from_y, from_x, input);
                            }
                        }
                    }
                    expected.push(sum);
                }
            }
        }
    }
    let output = problem.tensor(height, width, shape.outputs);
    let op = Op::Conv(Conv {
        source,
        weight,
        bias: bias.map(|(id, _)| id),
        sample_bias,
        residual,
        kernel: shape.kernel,
        stride: shape.stride,
        output,
    });
    problem.check(op, &expected, 3e-6);
}

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

/// So large that engines divide the work differently.
#[test]
fn normalised_large_maps() {
    for (batch, height, width, resample) in
        [(2, 129, 131, Resample::None), (1, 512, 258, Resample::AverageDown)]
    {
        check_conv(&ConvShape {
            batch,
            height,
            width,
            parts: vec![32, 32],
            outputs: 1,
            kernel: 1,
            stride: 1,
            norm: Some(true),
            resample,
            bias: false,
            sample_bias: false,
            residual: None,
        });
    }
}

prop_compose! {
    fn conv_shapes(large: bool)(
        batch in 1usize..3,
        (height, width) in if large { (30usize..40, 30usize..70) } else { (1usize..19, 1usize..19) },
        parts in prop::collection::vec(1usize..4, 1..3),
        wide in any::<bool>(),
        outputs in 1usize..140,
        kernel in prop::sample::select(vec![1usize, 3]),
        stride in 1usize..3,
        norm in prop::option::of(any::<bool>()),
        resample in prop::sample::select(vec![Resample::None, Resample::NearestUp, Resample::AverageDown]),
        (bias, sample_bias) in any::<(bool, bool)>(),
        residual in prop::option::of(
            prop::sample::select(vec![Resample::None, Resample::NearestUp, Resample::AverageDown])),
    ) -> ConvShape {
        // Multiples of 32 channels take the paths of the networks, others those of their edges.
        let parts = parts.into_iter().map(|n| if wide || large { 32 * n } else { 7 * n }).collect();
        let outputs = if wide || large { outputs.div_ceil(35) * 32 } else { outputs };
        let even = |size: usize| if resample == Resample::AverageDown { size.div_ceil(2) * 2 } else { size };
        let (height, width) = (even(height), even(width));
        let stride = if kernel == 1 { 1 } else { stride };
        // An upsampled residual needs an even output.
        let size = |n: usize| match resample {
            Resample::None => n, Resample::NearestUp => 2 * n, Resample::AverageDown => n / 2,
        }.div_ceil(stride);
        let odd = size(height) % 2 == 1 || size(width) % 2 == 1;
        let residual = residual.filter(|&kind| kind != Resample::NearestUp || !odd);
        ConvShape { batch, height, width, parts, outputs, kernel, stride, norm, resample, bias, sample_bias, residual }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn convolution(shape in conv_shapes(false)) {
        check_conv(&shape);
    }

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

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn convolution_of_large_images(shape in conv_shapes(true)) {
        check_conv(&shape);
    }
}

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
