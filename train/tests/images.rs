//! From labelled images to a segmentation, with a small random backbone.

#![allow(clippy::unwrap_used)]

mod pictures;
mod support;

use std::sync::Mutex;

use mdm::model::{Class, Model};
use mdm::segment::{FeatureOptions, SegmentOptions, Segmenter};
use mdm::{Control, Device, Error, Progress};
use mdm_train::fit::{FitOptions, FitReport, HeldOutPart, LabelledImage, collect, fit};
use mdm_train::metrics::{Scores, UNLABELLED};
use pictures::{Picture, backbone};

fn quick() -> FitOptions {
    FitOptions { ensemble: 2, min_steps: 150, epochs: 2, batch: 1024, ..FitOptions::default() }
}

fn fitted(model: &Model, pictures: &[Picture], options: &FitOptions) -> mdm::Result<FitReport> {
    let images: Vec<_> = pictures.iter().map(Picture::labelled).collect();
    let device = Device::cpu(Some(2)).unwrap();
    let features = FeatureOptions::default();
    fit(model, &device, &mut &images[..], Vec::new(), &features, options, &Control::none())
}

fn dice(model: &Model, picture: &Picture) -> f64 {
    let device = Device::cpu(Some(2)).unwrap();
    let mut segmenter = Segmenter::new(model, &device, SegmentOptions::default()).unwrap();
    let result = segmenter.segment(&picture.view(), &Control::none()).unwrap();
    Scores::of_classes(&result.labels, &picture.labels, picture.width).unwrap().dice
}

#[test]
fn discs_are_found_in_a_new_image() {
    let pictures = ["a", "b", "c", "d"].map(|name| Picture::new(name, 60, 75));
    let report = fitted(&backbone(None), &pictures, &quick()).unwrap();
    assert_eq!(report.held_out_part, HeldOutPart::Images(vec!["d".to_owned()]));
    let held_out = report.held_out.unwrap();
    assert!(report.training.dice > 0.95 && held_out.dice > 0.9, "{:?} {held_out:?}", report.training);
    assert_eq!(report.model.metadata().classes, Class::numbered(2));
    assert_eq!(report.model.heads().len(), 2);
    assert_eq!(report.class_pixels.iter().sum::<u64>(), 4 * 60 * 75);
    // A quarter of the 32 x 32 pixels of 3 x 3 windows an image, but at least 1024: all of them.
    assert_eq!(report.samples, 4 * 3 * 3 * 1024);
    let found = dice(&report.model, &Picture::new("new", 50, 100));
    assert!(found > 0.9, "Dice {found}");
}

#[test]
fn a_few_scribbles_on_one_image_are_enough() {
    let mut picture = Picture::new("scribbled", 64, 64);
    for (at, label) in picture.labels.iter_mut().enumerate() {
        if at / 64 % 9 != 4 {
            *label = UNLABELLED;
        }
    }
    let report = fitted(&backbone(None), &[picture], &quick()).unwrap();
    assert_eq!(report.held_out_part, HeldOutPart::Squares);
    assert!(report.held_out.unwrap().pixels < report.training.pixels / 2);
    let found = dice(&report.model, &Picture::new("new", 40, 40));
    assert!(found > 0.85, "Dice {found}");
}

#[test]
fn images_smaller_than_a_window_and_at_another_scale_are_fitted() {
    let pictures = ["a", "b"].map(|name| Picture::new(name, 50, 40));
    let images: Vec<_> = pictures.iter().map(Picture::labelled).collect();
    let device = Device::cpu(Some(1)).unwrap();
    let features = FeatureOptions { microns_per_pixel: Some(0.5), ..FeatureOptions::default() };
    let half = |model: &Model| {
        let options = FitOptions { min_steps: 5, ..quick() };
        fit(model, &device, &mut &images[..], Vec::new(), &features, &options, &Control::none()).unwrap()
    };
    let report = half(&backbone(Some(1.0)));
    assert_eq!((report.samples, report.class_pixels.iter().sum()), (2 * 25 * 20, 2 * 25 * 20_u64));
    // A backbone that does not know its scale learns that of the images.
    assert_eq!(half(&backbone(None)).model.metadata().microns_per_pixel, Some(0.5));
}

