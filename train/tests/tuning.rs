//! Whole networks that follow labels.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod pictures;
#[path = "../../tests/support/mod.rs"]
mod shared;
mod support;

use std::sync::Arc;

use mdm::engine::Precision;
use mdm::model::{Class, FeatureConfig, MapWeights, UnetConfig};
use mdm::segment::{FeatureOptions, SegmentOptions, Segmenter};
use mdm::{CancelToken, Control, Device, Error};
use mdm_train::engine::learner;
use mdm_train::fit::{FitOptions, HeadFitter, LabelledImage};
use mdm_train::learner::{Learner, LearnerOptions, LearnerState};
use mdm_train::loss::Loss;
use mdm_train::metrics::{Scores, UNLABELLED};
use mdm_train::tune::{Augmentation, Length, PixelLoss, TuneOptions, TuneReport, tune};
use pictures::{Picture, backbone};
use support::{uniform, weight};

/// Every device of this machine, and whether it computes in f16.
fn devices() -> Vec<(Device, bool)> {
    let gpus =
        shared::gpus().iter().map(|(_, precision, device)| (device.clone(), *precision == Precision::F16));
    [(Device::cpu(None).unwrap(), false)].into_iter().chain(gpus).collect()
}

const SIDE: usize = 16;
const BATCH: usize = 2;

fn learner_options() -> LearnerOptions {
    LearnerOptions {
        unet: UnetConfig {
            image_size: SIDE,
            model_channels: 32,
            channel_mult: vec![1, 2],
            num_res_blocks: 1,
            attention_ds: vec![2],
            num_head_channels: Some(32),
            ..UnetConfig::mdm_paper()
        },
        microbatch: BATCH,
        size: SIDE,
        loss: Loss::MeanSquare,
        recompute: false,
        ema_rates: Vec::new(),
        blocks: vec![0, 1, 2],
    }
}

fn parameters(unet: &UnetConfig, change: impl Fn(&str, usize) -> f32) -> LearnerState {
    let mut map = MapWeights::default();
    for (name, shape) in unet.parameters() {
        let values = weight(&name, &shape, 1);
        let changed = values.iter().enumerate().map(|(index, value)| value + change(&name, index));
        map.insert(&name, &shape, changed.collect());
    }
    LearnerState::fresh(Arc::new(map), 0)
}

/// The sum of all activations, each times a number of its own, and those numbers.
fn weighted(learner: &mut dyn Learner) -> (f64, Vec<Vec<f32>>) {
    let input: Vec<f32> = (0..BATCH * SIDE * SIDE * 3).map(|i| (i as f32 * 0.05).sin()).collect();
    let activations = learner.activations(&input, &[50.0, 300.0], &Control::none()).unwrap();
    let mut sum = 0.0;
    let numbers = activations.iter().enumerate().map(|(block, values)| {
        let numbers = uniform("numbers", values.len(), block as u64);
        let numbers: Vec<f32> =
            numbers.iter().map(|u| 1e-3 * (2.0 * u - 1.0) as f32 / (values.len() as f32).sqrt()).collect();
        sum += values.iter().zip(&numbers).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        numbers
    });
    let numbers = numbers.collect();
    (sum, numbers)
}

#[test]
fn gradients_of_blocks_agree_with_differences() {
    let options = learner_options();
    for (device, half) in devices() {
        let mut own = learner(&device, &options, &parameters(&options.unet, |_, _| 0.0)).unwrap();
        let (_, numbers) = weighted(&mut *own);
        // Added up over two passes.
        own.propagate(&numbers, &Control::none()).unwrap();
        let (_, numbers) = weighted(&mut *own);
        own.propagate(&numbers, &Control::none()).unwrap();
        let names = own.parameters().to_vec();
        assert!(!names.iter().any(|name| name.starts_with("out.") || name.starts_with("output_blocks.3.")));
        let mut gradients = Vec::new();
        own.gradients(&mut |flat| {
            gradients = flat.to_vec();
            Ok(())
        })
        .unwrap();
        let shapes: std::collections::HashMap<String, Vec<usize>> =
            options.unet.parameters().into_iter().collect();
        for salt in [10, 11] {
            let directions: std::collections::HashMap<&String, Vec<f64>> =
                names.iter().map(|name| (name, uniform(name, shapes[name].iter().product(), salt))).collect();
            let step = 1e-3;
            let moved = |sign: f64| {
                let change = |name: &str, index: usize| {
                    let values = directions.iter().find(|(own, _)| own.as_str() == name);
                    values.map_or(0.0, |(_, values)| (sign * step * (values[index] - 0.5)) as f32)
                };
                let state = parameters(&options.unet, change);
                weighted(&mut *learner(&device, &options, &state).unwrap()).0
            };
            let differences = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            let mut at = 0;
            let mut slope = 0.0;
            for name in &names {
                for value in &directions[name] {
                    slope += (value - 0.5) * f64::from(gradients[at]) / 2.0;
                    at += 1;
                }
            }
            assert_eq!(at, gradients.len());
            let error = (slope - differences).abs() / differences.abs();
            let name = &device.info().name;
            assert!(error < if half { 0.2 } else { 2e-2 }, "{name}: {slope} for {differences}");
        }
    }
}

