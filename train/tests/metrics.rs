//! Measures against golden values, and their properties.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use mdm_train::metrics::{
    Connectivity, Foreground, ObjectOverlap, Scores, UNLABELLED, class_iou, components, regions,
};
use proptest::prelude::*;
use support::Golden;

#[test]
fn golden_measures() {
    for golden in Golden::all("metrics") {
        for case in golden.meta["cases"].as_array().unwrap() {
            let name = case["case"].as_u64().unwrap();
            let width = case["width"].as_u64().unwrap() as usize;
            let ids = |what: &str| -> Vec<u32> {
                golden.integers(&format!("{name}.{what}")).iter().map(|&id| id as u32).collect()
            };
            let (prediction, truth) = (ids("prediction"), ids("truth"));
            let mask = |ids: &[u32]| ids.iter().map(|&id| id > 0).collect::<Vec<_>>();
            let close = |what: &str, got: f64| {
                let want = f64::from(golden.floats(&format!("{name}.{what}"))[0]);
                assert!((got - want).abs() < 1e-7, "case {name}: {what} is {got}, should be {want}");
            };
            let foreground = Foreground::new(&mask(&prediction), &mask(&truth)).unwrap();
            close("dice", foreground.dice());
            close("iou", foreground.iou());
            let objects = ObjectOverlap::new(&prediction, &truth).unwrap();
            close("object_dice", objects.object_dice());
            close("aji", objects.aji());
            for (key, connectivity) in
                [("components4", Connectivity::Four), ("components8", Connectivity::Eight)]
            {
                let found = components(&mask(&prediction), width, connectivity).unwrap();
                assert_eq!(Some(u64::from(found.count)), case[key].as_u64(), "case {name}: {key}");
            }
        }
        let ignore = golden.meta["multi"]["ignore_label"].as_u64().unwrap() as u8;
        let labels = |what: &str| -> Vec<u8> {
            golden.integers(&format!("multi.{what}")).iter().map(|&label| label as u8).collect()
        };
        let iou = class_iou(&labels("prediction"), &labels("truth"), Some(ignore)).unwrap();
        let want = golden.floats("multi.iou");
        assert_eq!(golden.meta["multi"]["classes"].as_u64(), Some(iou.per_class.len() as u64));
        assert_eq!(iou.per_class.len(), want.len());
        for (got, want) in iou.per_class.iter().zip(&want) {
            assert!((got.unwrap() - f64::from(*want)).abs() < 1e-7);
        }
        assert!((iou.mean - f64::from(golden.floats("multi.miou")[0])).abs() < 1e-7);
    }
}

#[test]
fn regions_are_apart_where_values_differ() {
    let values = [1u8, 1, 2, 0, 1, 2, 2, 0, 0, 0, 0, 1];
    let found = regions(&values, 4, Connectivity::Eight).unwrap();
    assert_eq!(found.labels, [1, 1, 2, 0, 1, 2, 2, 0, 0, 0, 0, 3]);
    assert_eq!(found.count, 3);
}

#[test]
fn numbered_objects_that_touch_are_compared_one_by_one() {
    let classes = [1, 1, 1, 1, 0, 255];
    let (two, one) = ([1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 0, 3]);
    let same = Scores::of_objects((&classes, &two), (&classes, &two)).unwrap();
    assert_eq!((same.aji, same.object_dice, same.dice), (1.0, 1.0, 1.0));
    // What is predicted where nothing is labelled does not count.
    let merged = Scores::of_objects((&[1, 1, 1, 1, 0, 1], &one), (&classes, &two)).unwrap();
    assert_eq!(merged.dice, 1.0);
    assert_eq!(merged.aji, 0.5);
    assert!(Scores::of_objects((&classes, &two[1..]), (&classes, &two)).is_err());
}