#[test]
fn samples_are_bounded_and_progress_is_complete() {
    let pictures = ["a", "b"].map(|name| Picture::new(name, 60, 75));
    let images: Vec<_> = pictures.iter().map(Picture::labelled).collect();
    let device = Device::cpu(Some(1)).unwrap();
    let seen = Mutex::new(Vec::new());
    let report = |progress: Progress| seen.lock().unwrap().push(progress);
    let control = Control::none().with_progress(&report);
    let options = FitOptions { max_samples: 1000, min_steps: 5, ..quick() };
    let features = FeatureOptions::default();
    let model = backbone(None);
    let collected =
        collect(&model, &device, &mut &images[..], Some(3), &features, &options, &control).unwrap();
    assert!((900..=1000).contains(&collected.samples.len()), "{}", collected.samples.len());
    assert_eq!((collected.classes, collected.class_pixels.len(), collected.class_pixels[2]), (3, 3, 0));
    assert_eq!(seen.lock().unwrap().last(), Some(&Progress { done: 18, total: 18 }));
    seen.lock().unwrap().clear();
    fit(&model, &device, &mut &images[..], Vec::new(), &features, &options, &control).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].done <= pair[1].done && pair[0].total == pair[1].total));
    assert_eq!(seen.last(), Some(&Progress { done: 1000, total: 1000 }));
}

#[test]
fn wrong_labels_are_refused_by_name() {
    let model = backbone(None);
    let good = || Picture::new("good.png", 40, 40);
    let fails = |pictures: &[Picture], words: &[&str]| {
        let error = fitted(&model, pictures, &quick()).map(drop).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    fails(&[], &["no labelled image"]);
    fails(&[Picture { labels: vec![UNLABELLED; 1600], ..good() }], &["good.png", "no pixel is labelled"]);
    let ones = || Picture { labels: vec![1; 1600], ..good() };
    fails(&[ones()], &["good.png", "only class 1"]);
    fails(&[ones(), ones(), ones()], &["good.png, good.png and 1 more"]);
    fails(
        &[good(), Picture { labels: vec![0; 7], name: "bad.png".to_owned(), ..good() }],
        &["bad.png", "7 labels"],
    );

    let pictures = [good()];
    let mut turned = pictures[0].labelled();
    (turned.label_height, turned.label_width) = (20, 80);
    let device = Device::cpu(Some(1)).unwrap();
    let features = FeatureOptions::default();
    let error = |images: &[LabelledImage<'_>], classes: Vec<Class>| -> Error {
        let mut images = images;
        fit(&model, &device, &mut images, classes, &features, &quick(), &Control::none())
            .map(drop)
            .unwrap_err()
    };
    assert!(error(&[turned], Vec::new()).to_string().contains("80 x 20 pixels, the image 40 x 40"));
    let two = Picture { labels: vec![2; 1600], name: "two.png".to_owned(), ..good() };
    let images = [pictures[0].labelled(), two.labelled()];
    let message = error(&images, Class::numbered(2)).to_string();
    assert!(message.contains("two.png") && message.contains("label 2"), "{message}");
}

#[test]
fn images_without_labels_are_left_out() {
    let empty = Picture { labels: vec![UNLABELLED; 1600], ..Picture::new("empty", 40, 40) };
    let pictures = [empty, Picture::new("a", 40, 40)];
    let report = fitted(&backbone(None), &pictures, &FitOptions { min_steps: 5, ..quick() }).unwrap();
    assert_eq!(report.unlabelled_images, ["empty"]);
    assert_eq!(report.samples, 4 * 1024);
}
