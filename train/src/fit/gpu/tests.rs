//! Heads on every GPU of the machine, software ones included, beside those of the host.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use mdm::engine::{DeviceKind, DeviceOptions};
use mdm::{CancelToken, Control, Device, Error, Progress};

use crate::fit::ensemble::{FittedHeads, fit_parts, refine_parts};
use crate::fit::options::{FitOptions, RefineOptions};
use crate::fit::parameters::{Layout, Shape};
use crate::fit::place::Place;
use crate::fit::random::Random;
use crate::fit::samples::{Parts, Samples};
use crate::fit::standardise::Standardisation;
use crate::fit::state::HeadState;
use crate::fit::tests::{error, gpus, tensors, with_trainer};
use crate::support::uniform;

/// Samples of several parts whose classes can mostly be told apart, with channels of all sizes, far from zero.
fn made_up(count: usize, channels: usize, classes: usize) -> Vec<Samples> {
    let mut parts = Vec::new();
    let values = uniform("made-up features", count * channels, 7);
    for (index, row) in values.chunks_exact(channels).enumerate() {
        if index % (count / 3).max(1) == 0 {
            parts.push(Samples::new(channels).unwrap());
        }
        let class = (row[0] * classes as f64) as usize;
        parts.last_mut().unwrap().push(class as u8, index % 5 == 0, |features| {
            for (channel, (to, from)) in features.iter_mut().zip(row).enumerate() {
                *to = (100.0 + 10.0_f64.powi(channel as i32 % 4) * from) as f32;
            }
        });
    }
    parts
}

fn numbered(parts: &[Samples]) -> Parts<'_> {
    let mut all = Parts::default();
    parts.iter().for_each(|samples| all.push(samples, None));
    all
}

#[test]
fn a_gpu_takes_the_steps_of_the_host() {
    let devices = gpus();
    // Channels, classes, samples of a batch, bytes of a page.
    let cases = [
        (1, 2, 2, usize::MAX),
        (3, 2, 7, 40),
        (6, 5, 64, 1000),
        (17, 2, 65, usize::MAX),
        (30, 40, 129, 10_000),
        (65, 29, 200, usize::MAX),
        (127, 2, 300, 100_000),
        (64, 3, 1000, usize::MAX),
        (288, 2, 513, usize::MAX),
        (5, 3, 9001, usize::MAX),
    ];
    for (channels, classes, batch, page) in cases {
        let parts = made_up(700, channels, classes);
        let samples = numbered(&parts);
        let shape = Shape::new(channels, classes);
        let all: Vec<u32> = (0..samples.len() as u32).collect();
        let mut random = Random::new(3, 4);
        let parameters = Layout::new(&shape).initial(&mut random);
        let state = HeadState::new(shape, Standardisation::of(&samples, &all), parameters);
        let class_weights: Vec<f32> = (0..classes).map(|class| 1.0 + class as f32 / classes as f32).collect();
        let rates: Vec<f64> = (0..20).map(|step| 1e-3 * (1.0 - f64::from(step) / 20.0)).collect();
        let picked: Vec<u32> = (0..20 * batch).map(|_| random.below(samples.len() as u32)).collect();
        let run = |device, cuts: &[Range<usize>]| {
            let how = (state.clone(), batch, class_weights.clone(), page);
            with_trainer(device, &samples, how, |trainer| {
                let (mut losses, mut heads) = (Vec::new(), Vec::new());
                for steps in cuts {
                    let picked = &picked[steps.start * batch..steps.end * batch];
                    let more = trainer.steps(picked, &rates[steps.clone()], &Control::none()).unwrap();
                    losses.extend(more.into_iter().map(|loss| loss as f32));
                    heads.push(trainer.head().unwrap());
                }
                (losses, heads)
            })
        };
        // One at a time, few, and more than are handed over at once.
        let cuts = [0..1, 1..3, 3..20];
        let (losses, heads) = run(None, &cuts);
        for device in &devices {
            let case =
                format!("{}: {channels} channels, {classes} classes, batch of {batch}", device.info().name);
            let (own_losses, own_heads) = run(Some(device), &cuts);
            // Two samples are normalised to 1 and -1 whatever they are: what is left of most gradients is rounding, which Adam
            // makes steps of.
            let compared = if batch == 2 { 1 } else { cuts.len() };
            let steps = cuts[compared - 1].end;
            let wrong = error(&own_losses[..steps], &losses[..steps]);
            assert!(wrong < 1e-6, "{case}: losses are wrong by {wrong:.1e}");
            for (own, head) in own_heads.iter().zip(&heads).take(compared) {
                for ((name, got), (_, want)) in tensors(own).into_iter().zip(tensors(head)) {
                    let wrong = error(got, want);
                    assert!(wrong < 1e-4, "{case}: {name} is wrong by {wrong:.1e}");
                }
            }
            // Neither chance nor how many steps are handed over at once changes a bit.
            let (again_losses, again_heads) = run(Some(device), &[0..10, 10..20]);
            assert!(again_losses == own_losses && again_heads.last() == own_heads.last(), "{case}");
        }
    }
}

fn quick() -> FitOptions {
    FitOptions { ensemble: 2, min_steps: 100, batch: 300, ..FitOptions::default() }
}

fn host() -> Device {
    Device::cpu(None).unwrap()
}

fn fitted(samples: &Parts<'_>, classes: usize, options: &FitOptions, place: &Place<'_>) -> FittedHeads {
    fit_parts(samples, classes, options, place, &Control::none()).unwrap()
}