#[test]
fn learners_of_images_and_of_blocks_are_told_apart() {
    let options = learner_options();
    for (device, _) in devices() {
        let state = parameters(&options.unet, |_, _| 0.0);
        let input = vec![0.0; BATCH * SIDE * SIDE * 3];
        let batch = mdm_train::learner::Microbatch { input: &input, target: &input, timesteps: &[1.0, 2.0] };
        let mut blocks = learner(&device, &options, &state).unwrap();
        assert!(matches!(blocks.accumulate(&batch, 1.0, &Control::none()), Err(Error::Invalid { .. })));
        assert!(matches!(blocks.propagate(&[], &Control::none()), Err(Error::Invalid { .. })));
        let short = vec![vec![0.0; 3]; 3];
        assert!(matches!(blocks.propagate(&short, &Control::none()), Err(Error::Invalid { .. })));
        let images = LearnerOptions { blocks: Vec::new(), ..options.clone() };
        let mut images = learner(&device, &images, &state).unwrap();
        assert!(matches!(
            images.propagate(std::slice::from_ref(&input), &Control::none()),
            Err(Error::Invalid { .. })
        ));
        images.accumulate(&batch, 1.0, &Control::none()).unwrap();
    }
}

fn quick(steps: u64) -> TuneOptions {
    TuneOptions {
        length: Length::Steps(steps),
        batch: 4,
        size: 32,
        learning_rate: 1e-3,
        ..TuneOptions::default()
    }
}

fn tuned(pictures: &[Picture], device: &Device, options: &TuneOptions) -> mdm::Result<TuneReport> {
    let images: Vec<LabelledImage<'_>> = pictures.iter().map(Picture::labelled).collect();
    tune(&backbone(None), device, &mut &images[..], Vec::new(), options, &mut |_| (), &Control::none())
}

fn dice(report: &TuneReport, picture: &Picture) -> f64 {
    let device = Device::cpu(Some(2)).unwrap();
    let mut segmenter = Segmenter::new(&report.model, &device, SegmentOptions::default()).unwrap();
    let result = segmenter.segment(&picture.view(), &Control::none()).unwrap();
    Scores::of_classes(&result.labels, &picture.labels, picture.width).unwrap().dice
}

#[test]
fn a_network_learns_from_few_labels_with_every_loss() {
    let pictures = ["a", "b"].map(|name| Picture::new(name, 50, 40));
    let unseen = Picture::new("c", 50, 40);
    for loss in [PixelLoss::CrossEntropy, PixelLoss::CrossEntropyAndDice, PixelLoss::BoundaryWeighted] {
        let options = TuneOptions { loss, balance: true, ..quick(120) };
        let report = tuned(&pictures, &Device::cpu(Some(2)).unwrap(), &options).unwrap();
        assert_eq!(report.last.step, 120);
        let dice = dice(&report, &unseen);
        assert!(dice > 0.9, "{loss:?}: Dice {dice}");
    }
}

