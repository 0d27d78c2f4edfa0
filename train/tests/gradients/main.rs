//! Gradients of every operation over generated shapes, and of whole networks, against differentiation in f64 of one number
//! at a time, on every engine.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod engines;
mod reference;
#[path = "../support/mod.rs"]
mod support;
mod tape;

use engines::{Given, Outcome};
use mdm::model::UnetConfig;
use mdm::plan::{Conv, Norm, Op, Param, ParamId, Plan, Resample, Source, TensorId, TensorInfo};
use mdm_train::differentiate::Program;
use mdm_train::loss::{Loss, SsimForm};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use reference::{Expected, expected};
use support::{uniform, weight};

/// Values in [-1, 1).
fn values(name: &str, count: usize) -> Vec<f32> {
    uniform(name, count, 3).into_iter().map(|value| (2.0 * value - 1.0) as f32).collect()
}

/// Builds a small network around an operation: what it reads is computed from an image and from a vector by layers with
/// parameters, so that the gradients of those show what flows back into it.
struct Builder {
    batch: usize,
    tensors: Vec<TensorInfo>,
    params: Vec<Param>,
    ops: Vec<Op>,
    image: TensorId,
    vector: TensorId,
}

/// Channels of the image and values of the vector.
const IMAGE: usize = 5;
const VECTOR: usize = 6;

/// Rows and columns of a map that is resampled, where it can be.
fn resampled((height, width): (usize, usize), resample: Resample) -> Option<(usize, usize)> {
    match resample {
        Resample::None => Some((height, width)),
        Resample::NearestUp => Some((2 * height, 2 * width)),
        Resample::AverageDown => (height % 2 == 0 && width % 2 == 0).then_some((height / 2, width / 2)),
    }
}

impl Builder {
    fn new(batch: usize, height: usize, width: usize) -> Self {
        let tensors = vec![TensorInfo::new(height, width, IMAGE), TensorInfo::new(1, 1, VECTOR)];
        Self { batch, tensors, params: Vec::new(), ops: Vec::new(), image: 0, vector: 1 }
    }

    fn tensor(&mut self, height: usize, width: usize, channels: usize) -> TensorId {
        self.tensors.push(TensorInfo::new(height, width, channels));
        self.tensors.len() - 1
    }

    fn param(&mut self, shape: &[usize], end: &str) -> ParamId {
        let name = format!("layer{}.{end}", self.params.len());
        self.params.push(Param { name, shape: shape.to_vec() });
        self.params.len() - 1
    }

    /// Channels that are computed from the image, at its resolution or at another.
    fn map(&mut self, channels: usize, resample: Resample) -> TensorId {
        let source = Source { parts: vec![self.image], norm: None, resample };
        self.conv(source, channels, 1, 1, true, None, None)
    }

    /// Values that are computed from the vector.
    fn derived(&mut self, count: usize, silu: bool) -> TensorId {
        let weight = self.param(&[count, VECTOR], "weight");
        let bias = self.param(&[count], "bias");
        let output = self.tensor(1, 1, count);
        let input = self.vector;
        self.ops.push(Op::Linear { input, silu, weight, bias, label_embedding: None, output });
        output
    }

    #[expect(clippy::too_many_arguments, reason = "a convolution has as many properties")]
    fn conv(
        &mut self,
        source: Source,
        outputs: usize,
        kernel: usize,
        stride: usize,
        bias: bool,
        sample_bias: Option<TensorId>,
        residual: Option<Source>,
    ) -> TensorId {
        let (height, width) = self.size(&source);
        let inputs: usize = source.parts.iter().map(|&part| self.tensors[part].channels).sum();
        let weight = self.param(&[outputs, inputs, kernel, kernel], "weight");
        let bias = bias.then(|| self.param(&[outputs], "bias"));
        let output = self.tensor(height.div_ceil(stride), width.div_ceil(stride), outputs);
        let conv = Conv { source, weight, bias, sample_bias, residual, kernel, stride, output };
        self.ops.push(Op::Conv(conv));
        output
    }

    /// Rows and columns of what is read.
    fn size(&self, source: &Source) -> (usize, usize) {
        let TensorInfo { height, width, .. } = self.tensors[source.parts[0]];
        resampled((height, width), source.resample).unwrap()
    }

    /// Group norm of a concatenation.
    fn norm(&mut self, parts: &[TensorId], scale_shift: Option<TensorId>) -> TensorId {
        let moments: Vec<TensorId> = parts
            .iter()
            .map(|&input| {
                let output = self.tensor(1, 1, 2 * self.tensors[input].channels);
                self.ops.push(Op::Moments { input, output });
                output
            })
            .collect();
        let channels = parts.iter().map(|&part| self.tensors[part].channels).sum();
        let weight = self.param(&[channels], "weight");
        let bias = self.param(&[channels], "bias");
        let output = self.tensor(1, 1, 2 * channels);
        self.ops.push(Op::NormCoefficients { moments, weight, bias, scale_shift, output });
        output
    }

