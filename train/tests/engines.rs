//! Every gradient on every GPU against the CPU engine, over generated shapes.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/mod.rs"]
mod support;

use mdm::engine::Precision;
use mdm::engine::cpu::CpuEngine;
use mdm::engine::cpu::buffer::Buffer;
use mdm::engine::gpu::GpuEngine;
use mdm::model::UnetConfig;
use mdm::plan::memory::ALIGNMENT;
use mdm::plan::{Norm, Param, ParamId, Plan, Resample, Source, TensorId, TensorInfo};
use mdm::{Control, Device};
use mdm_train::differentiate::{Contribution, Gradient, Instruction, NormUse, Program};
use mdm_train::engine::cpu::CpuProgram;
use mdm_train::engine::gpu::GpuProgram;
use mdm_train::engine::parameters::{Places, Values};
use mdm_train::loss::{Loss, SsimForm};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use support::{gpus, image};

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

/// A gradient with everything that it reads.
struct Problem {
    batch: usize,
    tensors: Vec<TensorInfo>,
    given: Vec<TensorId>,
    /// Those of them that are moments: the second half of a sample's values is positive.
    moments: Vec<TensorId>,
    params: Vec<Param>,
}

impl Problem {
    fn new(batch: usize) -> Self {
        Self { batch, tensors: Vec::new(), given: Vec::new(), moments: Vec::new(), params: Vec::new() }
    }

    fn tensor(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        self.tensors.push(TensorInfo::new(height, width, channels));
        self.tensors.len() - 1
    }

    fn input(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        let id = self.tensor(height, width, channels);
        self.given.push(id);
        id
    }

    fn param(&mut self, shape: &[usize]) -> ParamId {
        self.params.push(Param { name: format!("param{}", self.params.len()), shape: shape.to_vec() });
        self.params.len() - 1
    }

    fn norm(&mut self, kind: u8, channels: usize) -> Option<Norm> {
        (kind > 0).then(|| Norm { coefficients: self.input(1, 1, 2 * channels), silu: kind > 1 })
    }

