//! Heads fitted on made-up features.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Mutex;

use mdm::{CancelToken, Control, Device, Error, Progress};
use mdm_train::fit::{FitOptions, FittedHeads, Samples, fit_heads};
use proptest::prelude::*;
use support::uniform;

/// Samples whose class is decided by two channels that are large, offset, and drowned in others without meaning.
fn samples(count: usize, classes: u8) -> Samples {
    let channels = 12;
    let mut samples = Samples::new(channels).unwrap();
    let values = uniform("features", count * channels, 0);
    for (index, row) in values.chunks_exact(channels).enumerate() {
        let class = ((row[3] + 0.2 * row[7]) / 1.2 * f64::from(classes)) as u8;
        samples.push(class, index % 5 == 0, |features| {
            for (channel, (to, from)) in features.iter_mut().zip(row).enumerate() {
                *to = (100.0 + 10.0_f64.powi(channel as i32 % 4) * from) as f32;
            }
        });
    }
    samples
}

fn quick() -> FitOptions {
    FitOptions { ensemble: 3, min_steps: 150, batch: 700, ..FitOptions::default() }
}

fn cpu(threads: usize) -> Device {
    Device::cpu(Some(threads)).unwrap()
}

fn fitted(samples: &Samples, classes: usize, options: &FitOptions, threads: usize) -> FittedHeads {
    fit_heads(samples, classes, options, &cpu(threads), &Control::none()).unwrap()
}

#[test]
fn heads_learn_and_say_how_well() {
    let fitted = fitted(&samples(4000, 3), 3, &quick(), 2);
    assert_eq!(fitted.heads.len(), 3);
    let held_out = fitted.held_out.unwrap();
    assert_eq!((fitted.training.pixels, held_out.pixels), (4000, 800));
    for score in [fitted.training, held_out] {
        assert!(score.accuracy > 0.93 && score.dice > 0.95 && score.mean_iou > 0.85, "{score:?}");
    }
    for head in &fitted.heads {
        head.validate().unwrap();
        assert_eq!((head.channels(), head.hidden(), head.classes()), (12, (128, 32), 3));
    }
    assert!(fitted.heads[0] != fitted.heads[1], "heads have seeds of their own");
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let samples = samples(3000, 2);
    let options = FitOptions { batch: 1500, min_steps: 20, epochs: 4, ..quick() };
    let alone = fitted(&samples, 2, &options, 1);
    for threads in [2, 5] {
        let together = fitted(&samples, 2, &options, threads);
        assert!(alone.heads == together.heads, "{threads} threads");
        assert_eq!((alone.training, alone.held_out), (together.training, together.held_out));
    }
    let other = fitted(&samples, 2, &FitOptions { seed: 1, ..options }, 2);
    assert!(alone.heads != other.heads);
}

#[test]
fn a_few_samples_are_enough_to_try() {
    let mut few = Samples::new(2).unwrap();
    for (label, value) in [(0, -1.0), (1, 1.0), (1, 1.1)] {
        few.push(label, false, |features| features.fill(value));
    }
    let fitted = fitted(&few, 2, &FitOptions { ensemble: 1, ..FitOptions::default() }, 1);
    assert_eq!((fitted.training.accuracy, fitted.held_out), (1.0, None));
}

#[test]
fn thirty_classes_get_a_wider_head() {
    let options = FitOptions { ensemble: 1, epochs: 1, min_steps: 0, ..quick() };
    let fitted = fitted(&samples(1000, 30), 30, &options, 1);
    assert_eq!(fitted.heads[0].hidden(), (256, 128));
}

#[test]
fn balance_finds_what_is_rare() {
    // One in twenty is of class 1. Half of those look like a sixth of the others, half like the rest.
    let mut rare = Samples::new(1).unwrap();
    for index in 0..4000 {
        let (class, shown) = match index % 40 {
            0 => (1, 0.0),
            1 => (1, 1.0),
            2..8 => (0, 1.0),
            _ => (0, 0.0),
        };
        rare.push(class, false, |features| features[0] = shown);
    }
    let options = FitOptions { ensemble: 1, held_out: false, ..quick() };
    let plain = fitted(&rare, 2, &options, 1).training;
    let balanced = fitted(&rare, 2, &FitOptions { balance: true, ..options }, 1).training;
    assert_eq!(plain.dice, 0.0);
    assert_eq!(balanced.dice, 2.0 / 9.0);
}

