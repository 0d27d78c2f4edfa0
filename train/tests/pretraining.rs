//! Backpropagation and the optimiser against the golden files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::sync::Arc;

use mdm::engine::{DeviceKind, Precision};
use mdm::model::{MapWeights, UnetConfig, WeightSource};
use mdm::{Control, Device};
use mdm_train::differentiate::Program;
use mdm_train::engine::learner;
use mdm_train::learner::{Learner, LearnerOptions, LearnerState, Microbatch, Update};
use mdm_train::loss::{Loss, SsimForm};
use support::{Golden, channels_last, gpus, manifest_folder, relative_error, weight};

const TOLERANCE: f64 = 1e-4;

/// Of parameters on GPUs, whose arithmetic is their drivers'. In the third step one pixel's similarity lies at the loss's clamp; on which
/// side it falls, rounding errors decide in any engine in f32, and all parameters together move by 1e-4 with it.
const LOOSE_TOLERANCE: f64 = 2.5e-4;

fn golden(name: &str) -> Golden {
    Golden::open(&manifest_folder().join(format!("tests/golden/{name}.safetensors")))
}

/// Compares the sampled values of a golden file that begin with `prefix`; returns the largest error of a tensor, and that of
/// all samples together.
fn compare(golden: &Golden, prefix: &str, values: &dyn WeightSource) -> (f64, f64) {
    let (mut worst, mut all, mut all_expected) = (0.0f64, Vec::new(), Vec::new());
    let mut count = 0;
    for name in golden.names() {
        let Some(parameter) = name
            .strip_prefix(prefix)
            .and_then(|name| name.strip_prefix('.'))
            .and_then(|name| name.strip_suffix(".value"))
        else {
            continue;
        };
        let tensor = values.tensor(parameter).unwrap();
        let at = ["final", prefix]
            .iter()
            .rev()
            .find_map(|prefix| golden.i64(&format!("{prefix}.{parameter}.index")))
            .unwrap();
        let sampled: Vec<f32> = at.into_iter().map(|at| tensor.data[usize::try_from(at).unwrap()]).collect();
        let expected = golden.f32(&name).unwrap();
        let error = relative_error(&sampled, &expected);
        worst = worst.max(error);
        all.extend(sampled);
        all_expected.extend(expected);
        count += 1;
    }
    assert!(count > 0, "{} has nothing under {prefix}", golden.name);
    (worst, relative_error(&all, &all_expected))
}

fn check(golden: &Golden, device: &Device, recompute: bool) {
    let meta = &golden.meta;
    let unet: UnetConfig = serde_json::from_value(meta["config"].clone()).unwrap();
    let number = |name: &str| usize::try_from(meta[name].as_u64().unwrap()).unwrap();
    let (batch, steps, size) = (number("batch"), number("steps"), unet.image_size);
    let channels = unet.in_channels;
    let mut parameters = MapWeights::default();
    for (name, shape) in unet.parameters() {
        let values = weight(&name, &shape, golden.salt());
        parameters.insert(&name, &shape, values);
    }
    let state = LearnerState::fresh(Arc::new(parameters), 1);
    let options = LearnerOptions {
        unet,
        microbatch: batch,
        size,
        loss: Loss::Ssim { window: 5, sigma: 1.5, dynamic_range: 1.0, form: SsimForm::ClampedHalf },
        recompute,
        ema_rates: vec![meta["ema"].as_f64().unwrap()],
        blocks: Vec::new(),
    };
    let mut learner = learner(device, &options, &state).unwrap();
    let losses = golden.f32("losses").unwrap();
    assert_eq!(losses.len(), steps);
    for (step, &expected_loss) in losses.iter().enumerate() {
        let image = |name: &str| {
            channels_last(&golden.f32(&format!("{step}.{name}")).unwrap(), batch, channels, size * size)
        };
        let timesteps: Vec<f32> =
            golden.i64(&format!("{step}.t")).unwrap().into_iter().map(|t| t as f32).collect();
        let (input, target) = (image("x_t"), image("x0"));
        let batch = Microbatch { input: &input, target: &target, timesteps: &timesteps };
        let loss = learner.accumulate(&batch, 1.0, &Control::none()).unwrap();
        let error = (loss / f64::from(expected_loss) - 1.0).abs();
        assert!(error < TOLERANCE, "step {step}: loss {loss}, expected {expected_loss}");
        if step == 0 {
            let gradients = gradients(&mut *learner, &*state.parameters);
            let (worst, all) = compare(golden, "grad0", &gradients);
            println!("{}: gradients {all:.2e}, worst {worst:.2e}", device.info().instruction_set);
            assert!(all < TOLERANCE);
        }
        let update = Update {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: None,
        };
        assert!(learner.update(&update).unwrap().applied);
    }
    let after = learner.state().unwrap();
    for (prefix, values) in [("final", &after.parameters), ("ema", &after.ema[0])] {
        let (worst, all) = compare(golden, prefix, &**values);
        let (name, set) = (&device.info().name, device.info().instruction_set);
        println!("{name} {set}: {prefix} {all:.2e}, worst {worst:.2e}");
        let tolerance = if device.info().kind == DeviceKind::Cpu { TOLERANCE } else { LOOSE_TOLERANCE };
        assert!(all < tolerance, "{name} {set}: {prefix} {all:.2e}");
    }
}