    /// Runs `gradient` on both engines and compares what it writes, and the gradients of parameters, which are added to
    /// others.
    fn check(mut self, gradient: Gradient, answer: TensorId, tolerance: f64) {
        let mut end = 0;
        for tensor in &mut self.tensors {
            let len = tensor.sample_len() * self.batch;
            tensor.range = end..end + len;
            end = (end + len).next_multiple_of(ALIGNMENT);
        }
        let instruction = Instruction::Gradient(gradient);
        let written = instruction.access().writes;
        let mut plan = Plan::assemble(
            UnetConfig::mdm_paper(),
            self.batch,
            vec![TensorInfo::new(1, 1, 1)],
            self.params,
            Vec::new(),
            vec![0],
            Vec::new(),
        )
        .unwrap();
        plan.tensors = self.tensors;
        plan.arena_len = end;
        let parameters = plan.params.len();
        let program = Program {
            plan,
            parameters,
            instructions: vec![instruction.clone()],
            forward: 0,
            answers: vec![answer],
            targets: vec![answer],
        };
        let tensors = program.plan.tensors.clone();
        let values: Vec<(TensorId, Vec<f32>)> = self
            .given
            .iter()
            .map(|&id| {
                let mut values = image(&format!("input{id}"), tensors[id].sample_len() * self.batch, 1);
                values.iter_mut().for_each(|value| *value += 0.3);
                if self.moments.contains(&id) {
                    let channels = tensors[id].channels;
                    for sample in values.chunks_exact_mut(channels) {
                        sample[channels / 2..].iter_mut().for_each(|value| *value = value.abs() + 0.05);
                    }
                }
                (id, values)
            })
            .collect();
        let given: Vec<(TensorId, &[f32])> = values.iter().map(|(id, values)| (*id, &values[..])).collect();
        let places = Places::new(program.params());
        let flat = image("parameters", places.len(), 2);
        let before = image("gradients", places.len(), 3);

        let cpu = Device::cpu(Some(1)).unwrap();
        let engine = cpu.engine().as_any().downcast_ref::<CpuEngine>().unwrap();
        let mut twin = CpuProgram::new(engine, program.clone()).unwrap();
        let mut gradients = Buffer::zeroed(places.len()).unwrap();
        gradients.slice_mut().copy_from_slice(&before);
        let parameters = Values { places: &places, flat: &flat };
        let control = Control::none();
        let expected_loss = twin.run(&given, &parameters, &mut gradients, 0.7, &control).unwrap();

        for (name, precision, device) in gpus() {
            // The CPU is given values in f32, which are rounded for f16.
            let half = *precision == Precision::F16;
            let (tolerance, of_loss) = if half { (5e-3, 2e-3) } else { (tolerance, 1e-5) };
            let engine = device.engine().as_any().downcast_ref::<GpuEngine>().unwrap();
            let mut own = GpuProgram::new(engine, program.clone()).unwrap();
            own.set_values(&flat).unwrap();
            // Twice, so that what the first run left in memory shows.
            for _ in 0..2 {
                own.set_gradients(&before).unwrap();
                let loss = own.run(&given, 0.7, &control).unwrap();
                if matches!(instruction, Instruction::Gradient(Gradient::Loss { .. })) {
                    let difference = (loss / expected_loss - 1.0).abs();
                    assert!(
                        difference < of_loss,
                        "{name} {precision:?}: loss {loss}, not {expected_loss} in {instruction:?}"
                    );
                }
                for &id in &written {
                    let error = error(&own.tensor(id).unwrap(), twin.tensor(id));
                    assert!(
                        error < tolerance,
                        "{name} {precision:?}: relative error {error:.2e} of tensor {id} of {tensors:?} in {instruction:?}"
                    );
                }
                let result = own.gradients().unwrap();
                for (id, param) in places.params().iter().enumerate() {
                    let range = places.range(id);
                    let error = error(&result[range.clone()], &gradients.slice()[range]);
                    assert!(
                        error < tolerance,
                        "{name} {precision:?}: relative error {error:.2e} of {param:?} of {tensors:?} in {instruction:?}"
                    );
                }
            }
        }
    }
}

/// `|a - b|` relative to `b`.
fn error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&b| b.into())).max(f64::MIN_POSITIVE)
}

fn resampled(resample: Resample, height: usize, width: usize) -> (usize, usize) {
    match resample {
        Resample::None => (height, width),
        Resample::NearestUp => (2 * height, 2 * width),
        Resample::AverageDown => (height / 2, width / 2),
    }
}

/// Rows or columns of a map that may be averaged: whole pairs.
fn paired(averaged: bool, size: usize) -> usize {
    if averaged { size.next_multiple_of(2) } else { size }
}