#[test]
fn nothing_and_unlabelled_pixels() {
    let one = Scores { dice: 1.0, iou: 1.0, object_dice: 1.0, aji: 1.0, mean_iou: 1.0 };
    assert_eq!(Scores::of_classes(&[0; 6], &[0; 6], 3).unwrap(), one);
    assert_eq!(Scores::of_classes(&[], &[], 0).unwrap(), one);
    assert_eq!(Scores::of_classes(&[1, 0, 2, 1], &[UNLABELLED; 4], 2).unwrap(), one);
    // Only the right column counts, and it is right.
    assert_eq!(Scores::of_classes(&[1, 0, 1, 1], &[UNLABELLED, 0, UNLABELLED, 1], 2).unwrap(), one);
    for (prediction, truth) in [([0, 1, 1, 0], [0; 4]), ([0; 4], [0, 1, 1, 0])] {
        let missed = Scores::of_classes(&prediction, &truth, 2).unwrap();
        assert_eq!((missed.dice, missed.iou, missed.object_dice, missed.aji), (0.0, 0.0, 0.0, 0.0));
        assert_eq!(missed.mean_iou, 0.25);
    }
    assert!(Scores::of_classes(&[0; 4], &[0; 6], 2).is_err());
    assert!(Scores::of_classes(&[0; 5], &[0; 5], 2).is_err());
    assert!(Scores::of_classes(&[0; 5], &[0; 5], 0).is_err());
}

#[test]
fn classes_that_do_not_occur_do_not_count() {
    let iou = class_iou(&[3, 3, 0, 5], &[3, 0, 0, 0], None).unwrap();
    assert_eq!(iou.per_class, [Some(1.0 / 3.0), None, None, Some(0.5), None, Some(0.0)]);
    assert!((iou.mean - 5.0 / 18.0).abs() < 1e-12);
    assert_eq!(iou.accuracy, 0.5);
}

#[test]
fn mean_and_deviation_over_images() {
    let score = |dice| Scores { dice, ..Scores::default() };
    let (mean, deviation) = Scores::mean_and_deviation(&[score(0.2), score(0.4), score(0.9)]);
    assert!((mean.dice - 0.5).abs() < 1e-12 && (deviation.dice - 0.13_f64.sqrt()).abs() < 1e-12);
    assert_eq!(mean.aji, 0.0);
    assert_eq!(Scores::mean_and_deviation(&[score(0.7)]), (score(0.7), Scores::default()));
    assert_eq!(Scores::mean_and_deviation(&[]), (Scores::default(), Scores::default()));
}

#[test]
fn many_objects_do_not_take_long() {
    let side = 1000;
    let grid = |offset: usize| -> Vec<u8> {
        let inside = |at: usize| (at % side + offset) % 30 < 20 && (at / side + offset) % 30 < 20;
        (0..side * side).map(|at| u8::from(inside(at))).collect()
    };
    let (prediction, truth) = (grid(0), grid(3));
    let began = Instant::now();
    let scores = Scores::of_classes(&prediction, &truth, side).unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(scores.aji > 0.4 && scores.aji < scores.iou + 0.05 && scores.object_dice > 0.6);
}

/// Components by flood fill.
fn flood(mask: &[bool], width: usize, connectivity: Connectivity) -> (Vec<u32>, u32) {
    let mut labels = vec![0; mask.len()];
    let mut count = 0;
    for start in 0..mask.len() {
        if !mask[start] || labels[start] > 0 {
            continue;
        }
        count += 1;
        let mut open = vec![start];
        labels[start] = count;
        while let Some(at) = open.pop() {
            for next in 0..mask.len() {
                let across = (at % width).abs_diff(next % width);
                let down = (at / width).abs_diff(next / width);
                let near = match connectivity {
                    Connectivity::Four => across + down == 1,
                    Connectivity::Eight => across.max(down) == 1,
                };
                if near && mask[next] && labels[next] == 0 {
                    labels[next] = count;
                    open.push(next);
                }
            }
        }
    }
    (labels, count)
}

