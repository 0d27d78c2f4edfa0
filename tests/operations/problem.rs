//! Operations as plans, and what their references share.

use mdm::corruption::NoiseKey;
use mdm::engine::{Inputs, Precision, WeightCache};
use mdm::model::{MapWeights, UnetConfig};
use mdm::plan::{Op, Param, Plan, Resample, Source, TensorId, TensorInfo};
use mdm::{Control, Device};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::support::{bf16_cpu, gpus, image};

/// Builds a plan of one operation together with its inputs and parameters.
pub(crate) struct Problem {
    pub(crate) batch: usize,
    config: UnetConfig,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) given: Vec<(TensorId, Vec<f32>)>,
    params: Vec<Param>,
    weights: MapWeights,
    pub(crate) noise: Vec<NoiseKey>,
}

impl Problem {
    pub(crate) fn new(batch: usize) -> Self {
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

    pub(crate) fn tensor(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        self.tensors.push(TensorInfo::new(height, width, channels));
        self.tensors.len() - 1
    }

    /// A tensor of random values, shifted so that means are not zero.
    pub(crate) fn input(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        let id = self.tensor(height, width, channels);
        let mut values = image(&format!("input{id}"), self.batch * height * width * channels, 1);
        values.iter_mut().for_each(|value| *value += 0.3);
        self.given.push((id, values));
        id
    }

    pub(crate) fn param(&mut self, shape: &[usize]) -> (usize, Vec<f64>) {
        let name = format!("param{}", self.params.len());
        let values = image(&name, shape.iter().product(), 2);
        self.weights.insert(&name, shape, values.clone());
        self.params.push(Param { name, shape: shape.to_vec() });
        (self.params.len() - 1, values.into_iter().map(f64::from).collect())
    }

    /// A noise key for each sample.
    pub(crate) fn draw_noise(&mut self, seed: u64) {
        let sample = 0..self.batch as i32;
        let keys = sample.map(|i| NoiseKey { seed: seed + i as u64 / 2, top: -7 * (i % 2), left: 204 * i });
        self.noise = keys.collect();
    }

    pub(crate) fn values(&self, id: TensorId) -> Map {
        let (_, values) = self.given.iter().find(|(given, _)| *given == id).unwrap();
        let TensorInfo { height, width, channels, .. } = self.tensors[id];
        Map { height, width, channels, values: values.iter().map(|&v| f64::from(v)).collect() }
    }

    /// Runs `op` everywhere and compares it with `expected`, channels last.
    pub(crate) fn check(self, op: Op, expected: &[f64], tolerance: f64) {
        self.check_last(vec![op], expected, tolerance);
    }

    /// Runs `ops` everywhere and compares the last one's result with `expected`, channels last.
    pub(crate) fn check_last(self, ops: Vec<Op>, expected: &[f64], tolerance: f64) {
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
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        fixed => fixed,
    };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { count };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..default }
}

/// `[batch, height, width, channels]` in f64.
pub(crate) struct Map {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) values: Vec<f64>,
}

impl Map {
    /// Zero outside of the image.
    pub(crate) fn at(&self, sample: usize, y: isize, x: isize, c: usize) -> f64 {
        let (Ok(y), Ok(x)) = (usize::try_from(y), usize::try_from(x)) else { return 0.0 };
        if y >= self.height || x >= self.width {
            return 0.0;
        }
        self.values[((sample * self.height + y) * self.width + x) * self.channels + c]
    }
}

pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// A source as one map.
pub(crate) fn read(problem: &Problem, source: &Source) -> Map {
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