/// The gathered gradients by the names of the parameters, which lie in the order of the network's.
fn gradients(learner: &mut dyn Learner, parameters: &dyn WeightSource) -> MapWeights {
    let mut map = MapWeights::default();
    let names: Vec<String> = learner.parameters().to_vec();
    learner
        .gradients(&mut |flat| {
            let mut start = 0;
            for name in &names {
                let shape = &parameters.tensor(name).unwrap().shape;
                let len = shape.iter().product::<usize>();
                map.insert(name, shape, flat[start..start + len].to_vec());
                start += len;
            }
            assert_eq!(start, flat.len());
            Ok(())
        })
        .unwrap();
    map
}

#[test]
fn three_steps_agree_with_the_golden_file() {
    let golden = golden("pretraining");
    for device in Device::cpu_instruction_sets(None).unwrap() {
        check(&golden, &device, false);
    }
    for (_, _, device) in gpus().iter().filter(|(_, precision, _)| *precision == Precision::F32) {
        check(&golden, device, false);
    }
}

#[test]
fn computing_activations_again_changes_nothing() {
    check(&golden("pretraining"), &Device::cpu(None).unwrap(), true);
}

#[test]
fn structural_similarity_agrees_with_the_golden_file() {
    let golden = golden("ssim");
    for case in golden.meta["cases"].as_array().unwrap() {
        let number = |name: &str| case[name].as_f64().unwrap();
        let id = case["case"].as_u64().unwrap();
        let shape: Vec<usize> =
            case["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let [batch, channels, height, width] = shape[..] else { panic!("four dimensions") };
        let values = |name: &str| {
            channels_last(&golden.f32(&format!("{id}.{name}")).unwrap(), batch, channels, height * width)
        };
        for (form, loss_name, gradient_name) in [
            (SsimForm::ClampedHalf, "loss_clamped_half", "grad_clamped_half"),
            (SsimForm::OneMinus, "loss_one_minus_ssim", "grad_one_minus_ssim"),
        ] {
            let loss = Loss::Ssim {
                window: number("window") as usize,
                sigma: number("sigma"),
                dynamic_range: number("dynamic_range"),
                form,
            };
            let (prediction, target) = (values("prediction"), values("target"));
            let mut gradient = vec![0.0; prediction.len()];
            let value = loss.evaluate([batch, height, width, channels], &prediction, &target, &mut gradient);
            let expected = f64::from(golden.f32(&format!("{id}.{loss_name}")).unwrap()[0]);
            let error = relative_error(&gradient, &values(gradient_name));
            println!("case {id} {loss_name}: {:.1e}, gradient {error:.1e}", value / expected - 1.0);
            assert!((value / expected - 1.0).abs() < 1e-5);
            assert!(error < 1e-5);
        }
    }
}

#[test]
fn options_that_cannot_be_are_errors() {
    let unet = UnetConfig { model_channels: 32, channel_mult: vec![1, 2], ..UnetConfig::mdm_paper() };
    let good = LearnerOptions {
        unet,
        microbatch: 1,
        size: 16,
        loss: Loss::default(),
        recompute: false,
        ema_rates: vec![0.9999],
        blocks: Vec::new(),
    };
    let ssim =
        |window, sigma, dynamic_range| Loss::Ssim { window, sigma, dynamic_range, form: SsimForm::OneMinus };
    let with = |change: &dyn Fn(&mut LearnerOptions)| {
        let mut options = good.clone();
        change(&mut options);
        options
    };
    let bad = [
        with(&|options| options.microbatch = 0),
        with(&|options| options.microbatch = usize::MAX / 8),
        with(&|options| options.size = 0),
        with(&|options| options.size = 17),
        with(&|options| options.size = usize::MAX - 1),
        with(&|options| options.unet.num_classes = Some(3)),
        with(&|options| options.unet.out_channels = 6),
        with(&|options| options.unet.channel_mult.clear()),
        with(&|options| options.loss = ssim(4, 1.5, 1.0)),
        with(&|options| options.loss = ssim(47, 1.5, 1.0)),
        with(&|options| options.loss = ssim(usize::MAX, 1.5, 1.0)),
        with(&|options| options.loss = ssim(5, 0.0, 1.0)),
        with(&|options| options.loss = ssim(5, 1.5, f64::NAN)),
    ];
    let program = |options: &LearnerOptions| {
        Program::new(&options.unet, options.microbatch, options.size, options.loss, options.recompute)
    };
    program(&good).unwrap();
    for options in bad {
        assert!(program(&options).is_err(), "{options:?}");
    }
    let empty = LearnerState::fresh(Arc::new(MapWeights::default()), 1);
    assert!(learner(&Device::cpu(Some(1)).unwrap(), &good, &empty).is_err());
}