/// Object Dice and aggregated Jaccard index by the letter of their definitions, object by object.
fn object_measures(prediction: &[u32], truth: &[u32]) -> (f64, f64) {
    let count = |of: &dyn Fn(usize) -> bool| (0..truth.len()).filter(|&at| of(at)).count() as f64;
    let objects = |image: &[u32]| {
        let mut objects: Vec<u32> = image.iter().copied().filter(|&id| id > 0).collect();
        objects.sort_unstable();
        objects.dedup();
        objects
    };
    let one_way = |a: &[u32], b: &[u32]| -> f64 {
        let total = count(&|at| a[at] > 0);
        let dice = |id: u32| {
            let area = count(&|at| a[at] == id);
            let mut best = (0.0, 0.0);
            for partner in objects(b) {
                let shared = count(&|at| a[at] == id && b[at] == partner);
                if shared > best.0 {
                    best = (shared, 2.0 * shared / (area + count(&|at| b[at] == partner)));
                }
            }
            area / total * best.1
        };
        objects(a).into_iter().map(dice).sum()
    };
    let (mut shared, mut union, mut used) = (0.0, 0.0, Vec::new());
    for id in objects(truth) {
        let mut best = (0.0, 0.0, count(&|at| truth[at] == id), 0);
        for partner in objects(prediction) {
            let both = count(&|at| truth[at] == id && prediction[at] == partner);
            let either = count(&|at| truth[at] == id || prediction[at] == partner);
            if both / either > best.0 + 1e-12 {
                best = (both / either, both, either, partner);
            }
        }
        shared += best.1;
        union += best.2;
        used.push(best.3);
    }
    union += count(&|at| prediction[at] > 0 && !used.contains(&prediction[at]));
    ((one_way(prediction, truth) + one_way(truth, prediction)) / 2.0, shared / union)
}

proptest! {
    #[test]
    fn components_are_those_of_a_flood_fill(
        width in 1_usize..9,
        pixels in proptest::collection::vec(any::<bool>(), 1..80),
        eight: bool,
    ) {
        let connectivity = if eight { Connectivity::Eight } else { Connectivity::Four };
        let mask = &pixels[..pixels.len() / width * width];
        let found = components(mask, width, connectivity).unwrap();
        prop_assert_eq!((found.labels, found.count), flood(mask, width, connectivity));
    }

    #[test]
    fn objects_are_measured_as_defined(
        pixels in proptest::collection::vec((0_u32..5, 0_u32..5), 2..60),
    ) {
        let (mut prediction, mut truth): (Vec<u32>, Vec<u32>) = pixels.into_iter().unzip();
        (prediction[0], truth[1]) = (u32::MAX, 7);
        let overlap = ObjectOverlap::new(&prediction, &truth).unwrap();
        let (dice, aji) = object_measures(&prediction, &truth);
        prop_assert!((overlap.object_dice() - dice).abs() < 1e-9, "{} {}", overlap.object_dice(), dice);
        prop_assert!((overlap.aji() - aji).abs() < 1e-9, "{} {}", overlap.aji(), aji);
    }

    #[test]
    fn scores_are_fractions_and_one_for_the_truth_itself(
        width in 1_usize..9,
        pixels in proptest::collection::vec((any::<u8>(), any::<u8>()), 1..80),
    ) {
        let used = pixels.len() / width * width;
        let (prediction, truth): (Vec<u8>, Vec<u8>) = pixels[..used].iter().copied().unzip();
        let scores = Scores::of_classes(&prediction, &truth, width).unwrap();
        for score in [scores.dice, scores.iou, scores.object_dice, scores.aji, scores.mean_iou] {
            prop_assert!((0.0..=1.0 + 1e-12).contains(&score), "{scores:?}");
        }
        let perfect = Scores::of_classes(&truth, &truth, width).unwrap();
        for score in [perfect.dice, perfect.iou, perfect.object_dice, perfect.aji, perfect.mean_iou] {
            prop_assert!((score - 1.0).abs() < 1e-12, "{perfect:?}");
        }
    }
}