#[test]
fn a_loss_that_does_not_improve_ends_early() {
    let mut noise = Samples::new(1).unwrap();
    for (index, value) in uniform("noise", 3000, 0).into_iter().enumerate() {
        noise.push((index % 2) as u8, false, |features| features[0] = value as f32);
    }
    let options = FitOptions { ensemble: 1, held_out: false, min_steps: 5000, patience: 30, ..quick() };
    assert!(fitted(&noise, 2, &options, 1).steps[0] < 1000);
    assert_eq!(fitted(&noise, 2, &FitOptions { patience: 0, min_steps: 200, ..options }, 1).steps, [200]);
}

#[test]
fn channels_that_never_vary_are_left_alone() {
    let mut samples = Samples::new(2).unwrap();
    for index in 0..200 {
        samples.push(index % 2, false, |row| row.copy_from_slice(&[5.0, f32::from(index % 2)]));
    }
    let fitted = fitted(&samples, 2, &FitOptions { ensemble: 1, ..quick() }, 1);
    let first = &fitted.heads[0].linear[0];
    assert!(first.weight.chunks_exact(2).all(|row| row[0] == 0.0 && row[1] != 0.0));
    assert_eq!(fitted.training.accuracy, 1.0);
}

#[test]
fn progress_is_complete_and_cancelling_stops() {
    let seen = Mutex::new(Vec::new());
    let report = |progress: Progress| seen.lock().unwrap().push(progress);
    let control = Control::none().with_progress(&report);
    let samples = samples(2000, 2);
    let options = FitOptions { patience: 20, ..quick() };
    fit_heads(&samples, 2, &options, &cpu(3), &control).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].done <= pair[1].done && pair[0].total == pair[1].total));
    assert_eq!(seen.last().unwrap().done, seen[0].total);

    let token = CancelToken::new();
    let cancel_at_ten = |progress: Progress| {
        assert!(progress.done < 20, "it went on");
        if progress.done == 10 {
            token.cancel();
        }
    };
    let control = Control::none().with_cancel(&token).with_progress(&cancel_at_ten);
    assert!(matches!(fit_heads(&samples, 2, &quick(), &cpu(2), &control), Err(Error::Cancelled)));
}

#[test]
fn what_cannot_be_fitted_is_said() {
    let fails = |samples: &Samples, classes, options: FitOptions, words: &str| {
        let error = fit_heads(samples, classes, &options, &cpu(1), &Control::none())
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    };
    let good = samples(100, 3);
    fails(&good, 2, quick(), "class 2 is not below 2");
    fails(&good, 1, quick(), "2 to 255");
    fails(&good, 3, FitOptions { ensemble: 0, ..quick() }, "ensemble");
    fails(&good, 3, FitOptions { batch: 1, ..quick() }, "batch");
    fails(&good, 3, FitOptions { epochs: 0, ..quick() }, "epochs");
    fails(&good, 3, FitOptions { fraction: f64::NAN, ..quick() }, "fraction");
    fails(&good, 3, FitOptions { learning_rate: 0.0, ..quick() }, "learning_rate");
    fails(&Samples::new(3).unwrap(), 2, quick(), "two classes");
    let mut one = Samples::new(1).unwrap();
    one.push(1, false, |features| features[0] = 1.0);
    fails(&one, 2, quick(), "two classes");
    let mut bad = Samples::new(1).unwrap();
    for label in [0, 1] {
        bad.push(label, false, |features| features[0] = f32::NAN);
    }
    fails(&bad, 2, quick(), "not finite");
    assert!(Samples::new(0).is_err());
    assert!(Samples::new(1000).unwrap().reserve(usize::MAX / 2).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_number_of_samples_and_channels_can_be_fitted(
        count in 2_usize..1300, channels in 1_usize..40, batch in 2_usize..1100, classes in 2_usize..5
    ) {
        let mut samples = Samples::new(channels).unwrap();
        for (index, row) in uniform("any", count * channels, 1).chunks_exact(channels).enumerate() {
            samples.push((index % classes) as u8, index % 3 == 0, |features| {
                features.iter_mut().zip(row).for_each(|(to, from)| *to = *from as f32);
            });
        }
        let options = FitOptions { ensemble: 2, batch, epochs: 1, min_steps: 3, ..FitOptions::default() };
        let fitted = fitted(&samples, classes, &options, 2);
        for head in &fitted.heads {
            head.validate().unwrap();
            prop_assert!(head.linear.iter().all(|layer| layer.weight.iter().all(|value| value.is_finite())));
        }
        prop_assert!((0.0..=1.0).contains(&fitted.training.accuracy));
    }
}
