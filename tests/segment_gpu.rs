//! Whole images on every GPU: the labels of the CPU, but where its two best classes are as good as equal.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::engine::gpu::GpuEngine;
use mdm::engine::{DeviceKind, DeviceOptions, Precision, WeightCache};
use mdm::model::{CorruptionKind, Metadata, Model, NoiseSchedule};
use mdm::plan::{Combine, Plan, PlanOptions};
use mdm::segment::{SegmentOptions, Segmentation, Segmenter};
use mdm::{Control, Device, Error, ImageView, PixelFormat};
use support::models::{CLASSES, OVERFLOWS, WINDOW, metadata, model, scaled_model, unet};
use support::{Seeded, gpus, open_gpus, uniform};

const HEIGHT: usize = 70;
const WIDTH: usize = 101;

/// What two engines' probabilities may differ by.
fn tolerance(precision: Precision) -> f32 {
    if precision == Precision::F16 { 2e-2 } else { 2e-4 }
}

fn pixels() -> Vec<u8> {
    uniform("pixels", HEIGHT * WIDTH * 3, 3).map(|u| (256.0 * u) as u8).collect()
}

fn segment(model: &Model, device: &Device, options: SegmentOptions) -> Segmentation {
    let options = SegmentOptions { probabilities: true, uncertainty: true, ..options };
    let mut segmenter = Segmenter::new(model, device, options).unwrap();
    let pixels = pixels();
    let image = ImageView::new(&pixels, WIDTH, HEIGHT, PixelFormat::Rgb8).unwrap();
    segmenter.segment(&image, &Control::none()).unwrap()
}

fn check(change: impl Fn(&mut Metadata), options: &SegmentOptions) {
    let model = model(change);
    let want = segment(&model, &Device::cpu(None).unwrap(), options.clone());
    let expected = want.probabilities.as_ref().unwrap();
    for (name, precision, device) in gpus() {
        let got = segment(&model, device, options.clone());
        let (tolerance, mut equal) = (tolerance(*precision), 0);
        let probabilities = got.probabilities.as_ref().unwrap();
        for pixel in 0..HEIGHT * WIDTH {
            let of = |all: &[f32]| all[pixel * CLASSES..][..CLASSES].to_vec();
            let (expected, probabilities) = (of(expected), of(probabilities));
            for (a, b) in expected.iter().zip(&probabilities) {
                assert!((a - b).abs() < tolerance, "{name} {precision:?}, pixel {pixel}: {b} for {a}");
            }
            let (label, other) = (want.labels[pixel], got.labels[pixel]);
            let gap = expected[usize::from(label)] - expected[usize::from(other)];
            assert!(
                gap < 2.0 * tolerance,
                "{name} {precision:?}, pixel {pixel}: {other} for {label}, {gap} apart"
            );
            equal += usize::from(label == other);
        }
        assert!(equal * 100 >= HEIGHT * WIDTH * 98, "{name} {precision:?}: {equal} pixels are equal");
        let uncertain = want.uncertainty.as_ref().unwrap().iter().zip(got.uncertainty.as_ref().unwrap());
        for (a, b) in uncertain {
            assert!((a - b).abs() < tolerance, "{name} {precision:?}: uncertainty {b} for {a}");
        }
    }
}

#[test]
fn masked_windows() {
    check(|_| (), &SegmentOptions::default());
}

#[test]
fn noisy_windows_and_normalised_features_in_batches() {
    let noisy = |metadata: &mut Metadata| {
        metadata.corruption.kind = CorruptionKind::Gaussian { schedule: NoiseSchedule::Linear };
        metadata.features.normalise = true;
        metadata.features.timesteps = vec![10];
    };
    // Batches begin in one row of windows and end in the next.
    check(noisy, &SegmentOptions { batch: Some(3), ..SegmentOptions::default() });
}

#[test]
fn batches_larger_than_the_image() {
    // What is done by default depends on the device: 16 windows at a time on hardware.
    check(|_| (), &SegmentOptions { batch: Some(64), ..SegmentOptions::default() });
}

#[test]
fn a_device_with_little_memory_takes_smaller_batches() {
    let model = model(|_| ());
    let options = |batch| SegmentOptions { batch: Some(batch), ..SegmentOptions::default() };
    for (number, info) in Device::list().unwrap().iter().enumerate() {
        if info.kind == DeviceKind::Cpu {
            continue;
        }
        let open = |memory| {
            let options = DeviceOptions { memory, precision: Precision::F32, ..DeviceOptions::default() };
            Device::select(&number.to_string(), &options).unwrap()
        };
        let unlimited = open(None);
        let want = segment(&model, &unlimited, options(1));
        // More than a batch of two takes, less than one of twelve.
        let budget = needed(&unlimited, 2) * 5 / 4;
        assert!(needed(&unlimited, 12) > budget);
        let device = open(Some(budget));
        let got = segment(&model, &device, options(12));
        let pairs = want.probabilities.as_ref().unwrap().iter().zip(got.probabilities.as_ref().unwrap());
        for (a, b) in pairs {
            assert!((a - b).abs() < tolerance(Precision::F32), "{b} for {a}");
        }
    }
}