    /// Compares the gradients of all parameters where `answer` is what the network answers.
    fn check(self, answer: TensorId, loss: Loss, tolerance: f64) {
        let given = [self.image, self.vector];
        let (config, image) = (UnetConfig::mdm_paper(), self.image);
        let mut plan = Plan::assemble(
            config,
            self.batch,
            self.tensors,
            self.params,
            self.ops,
            given.to_vec(),
            vec![answer],
        )
        .unwrap();
        plan.images = vec![image];
        plan.timesteps = vec![self.vector];
        compare(Program::of(plan, image, answer, loss, false).unwrap(), tolerance);
    }
}

fn given(program: &Program) -> Given {
    let plan = &program.plan;
    let tensors = plan.images.iter().chain(&plan.timesteps).chain([&program.targets[0]]).map(|&id| {
        let count = plan.tensors[id].sample_len() * plan.options.batch;
        let mut values = values(&format!("tensor{id}"), count);
        if plan.tensors[id].sample_len() == 1 {
            // A timestep.
            values.iter_mut().for_each(|value| *value = (300.0 + 200.0 * *value).round());
        }
        (id, values)
    });
    let params = program.params().iter().map(|param| weight(&param.name, &param.shape, 5)).collect();
    Given { tensors: tensors.collect(), params }
}