#[test]
fn heads_are_as_good_as_those_of_the_host() {
    let parts = made_up(3000, 20, 3);
    let samples = numbered(&parts);
    let by_host = fitted(&samples, 3, &quick(), &Place::of(&host()));
    assert_eq!((&by_host.device.gpu, &by_host.device.fallback), (&None, &None));
    for device in gpus() {
        let on = fitted(&samples, 3, &quick(), &Place::even_software(&device));
        assert_eq!(on.device.gpu.as_ref(), Some(&device.info().name));
        assert_eq!((on.heads.len(), &on.steps), (2, &vec![100, 100]));
        let pairs = [(on.training, by_host.training), (on.held_out.unwrap(), by_host.held_out.unwrap())];
        for (own, other) in pairs {
            assert!(
                own.accuracy > 0.95 && (own.accuracy - other.accuracy).abs() < 0.01,
                "{own:?}, {other:?}"
            );
        }
        for (own, other) in on.losses.iter().zip(&by_host.losses) {
            assert!((own / other - 1.0).abs() < 0.02, "{own}, {other}");
        }
        let again = fitted(&samples, 3, &quick(), &Place::even_software(&device));
        assert!(again.heads == on.heads && again.losses == on.losses, "the same seed, other heads");
    }
}

#[test]
fn refinement_goes_on_with_the_heads() {
    let parts = made_up(900, 11, 2);
    let samples = numbered(&parts);
    let heads = fitted(&samples, 2, &quick(), &Place::of(&host())).heads;
    let refine = RefineOptions { steps: 20, batch: 128, learning_rate: 3e-4 };
    let fresh: Vec<u32> = (100..150).collect();
    let refined = |place: &Place<'_>| {
        let options = quick();
        let how = (&options, &refine, 1);
        refine_parts(&heads, &samples, &fresh, 2, how, place, &Control::none()).unwrap()
    };
    let by_host = refined(&Place::of(&host()));
    for device in gpus() {
        let on = refined(&Place::even_software(&device));
        assert!(on.device.gpu.is_some() && on.steps == [20, 20]);
        for ((own, other), start) in on.heads.iter().zip(&by_host.heads).zip(&heads) {
            assert!(own != start);
            for ((name, got), (_, want)) in tensors(own).into_iter().zip(tensors(other)) {
                let wrong = error(got, want);
                assert!(wrong < 1e-3, "{name} is wrong by {wrong:.1e}");
            }
        }
    }
}

#[test]
fn a_loss_that_does_not_improve_ends_early() {
    let mut noise = Samples::new(1).unwrap();
    for (index, value) in uniform("noise", 3000, 0).into_iter().enumerate() {
        noise.push((index % 2) as u8, false, |features| features[0] = value as f32);
    }
    let options = FitOptions { held_out: false, min_steps: 5000, patience: 30, ..quick() };
    for device in gpus() {
        let on = fitted(&Parts::from(&noise), 2, &options, &Place::even_software(&device));
        assert!(on.steps.iter().all(|&steps| steps < 1000 && steps % 16 == 0), "{:?}", on.steps);
    }
}

#[test]
fn what_cannot_be_fitted_is_said() {
    let fails = |samples: &Samples, place: &Place<'_>| {
        let options = FitOptions { standardise: false, ..quick() };
        let result = fit_parts(&samples.into(), 2, &options, place, &Control::none());
        result.map(drop).unwrap_err().to_string()
    };
    let of = |value: f32| {
        let mut samples = Samples::new(1).unwrap();
        for label in [0, 1, 0, 1] {
            samples.push(label, false, |features| features[0] = value * f32::from(label + 1));
        }
        samples
    };
    for device in gpus() {
        for (value, words) in [(f32::NAN, "not finite"), (1e38, "beyond all numbers")] {
            let (on_host, on) =
                (fails(&of(value), &Place::of(&host())), fails(&of(value), &Place::even_software(&device)));
            assert!(on.contains(words) && on == on_host, "{on} / {on_host}");
        }
    }
}

#[test]
fn a_cancelled_fit_stops() {
    let parts = made_up(500, 4, 2);
    let samples = numbered(&parts);
    for device in gpus() {
        let (token, most) = (CancelToken::new(), AtomicU64::new(0));
        let cancel_at_ten = |progress: Progress| {
            most.fetch_max(progress.done, Ordering::Relaxed);
            if progress.done == 10 {
                token.cancel();
            }
        };
        let control = Control::none().with_cancel(&token).with_progress(&cancel_at_ten);
        let result = fit_parts(&samples, 2, &quick(), &Place::even_software(&device), &control);
        assert!(matches!(result, Err(Error::Cancelled)));
        assert_eq!(most.into_inner(), 10);
    }
}

#[test]
fn the_host_steps_in_and_says_why() {
    let parts = made_up(2000, 50, 2);
    let samples = numbered(&parts);
    let options = FitOptions { min_steps: 20, epochs: 1, ..quick() };
    let by_host = fitted(&samples, 2, &options, &Place::of(&host()));
    for device in gpus() {
        let name = &device.info().name;
        if device.info().kind == DeviceKind::SoftwareGpu {
            let on = fitted(&samples, 2, &options, &Place::of(&device));
            assert!(on.device.gpu.is_none() && on.heads == by_host.heads);
            assert!(on.device.fallback.unwrap().contains(&format!("{name} is software")));
        }
        // Less than the samples take.
        let little = DeviceOptions { memory: Some(300_000), ..DeviceOptions::default() };
        let small = Device::select(name, &little).unwrap();
        let on = fitted(&samples, 2, &options, &Place::even_software(&small));
        assert!(on.device.gpu.is_none() && on.heads == by_host.heads);
        assert!(on.device.fallback.unwrap().contains("device memory"));
    }
}