#[test]
fn windows_from_several_buffers_are_blended_all_the_same() {
    let model = model(|_| ());
    let options = SegmentOptions { batch: Some(1), probabilities: true, ..SegmentOptions::default() };
    let pixels = pixels();
    let image = ImageView::new(&pixels, WIDTH, HEIGHT, PixelFormat::Rgb8).unwrap();
    for (number, info) in Device::list().unwrap().iter().enumerate() {
        if info.kind == DeviceKind::Cpu {
            continue;
        }
        let device = Device::select(&number.to_string(), &DeviceOptions::default()).unwrap();
        let engine = device.engine().as_any().downcast_ref::<GpuEngine>().unwrap();
        let segment = || {
            let mut segmenter = Segmenter::new(&model, &device, options.clone())?;
            segmenter.segment(&image, &Control::none())
        };
        let whole = segment().unwrap();
        // The smallest segments that hold the largest map.
        let divided = (12..).find_map(|bits| {
            engine.reopen_with_segments(1 << bits).unwrap();
            match segment() {
                Err(Error::OutOfMemory(_)) => None,
                other => Some(other.unwrap()),
            }
        });
        assert_eq!(divided.unwrap().probabilities, whole.probabilities);
    }
}

#[test]
fn a_device_that_was_lost_is_opened_by_the_next_call() {
    let model = model(|_| ());
    let pixels = pixels();
    let image = ImageView::new(&pixels, WIDTH, HEIGHT, PixelFormat::Rgb8).unwrap();
    // Not those that other tests use at the same time.
    for (name, precision, device) in open_gpus() {
        let mut segmenter = Segmenter::new(&model, &device, SegmentOptions::default()).unwrap();
        let before = segmenter.segment(&image, &Control::none()).unwrap();
        let engine = device.engine().as_any().downcast_ref::<GpuEngine>().unwrap();
        // As when it goes while the last rows are read.
        engine.context().unwrap().give_up("a test");
        let after = segmenter.segment(&image, &Control::none()).unwrap();
        assert!(before.labels == after.labels, "{name} {precision:?}");
    }
}

#[test]
fn weights_that_f16_cannot_hold_are_an_error() {
    let model = scaled_model("input_blocks.1.0.in_layers.2.weight", 1e7);
    let pixels = pixels();
    let image = ImageView::new(&pixels, WIDTH, HEIGHT, PixelFormat::Rgb8).unwrap();
    for (name, precision, device) in gpus() {
        let mut segmenter = Segmenter::new(&model, device, SegmentOptions::default()).unwrap();
        match (precision, segmenter.segment(&image, &Control::none())) {
            (Precision::F16, Err(Error::Tensor { reason, .. })) => {
                assert!(reason.contains("f16 cannot hold"), "{name}: {reason}");
            }
            (Precision::F16, other) => panic!("{name}: {:?}", other.map(|result| result.report)),
            (_, result) => assert!(result.is_ok(), "{name}: {:?}", result.err()),
        }
    }
}

#[test]
fn an_overflow_is_an_error_instead_of_labels() {
    let pixels = pixels();
    let image = ImageView::new(&pixels, WIDTH, HEIGHT, PixelFormat::Rgb8).unwrap();
    for (name, precision, device) in gpus() {
        for (weight, in_f16, in_f32) in OVERFLOWS {
            let model = scaled_model(weight, if *precision == Precision::F16 { in_f16 } else { in_f32 });
            for combine in [Combine::Mean, Combine::Vote] {
                let options = SegmentOptions { combine, ..SegmentOptions::default() };
                let mut segmenter = Segmenter::new(&model, device, options).unwrap();
                match segmenter.segment(&image, &Control::none()) {
                    Err(Error::Tensor { name, .. }) if name == "probabilities" => {}
                    other => {
                        panic!("{name} {precision:?}, {weight}: {:?}", other.map(|result| result.report))
                    }
                }
            }
        }
    }
}

/// Bytes on the device for batches of that size.
fn needed(device: &Device, batch: usize) -> u64 {
    let metadata = metadata();
    let options = PlanOptions {
        batch,
        height: WINDOW,
        width: WINDOW,
        timestep_slots: metadata.features.timesteps.len(),
        corruption: None,
        blocks: metadata.features.blocks,
        image: false,
        head: None,
    };
    let plan = Plan::new(&unet(), options).unwrap();
    let weights = Seeded::new(&plan, 0);
    let network = device.engine().prepare(plan.clone(), &weights, &WeightCache::default()).unwrap();
    network.device_bytes()
}