/// Runs the program on every engine and compares with the reference; returns what the first engine made of it.
fn compare(program: Program, tolerance: f64) -> Outcome {
    let given = given(&program);
    let expected = expected(&program, &given);
    let mut first = None;
    for engine in engines::all() {
        let outcome = engine.run(program.clone(), &given);
        check_outcome(&program, &engine.name(), &outcome, &expected, tolerance);
        if let Some(twin) = engine.twin() {
            let other = twin.run(program.clone(), &given);
            assert_eq!(
                outcome,
                other,
                "{}: threads change the result of {:?}",
                engine.name(),
                program.plan.ops
            );
        }
        first.get_or_insert(outcome);
    }
    first.unwrap()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn check_outcome(program: &Program, engine: &str, outcome: &Outcome, expected: &Expected, tolerance: f64) {
    let error = |result: &[f32], expected: &[f64]| {
        assert_eq!(result.len(), expected.len());
        norm(result.iter().zip(expected).map(|(&a, b)| f64::from(a) - b))
    };
    let answer = error(&outcome.answer, &expected.answer) / norm(expected.answer.iter().copied());
    assert!(answer < tolerance, "{engine}: the answer is off by {answer:.1e} in {:?}", program.plan.ops);
    let loss = (outcome.loss - expected.loss).abs() / expected.loss.abs().max(1e-3);
    assert!(loss < tolerance, "{engine}: loss {} instead of {}", outcome.loss, expected.loss);
    // Some gradients are sums that cancel, exactly even where a norm follows a bias: errors are relative to a typical
    // gradient too.
    let all = norm(expected.gradients.iter().flatten().copied());
    let count = expected.gradients.iter().map(Vec::len).sum::<usize>() as f64;
    for ((param, result), expected) in
        program.params().iter().zip(&outcome.gradients).zip(&expected.gradients)
    {
        let typical = all * (expected.len() as f64 / count).sqrt();
        let error = error(result, expected) / (norm(expected.iter().copied()) + 0.1 * typical);
        assert!(
            error < tolerance,
            "{engine}: the gradient of {} is off by {error:.1e} in {:?}",
            param.name,
            program.plan.ops
        );
    }
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

/// How a source is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Normalised {
    No,
    /// By coefficients from anywhere.
    Affine,
    /// By group norm, the channels being multiples of 32.
    Group,
    /// By group norm that is modulated.
    Modulated,
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
    norm: Normalised,
    silu: bool,
    resample: Resample,
    bias: bool,
    sample_bias: bool,
    residual: Option<Resample>,
}

fn check_conv(shape: &ConvShape) {
    let mut builder = Builder::new(shape.batch, shape.height, shape.width);
    let parts: Vec<TensorId> = shape.parts.iter().map(|&c| builder.map(c, Resample::None)).collect();
    let channels: usize = shape.parts.iter().sum();
    let coefficients = match shape.norm {
        Normalised::No => None,
        Normalised::Affine => Some(builder.derived(2 * channels, false)),
        Normalised::Group => Some(builder.norm(&parts, None)),
        Normalised::Modulated => {
            let modulation = builder.derived(2 * channels, true);
            Some(builder.norm(&parts, Some(modulation)))
        }
    };
    let norm = coefficients.map(|coefficients| Norm { coefficients, silu: shape.silu });
    let source = Source { parts, norm, resample: shape.resample };
    let (height, width) = builder.size(&source);
    let (height, width) = (height.div_ceil(shape.stride), width.div_ceil(shape.stride));
    let sample_bias = shape.sample_bias.then(|| builder.derived(shape.outputs, true));
    let residual = shape.residual.and_then(|resample| {
        // One whose resampling undoes what was done to the image, if there is one.
        [Resample::None, Resample::NearestUp, Resample::AverageDown].into_iter().find_map(|made| {
            let (h, w) = resampled((shape.height, shape.width), made)?;
            (resampled((h, w), resample)? == (height, width)).then(|| {
                let part = builder.map(shape.outputs, made);
                Source { parts: vec![part], norm: None, resample }
            })
        })
    });
    let (kernel, stride) = (shape.kernel, shape.stride);
    let answer = builder.conv(source, shape.outputs, kernel, stride, shape.bias, sample_bias, residual);
    builder.check(answer, Loss::MeanSquare, 2e-5);
}

fn resamplings() -> impl Strategy<Value = Resample> {
    prop::sample::select(vec![Resample::None, Resample::NearestUp, Resample::AverageDown])
}

prop_compose! {
    /// `large` ones take the paths for many channels.
    fn conv_shapes(large: bool)(
        batch in 1usize..4,
        (height, width) in if large { (9usize..20, 9usize..20) } else { (1usize..9, 1usize..9) },
        parts in prop::collection::vec(1usize..(if large { 2 } else { 20 }), 1..3),
        outputs in 1usize..40,
        kernel in prop::sample::select(vec![1usize, 3, 3]),
        stride in 1usize..3,
        norm in prop::sample::select(
            vec![Normalised::No, Normalised::Affine, Normalised::Group, Normalised::Modulated]),
        silu in any::<bool>(),
        resample in resamplings(),
        (bias, sample_bias) in any::<(bool, bool)>(),
        residual in prop::option::of(resamplings()),
    ) -> ConvShape {
        let grouped = large || matches!(norm, Normalised::Group | Normalised::Modulated);
        let parts = parts.into_iter().map(|n| if grouped { 32 * n.div_ceil(10) } else { n }).collect();
        let outputs = if large { 32 } else { outputs };
        let batch = if large { batch.min(2) } else { batch };
        let (height, width) = match resample {
            Resample::NearestUp => (height.div_ceil(2), width.div_ceil(2)),
            Resample::AverageDown => (height.next_multiple_of(2), width.next_multiple_of(2)),
            Resample::None => (height, width),
        };
        // With one pixel a group there is nothing but rounding errors to normalise.
        let (height, width) = if grouped { (height.max(2), width.max(4)) } else { (height, width) };
        let (kernel, stride) = if large { (3, 1) } else { (kernel, if kernel == 1 { 1 } else { stride }) };
        ConvShape {
            batch, height, width, parts, outputs, kernel, stride, norm, silu, resample, bias, sample_bias, residual,
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn convolutions_of_any_channels(shape in conv_shapes(false)) {
        check_conv(&shape);
    }

    #[test]
    fn attention(
        batch in 1usize..3,
        (height, width) in (1usize..7, 1usize..7),
        heads in 1usize..4,
        channels in 1usize..35,
        qkv_first in any::<bool>(),
    ) {
        let mut builder = Builder::new(batch, height, width);
        let qkv = builder.map(3 * heads * channels, Resample::None);
        let output = builder.tensor(height, width, heads * channels);
        builder.ops.push(Op::Attention { qkv, heads, qkv_first, output });
        builder.check(output, Loss::MeanSquare, 2e-5);
    }

    #[test]
    fn losses(
        batch in 1usize..3,
        (height, width) in (1usize..12, 1usize..12),
        channels in 1usize..5,
        loss in prop::sample::select(vec![Loss::MeanSquare, Loss::MeanAbsolute]),
        ssim in prop::option::of((0usize..5, 0.5f64..3.0, 1.0f64..3.0, any::<bool>())),
    ) {
        let loss = ssim.map_or(loss, |(radius, sigma, dynamic_range, halved)| {
            let form = if halved { SsimForm::ClampedHalf } else { SsimForm::OneMinus };
            Loss::Ssim { window: 2 * radius + 1, sigma, dynamic_range, form }
        });
        let mut builder = Builder::new(batch, height, width);
        let answer = builder.map(channels, Resample::None);
        builder.check(answer, loss, 1e-4);
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn convolutions_of_many_channels(shape in conv_shapes(true)) {
        check_conv(&shape);
    }
}

/// Tiles enough for sums in several groups, and for the larger tiles.
#[test]
fn a_convolution_of_many_pixels() {
    let one = ConvShape {
        batch: 1,
        height: 53,
        width: 50,
        parts: vec![32],
        outputs: 32,
        kernel: 3,
        stride: 1,
        norm: Normalised::Group,
        silu: true,
        resample: Resample::None,
        bias: true,
        sample_bias: false,
        residual: None,
    };
    check_conv(&one);
    // So many tiles are summed in groups, which end amid a row of tiles.
    check_conv(&ConvShape { batch: 3, parts: vec![32, 32], ..one });
}

/// What is read by several is the sum of what flows back from each.
#[test]
fn a_tensor_with_many_readers() {
    let mut builder = Builder::new(2, 6, 4);
    let shared = builder.map(32, Resample::None);
    let coefficients = builder.norm(&[shared, shared], None);
    let norm = Some(Norm { coefficients, silu: true });
    let both = Source { parts: vec![shared, shared], norm, resample: Resample::AverageDown };
    let down = builder.conv(both, 32, 3, 1, true, None, None);
    let plain = Source { parts: vec![down], norm: None, resample: Resample::NearestUp };
    let residual = Source { parts: vec![shared], norm: None, resample: Resample::None };
    let answer = builder.conv(plain, 32, 3, 1, true, None, Some(residual));
    builder.check(answer, Loss::MeanSquare, 2e-5);
}

/// Configurations whose networks have every kind of block.
fn networks() -> Vec<UnetConfig> {
    let paper = UnetConfig {
        image_size: 8,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        num_heads: 1,
        num_head_channels: Some(16),
        ..UnetConfig::mdm_paper()
    };
    vec![
        UnetConfig { use_scale_shift_norm: false, ..paper.clone() },
        UnetConfig { resblock_updown: false, use_new_attention_order: true, ..paper.clone() },
        paper,
    ]
}

#[test]
fn whole_networks() {
    for config in networks() {
        let program =
            |recompute| Program::new(&config, 1, config.image_size, Loss::MeanSquare, recompute).unwrap();
        let kept = compare(program(false), 2e-5);
        // Computing activations again changes no bit.
        let plain = program(true);
        let again = engines::all()[0].run(plain.clone(), &given(&plain));
        assert_eq!(kept, again);
    }
}

#[test]
fn an_arena_in_several_buffers_changes_no_bit() {
    for config in networks() {
        let config = UnetConfig { image_size: 16, ..config };
        let program = Program::new(&config, 2, config.image_size, Loss::MeanSquare, false).unwrap();
        for [divided, whole] in engines::divided(&program, &given(&program)) {
            assert_eq!(divided, whole);
        }
    }
}

/// The reference itself, against central differences.
#[test]
fn the_reference_agrees_with_central_differences() {
    for config in networks() {
        let loss = Loss::Ssim { window: 5, sigma: 1.5, dynamic_range: 2.0, form: SsimForm::OneMinus };
        let program = Program::new(&config, 1, config.image_size, loss, false).unwrap();
        let given = given(&program);
        // Along one direction through all parameters; each value moves by a power of two, exactly.
        let step = f64::from(2.0f32.powi(-18));
        let sign = |param: usize, i: usize| if (param * 7 + i * 13).is_multiple_of(3) { 1.0 } else { -1.0 };
        let moved = |direction: f64| {
            let mut given = given.clone();
            for (param, values) in given.params.iter_mut().enumerate() {
                for (i, value) in values.iter_mut().enumerate() {
                    // Rounded to few bits first, so that adding the step rounds nothing.
                    let coarse = (f64::from(*value) * 4096.0).round() / 4096.0;
                    *value = (coarse + direction * step * sign(param, i)) as f32;
                }
            }
            given
        };
        let centre = expected(&program, &moved(0.0));
        let (ahead, behind) = (expected(&program, &moved(1.0)), expected(&program, &moved(-1.0)));
        let slope: f64 = centre
            .gradients
            .iter()
            .enumerate()
            .flat_map(|(param, gradient)| gradient.iter().enumerate().map(move |(i, g)| g * sign(param, i)))
            .sum();
        let difference = (ahead.loss - behind.loss) / (2.0 * step);
        assert!((slope / difference - 1.0).abs() < 1e-4, "{slope} instead of {difference}");
    }
}