#[test]
fn gpus_tune_as_well() {
    let pictures = ["a", "b"].map(|name| Picture::new(name, 50, 40));
    for (device, _) in devices().into_iter().skip(1) {
        let options = TuneOptions { batch: 2, loss: PixelLoss::CrossEntropy, ..quick(25) };
        let report = tuned(&pictures, &device, &options).unwrap();
        let (accuracy, name) = (report.last.accuracy, &device.info().name);
        assert!(report.last.loss < 0.5 && accuracy > 0.75, "{name}: {:?}", report.last);
        assert!(dice(&report, &pictures[0]) > 0.7, "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_network_whatever_the_threads() {
    let pictures = ["a"].map(|name| Picture::new(name, 50, 40));
    let run = |threads: usize, seed: u64| {
        let options = TuneOptions { seed, ..quick(4) };
        let report = tuned(&pictures, &Device::cpu(Some(threads)).unwrap(), &options).unwrap();
        (report.model.fingerprint().unwrap(), report.model.heads().to_vec())
    };
    let first = run(1, 0);
    assert!(first == run(2, 0));
    assert!(first.0 != run(1, 1).0);
}

#[test]
fn every_fourth_image_can_be_held_out() {
    let pictures = ["a", "b", "c", "d"].map(|name| Picture::new(name, 50, 40));
    let options = TuneOptions { held_out: true, ..quick(30) };
    let report = tuned(&pictures, &Device::cpu(Some(2)).unwrap(), &options).unwrap();
    let (scores, names) = report.held_out.unwrap();
    assert_eq!(names, ["d"]);
    assert!(scores.dice > 0.8, "{scores:?}");
}

#[test]
fn partial_labels_are_enough() {
    let mut pictures = ["a", "b"].map(|name| Picture::new(name, 50, 40));
    let unseen = Picture::new("c", 50, 40);
    for picture in &mut pictures {
        let width = picture.width;
        for (at, label) in picture.labels.iter_mut().enumerate() {
            if at / width % 8 > 1 {
                *label = UNLABELLED;
            }
        }
    }
    let report = tuned(&pictures, &Device::cpu(Some(2)).unwrap(), &quick(120)).unwrap();
    let dice = dice(&report, &unseen);
    assert!(dice > 0.85, "Dice {dice}");
}

#[test]
fn mistakes_are_said() {
    let device = Device::cpu(Some(1)).unwrap();
    let picture = Picture::new("a", 50, 40);
    let fails = |pictures: &[Picture], options: &TuneOptions, words: &str| {
        let error = tuned(pictures, &device, options).err().unwrap();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let of = |labels: Vec<u8>| Picture { labels, ..Picture::new("a", 50, 40) };
    let count = picture.labels.len();
    fails(&[of(vec![UNLABELLED; count])], &quick(1), "no pixel is labelled");
    fails(&[of(vec![1; count])], &quick(1), "only class 1");
    fails(&[of(vec![1; 5])], &quick(1), "labels");
    let all = [Picture::new("a", 50, 40)];
    for (options, words) in [
        (quick(0), "steps"),
        (TuneOptions { batch: 0, ..quick(1) }, "batch"),
        (TuneOptions { size: 33, ..quick(1) }, "size"),
        (TuneOptions { learning_rate: 0.0, ..quick(1) }, "learning rate"),
        (TuneOptions { head_learning_rate: f64::NAN, ..quick(1) }, "learning rate"),
        (TuneOptions { weight_decay: -1.0, ..quick(1) }, "weight decay"),
        (TuneOptions { clip: Some(0.0), ..quick(1) }, "clip"),
        (
            TuneOptions {
                features: Some(FeatureConfig { timesteps: vec![], blocks: vec![1], normalise: false }),
                ..quick(1)
            },
            "timestep",
        ),
        (
            TuneOptions { augmentation: Augmentation { scale: 3.0, ..Augmentation::default() }, ..quick(1) },
            "augmentation",
        ),
    ] {
        fails(&all, &options, words);
    }
    let images = [all[0].labelled()];
    let token = CancelToken::new();
    let mut stop = |_| token.cancel();
    let result = tune(
        &backbone(None),
        &device,
        &mut &images[..],
        Class::numbered(2),
        &quick(1000),
        &mut stop,
        &Control::none().with_cancel(&token),
    );
    assert!(matches!(result.err(), Some(Error::Cancelled)));
}

#[test]
fn a_fitter_tunes_on_all_that_it_was_told() {
    let pictures = ["a", "b"].map(|name| Picture::new(name, 50, 40));
    let (model, device) = (backbone(Some(1.0)), Device::cpu(Some(2)).unwrap());
    let classes = vec![
        Class { name: "ground".into(), colour: [1, 2, 3] },
        Class { name: "disc".into(), colour: [250, 2, 3] },
    ];
    let features = FeatureOptions {
        microns_per_pixel: Some(0.8),
        range: Some(mdm::IntensityRange::Percentile { low: 2.0, high: 98.0 }),
        ..FeatureOptions::default()
    };
    let mut options = TuneOptions {
        microns_per_pixel: features.microns_per_pixel,
        range: features.range.clone(),
        ..quick(3)
    };
    let images: Vec<LabelledImage<'_>> = pictures.iter().map(Picture::labelled).collect();
    let expected =
        tune(&model, &device, &mut &images[..], classes.clone(), &options, &mut |_| (), &Control::none())
            .unwrap();

    // What is sampled for heads does not matter, nor what the options say of what the fitter knows.
    let fitting = FitOptions { few: 50, fraction: 0.1, ensemble: 1, ..FitOptions::default() };
    let mut fitter = HeadFitter::new(&model, &device, classes, features, fitting).unwrap();
    for image in &images {
        fitter.set(image, &Control::none()).unwrap();
    }
    fitter.set_image("no labels", &Picture::new("c", 30, 30).view()).unwrap();
    fitter.fit(&Control::none()).unwrap();
    let heads = fitter.heads().to_vec();
    options.microns_per_pixel = Some(7.0);
    options.range = None;
    let mut steps = Vec::new();
    let found = fitter.tune(&options, &mut |now| steps.push((now.step, now.done)), &Control::none()).unwrap();
    assert_eq!(steps, [(1, 1.0 / 3.0), (2, 2.0 / 3.0), (3, 1.0)]);
    assert_eq!(found.unlabelled_images, ["no labels"]);
    assert_eq!((&found.class_pixels, &found.warnings), (&expected.class_pixels, &expected.warnings));
    assert_eq!(found.model.metadata(), expected.model.metadata());
    assert_eq!(found.model.fingerprint().unwrap(), expected.model.fingerprint().unwrap());
    assert!(found.model.heads() == expected.model.heads());
    assert!(fitter.heads() == heads);
    assert!(found.model.fingerprint().unwrap() != fitter.model().unwrap().fingerprint().unwrap());
}

#[test]
fn a_fitter_says_what_keeps_it_from_tuning() {
    let picture = Picture::new("a", 50, 40);
    let (model, device) = (backbone(None), Device::cpu(Some(1)).unwrap());
    let features = FeatureOptions::default();
    let mut fitter =
        HeadFitter::new(&model, &device, Class::numbered(2), features, FitOptions::default()).unwrap();
    let fails = |fitter: &mut HeadFitter, options: &TuneOptions, words: &str| {
        let error = fitter.tune(options, &mut |_| (), &Control::none()).err().unwrap();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    fails(&mut fitter, &quick(1), "no pixel is labelled");
    fails(&mut fitter, &TuneOptions { size: 33, ..quick(1) }, "size");
    fitter.set(&picture.labelled(), &Control::none()).unwrap();
    let size = (picture.height, picture.width);
    fitter.set_labels("a", &[1; 2000], size, &Control::none()).unwrap();
    fails(&mut fitter, &quick(1), "only class 1");
    // A failing call keeps the labels that were there.
    fitter.set_labels("a", &[2; 2000], size, &Control::none()).unwrap_err();
    fails(&mut fitter, &quick(1), "only class 1");
    fitter.set_labels("a", &picture.labels, size, &Control::none()).unwrap();
    // Also a cancellation in the last report is heard.
    let token = CancelToken::new();
    let control = Control::none().with_cancel(&token);
    let mut last = |now: mdm_train::tune::TuneProgress| {
        if now.done == 1.0 {
            token.cancel();
        }
    };
    assert!(matches!(fitter.tune(&quick(2), &mut last, &control), Err(Error::Cancelled)));
}

#[test]
fn crops_are_as_large_as_the_windows_unless_someone_says_otherwise() {
    assert_eq!(TuneOptions::for_model(&backbone(None)).size, pictures::WINDOW);
}