fn resample() -> impl Strategy<Value = Resample> {
    prop_oneof![Just(Resample::None), Just(Resample::NearestUp), Just(Resample::AverageDown)]
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn conv_weight(
        batch in 1usize..4,
        (height, width) in (1usize..20, 1usize..20),
        parts in proptest::collection::vec(1usize..40, 1..3),
        outputs in 1usize..80,
        kernel in prop_oneof![Just(1usize), Just(3)],
        stride in 1usize..3,
        resample in resample(),
        norm in 0u8..3,
    ) {
        let mut problem = Problem::new(batch);
        let [height, width] = [height, width].map(|size| paired(resample == Resample::AverageDown, size));
        let channels: usize = parts.iter().sum();
        let parts = parts.iter().map(|&channels| problem.input(height, width, channels)).collect();
        let norm = problem.norm(norm, channels);
        let stride = if kernel == 3 { stride } else { 1 };
        let (height, width) = resampled(resample, height, width);
        let gradient = problem.input(height.div_ceil(stride), width.div_ceil(stride), outputs);
        let weight = problem.param(&[outputs, channels, kernel, kernel]);
        let source = Source { parts, norm, resample };
        let op = Gradient::ConvWeight { source, gradient, weight, kernel, stride };
        problem.check(op, gradient, 1e-5);
    }

    #[test]
    fn channel_sums(
        batch in 1usize..4,
        (height, width, channels) in (1usize..40, 1usize..40, 1usize..70),
        has_bias in any::<bool>(),
        has_output in any::<bool>(),
    ) {
        let mut problem = Problem::new(batch);
        let gradient = problem.input(height, width, channels);
        let bias = (has_bias || !has_output).then(|| problem.param(&[channels]));
        let output = has_output.then(|| problem.tensor(1, 1, channels));
        problem.check(Gradient::ChannelSums { gradient, bias, output }, gradient, 1e-5);
    }

    #[test]
    fn spread(
        batch in 1usize..4,
        (height, width, channels) in (1usize..20, 1usize..20, 1usize..40),
    ) {
        let mut problem = Problem::new(batch);
        let input = problem.input(height.div_ceil(2), width.div_ceil(2), channels);
        let output = problem.tensor(height, width, channels);
        problem.check(Gradient::Spread { input, output }, input, 1e-12);
    }

    #[test]
    fn norm_sums(
        batch in 1usize..4,
        (height, width) in (2usize..24, 2usize..24),
        parts in proptest::collection::vec(1usize..70, 1..3),
        resample in resample(),
        silu in any::<bool>(),
    ) {
        let mut problem = Problem::new(batch);
        let [height, width] = [height, width].map(|size| paired(resample == Resample::AverageDown, size));
        let channels: usize = parts.iter().sum();
        let parts = parts.iter().map(|&channels| problem.input(height, width, channels)).collect();
        let norm = problem.norm(1 + u8::from(silu), channels);
        let (height, width) = resampled(resample, height, width);
        let gradient = problem.input(height, width, channels);
        let output = problem.tensor(1, 1, 2 * channels);
        let source = Source { parts, norm, resample };
        problem.check(Gradient::NormSums { source, gradient, output }, gradient, 1e-5);
    }

    #[test]
    fn norm_coefficients(
        batch in 1usize..4,
        members in 1usize..5,
        second in 0usize..100,
        pixels in 1usize..300,
        modulated in any::<bool>(),
    ) {
        let mut problem = Problem::new(batch);
        let channels = 32 * members;
        let second = second.min(channels - 1);
        let widths: Vec<usize> = [channels - second, second].into_iter().filter(|&width| width > 0).collect();
        let moments: Vec<TensorId> = widths.iter().map(|&width| problem.input(1, 1, 2 * width)).collect();
        problem.moments.clone_from(&moments);
        let scale_shift = modulated.then(|| problem.input(1, 1, 2 * channels));
        let gradient = problem.input(1, 1, 2 * channels);
        let outputs = widths.iter().map(|&width| problem.tensor(1, 1, 2 * width)).collect();
        let scale_shift_output = modulated.then(|| problem.tensor(1, 1, 2 * channels));
        let (weight, bias) = (problem.param(&[channels]), problem.param(&[channels]));
        let op = Gradient::NormCoefficients {
            moments,
            pixels,
            weight,
            bias,
            scale_shift,
            gradient,
            outputs,
            scale_shift_output,
        };
        problem.check(op, gradient, 1e-4);
    }

    #[test]
    fn sum(
        batch in 1usize..4,
        (height, width, channels) in (2usize..20, 2usize..20, 1usize..40),
        readers in proptest::collection::vec((resample(), 0u8..3, 0usize..20, 0usize..20), 0..7),
        affine in 0usize..3,
    ) {
        let mut problem = Problem::new(batch);
        let averaged = readers.iter().any(|reader| reader.0 == Resample::AverageDown);
        let [height, width] = [height, width].map(|size| paired(averaged, size));
        let tensor = problem.input(height, width, channels);
        let mut contributions = Vec::new();
        for (resample, norm, before, after) in readers {
            let (height, width) = resampled(resample, height, width);
            let all = before + channels + after;
            let gradient = problem.input(height, width, all);
            let norm = problem.norm(norm, all).map(|Norm { coefficients, silu }| NormUse { coefficients, silu });
            contributions.push(Contribution::Read { gradient, first_channel: before, resample, norm });
        }
        for _ in 0..affine.max(usize::from(contributions.is_empty())) {
            contributions.push(Contribution::Affine { coefficients: problem.input(1, 1, 2 * channels) });
        }
        let output = problem.tensor(height, width, channels);
        problem.check(Gradient::Sum { tensor, contributions, output }, tensor, 1e-5);
    }

    #[test]
    fn linear(
        batch in 1usize..4,
        (inputs, outputs) in (1usize..100, 1usize..100),
        silu in any::<bool>(),
        flows_on in any::<bool>(),
    ) {
        let mut problem = Problem::new(batch);
        let input = problem.input(1, 1, inputs);
        let gradient = problem.input(1, 1, outputs);
        let (weight, bias) = (problem.param(&[outputs, inputs]), problem.param(&[outputs]));
        let output = flows_on.then(|| problem.tensor(1, 1, inputs));
        problem.check(Gradient::Linear { input, silu, weight, bias, gradient, output }, gradient, 1e-5);
    }

    #[test]
    fn attention(
        batch in 1usize..3,
        (height, width) in (1usize..11, 1usize..11),
        heads in 1usize..4,
        own in 1usize..80,
        qkv_first in any::<bool>(),
    ) {
        let mut problem = Problem::new(batch);
        let channels = heads * own;
        let qkv = problem.input(height, width, 3 * channels);
        let gradient = problem.input(height, width, channels);
        let output = problem.tensor(height, width, 3 * channels);
        problem.check(Gradient::Attention { qkv, heads, qkv_first, gradient, output }, gradient, 1e-5);
    }

    #[test]
    fn loss(
        batch in 1usize..3,
        (height, width, channels) in (1usize..20, 1usize..20, 1usize..4),
        kind in 0u8..4,
        radius in 0usize..6,
        dynamic_range in 0.5f64..3.0,
    ) {
        let mut problem = Problem::new(batch);
        let answer = problem.input(height, width, channels);
        let target = problem.input(height, width, channels);
        let output = problem.tensor(height, width, channels);
        let ssim = |form| Loss::Ssim { window: 2 * radius + 1, sigma: 1.5, dynamic_range, form };
        let loss = match kind {
            0 => Loss::MeanSquare,
            1 => Loss::MeanAbsolute,
            2 => ssim(SsimForm::ClampedHalf),
            _ => ssim(SsimForm::OneMinus),
        };
        problem.check(Gradient::Loss { loss, answer, target, output }, answer, 2e-5);
    }
}

/// A vector's readers are vectors too; there are many of the time embedding.
#[test]
fn sum_of_vectors() {
    let mut problem = Problem::new(3);
    let input = problem.input(1, 1, 70);
    let contributions = (0..19).map(|_| Contribution::plain(problem.input(1, 1, 70))).collect();
    let output = problem.tensor(1, 1, 70);
    problem.check(Gradient::Sum { tensor: input, contributions, output }, input, 1e-6);
}

/// The widest window, all of it around a tile within the image: a workgroup takes the most turns to see all that reach into it.
#[test]
fn loss_under_a_wide_window() {
    for (height, width) in [(72, 72), (3, 300)] {
        let mut problem = Problem::new(1);
        let answer = problem.input(height, width, 1);
        let target = problem.input(height, width, 1);
        let output = problem.tensor(height, width, 1);
        let loss = Loss::Ssim { window: 45, sigma: 12.0, dynamic_range: 1.0, form: SsimForm::OneMinus };
        problem.check(Gradient::Loss { loss, answer, target, output }, answer, 2e-5);
    }
}
