//! Heads that follow labels as they come and go.

#![allow(clippy::unwrap_used)]

mod pictures;
mod support;

use std::sync::Mutex;

use mdm::engine::{DeviceKind, Precision};
use mdm::image::{ImageView, PixelFormat};
use mdm::model::{Class, Model};
use mdm::segment::{FeatureOptions, SegmentOptions, Segmenter};
use mdm::{CancelToken, Control, Device, DeviceOptions, Error, Progress};
use mdm_train::fit::{FitOptions, HeadFitter, LabelReport, LabelledImage, RefineOptions, fit};
use mdm_train::metrics::{Scores, UNLABELLED};
use pictures::{Picture, backbone};

fn quick() -> FitOptions {
    FitOptions { ensemble: 2, min_steps: 100, epochs: 2, held_out: false, ..FitOptions::default() }
}

fn fitter(model: &Model, options: FitOptions) -> HeadFitter {
    let device = Device::cpu(Some(2)).unwrap();
    HeadFitter::new(model, &device, Class::numbered(2), FeatureOptions::default(), options).unwrap()
}

/// Labels of some rows only.
fn scribbles(picture: &Picture, rows: impl Fn(usize) -> bool) -> Vec<u8> {
    let label = |(at, &label)| if rows(at / picture.width) { label } else { UNLABELLED };
    picture.labels.iter().enumerate().map(label).collect()
}

fn say(fitter: &mut HeadFitter, picture: &Picture, labels: &[u8]) -> LabelReport {
    let size = (picture.height, picture.width);
    fitter.set_labels(&picture.name, labels, size, &Control::none()).unwrap()
}

fn dice(model: &Model, picture: &Picture) -> f64 {
    let device = Device::cpu(Some(2)).unwrap();
    let mut segmenter = Segmenter::new(model, &device, SegmentOptions::default()).unwrap();
    let result = segmenter.segment(&picture.view(), &Control::none()).unwrap();
    Scores::of_classes(&result.labels, &picture.labels, picture.width).unwrap().dice
}

#[test]
fn all_at_once_is_the_same_as_fitting_images() {
    let pictures = ["a", "b", "c", "d"].map(|name| Picture::new(name, 50, 40));
    let images: Vec<LabelledImage<'_>> = pictures.iter().map(Picture::labelled).collect();
    let options = FitOptions { held_out: true, ..quick() };
    let (model, device) = (backbone(None), Device::cpu(Some(2)).unwrap());
    let features = FeatureOptions::default();
    let expected =
        fit(&model, &device, &mut &images[..], Vec::new(), &features, &options, &Control::none()).unwrap();
    let mut fitter = fitter(&model, options);
    let seen = Mutex::new(Vec::new());
    let report = |progress: Progress| seen.lock().unwrap().push(progress);
    fitter.set_all(&mut &images[..], &Control::none().with_progress(&report)).unwrap();
    assert_eq!(seen.lock().unwrap().last(), Some(&Progress { done: 4, total: 4 }));
    let fitted = fitter.fit(&Control::none()).unwrap();
    assert_eq!((fitter.samples(), fitter.class_pixels()), (expected.samples, expected.class_pixels));
    assert_eq!((fitted.training, fitted.held_out), (expected.training, expected.held_out));
    assert!(fitter.model().unwrap().heads() == expected.model.heads());
    assert_eq!(fitter.model().unwrap().metadata(), expected.model.metadata());
}

#[test]
fn new_scribbles_refine_the_last_heads() {
    let picture = Picture::new("scribbled", 64, 64);
    let mut fitter = fitter(&backbone(None), quick());
    assert!(fitter.set_image("scribbled", &picture.view()).unwrap());
    let first = say(&mut fitter, &picture, &scribbles(&picture, |y| y % 16 == 3));
    assert_eq!((first.labelled, first.fresh, first.windows), (4 * 64, first.samples, 9));
    // Nothing was fitted yet: this is a fit.
    let fitted = fitter.refine(&RefineOptions::default(), &Control::none()).unwrap();
    assert!(fitted.steps.iter().all(|&steps| steps >= 100), "{:?}", fitted.steps);
    let before = dice(&fitter.model().unwrap(), &picture);

    let second = say(&mut fitter, &picture, &scribbles(&picture, |y| y % 8 == 3));
    assert_eq!((second.labelled, second.windows), (8 * 64, 0), "features were there");
    assert_eq!(second.samples, second.fresh + first.samples);
    let refined = fitter.refine(&RefineOptions::default(), &Control::none()).unwrap();
    assert_eq!(refined.steps, [60, 60]);
    let after = dice(&fitter.model().unwrap(), &picture);
    assert!(after > before && after > 0.9, "Dice {before} before, {after} after");
    assert!(refined.training.accuracy > 0.95, "{:?}", refined.training);
    assert_eq!(say(&mut fitter, &picture, &scribbles(&picture, |y| y % 8 == 3)).fresh, 0);
}

#[test]
fn a_corrected_label_is_learnt() {
    let picture = Picture::new("corrected", 48, 48);
    let mut fitter = fitter(&backbone(None), quick());
    fitter.set_image("corrected", &picture.view()).unwrap();
    // What is in truth a disc was called ground in the lower half.
    let mut wrong = picture.labels.clone();
    wrong[24 * 48..].fill(0);
    say(&mut fitter, &picture, &wrong);
    fitter.fit(&Control::none()).unwrap();
    let before = dice(&fitter.model().unwrap(), &picture);
    let report = say(&mut fitter, &picture, &picture.labels);
    assert!(report.fresh > 0 && report.windows == 0);
    for _ in 0..2 {
        fitter.refine(&RefineOptions::default(), &Control::none()).unwrap();
    }
    let after = dice(&fitter.model().unwrap(), &picture);
    assert!(before < 0.9 && after > 0.93, "Dice {before} before, {after} after");
}

#[test]
fn labels_come_and_go_without_a_trace() {
    let pictures = ["a", "b"].map(|name| Picture::new(name, 40, 40));
    let labels = pictures.each_ref().map(|picture| scribbles(picture, |y| y % 5 == 0));
    let model = backbone(None);
    // Few enough samples that pixels are drawn by lot.
    let options = FitOptions { few: 50, fraction: 0.3, ..quick() };
    let mut straight = fitter(&model, options.clone());
    for (picture, labels) in pictures.iter().zip(&labels) {
        straight.set_image(&picture.name, &picture.view()).unwrap();
        say(&mut straight, picture, labels);
    }
    let mut crooked = fitter(&model, options);
    for (picture, labels) in pictures.iter().zip(&labels).rev() {
        crooked.set_image(&picture.name, &picture.view()).unwrap();
        say(&mut crooked, picture, &picture.labels);
        say(&mut crooked, picture, &vec![UNLABELLED; 1600]);
        assert_eq!(say(&mut crooked, picture, labels).windows, 0, "features were kept");
    }
    crooked.set_image("other", &pictures[0].view()).unwrap();
    crooked.set_labels("other", &labels[0], (40, 40), &Control::none()).unwrap();
    assert!(crooked.remove("other") && !crooked.remove("other"));
    let [straight, crooked] = [straight, crooked].map(|mut fitter| {
        fitter.fit(&Control::none()).unwrap();
        (fitter.samples(), fitter.class_pixels(), fitter.heads().to_vec())
    });
    assert!(straight == crooked);
}

#[test]
fn an_image_is_replaced_with_its_labels() {
    let picture = Picture::new("a", 40, 40);
    let mut fitter = fitter(&backbone(None), quick());
    fitter.set(&picture.labelled(), &Control::none()).unwrap();
    assert!(!fitter.set_image("a", &picture.view()).unwrap(), "the same pixels");
    assert!(fitter.samples() > 0);
    let other = Picture::new("b", 30, 20);
    assert!(fitter.set_image("a", &other.view()).unwrap());
    assert_eq!((fitter.samples(), fitter.class_pixels()), (0, vec![0, 0]));
    let coloured: Vec<u8> = picture.pixels.iter().flat_map(|&grey| [grey; 3]).collect();
    let rgb = ImageView::new(&coloured, 40, 40, PixelFormat::Rgb8).unwrap();
    fitter.set_image("colour", &rgb).unwrap();
    let report = fitter.set_labels("colour", &picture.labels, (40, 40), &Control::none()).unwrap();
    assert_eq!(report.labelled, 1600);
}

#[test]
fn features_that_were_forgotten_are_taken_again_where_they_are_needed() {
    let picture = Picture::new("a", 64, 64);
    let mut fitter = fitter(&backbone(None), quick());
    fitter.set_feature_memory(0);
    fitter.set_image("a", &picture.view()).unwrap();
    let upper = scribbles(&picture, |y| y == 2);
    assert_eq!(say(&mut fitter, &picture, &upper).windows, 3, "windows in a row");
    let both = scribbles(&picture, |y| y == 2 || y == 60);
    assert_eq!(say(&mut fitter, &picture, &both).windows, 3, "only those with new labels");
    let report = say(&mut fitter, &picture, &upper);
    assert_eq!((report.windows, report.labelled), (0, 64), "erasing needs none");
}

#[test]
fn heads_of_a_model_go_on() {
    let picture = Picture::new("a", 48, 48);
    let model = backbone(None);
    let mut first = fitter(&model, quick());
    first.set(&picture.labelled(), &Control::none()).unwrap();
    first.fit(&Control::none()).unwrap();
    let model = first.model().unwrap();
    let mut second = fitter(&model, quick());
    assert!(second.heads() == first.heads());
    second.set(&picture.labelled(), &Control::none()).unwrap();
    let refined = second.refine(&RefineOptions { steps: 3, ..RefineOptions::default() }, &Control::none());
    assert_eq!(refined.unwrap().steps, [3, 3]);
    assert!(second.heads() != first.heads());
    let device = Device::cpu(Some(1)).unwrap();
    let three =
        HeadFitter::new(&model, &device, Class::numbered(3), FeatureOptions::default(), quick()).unwrap();
    assert!(three.heads().is_empty() && three.model().is_err());
}

#[test]
fn classes_can_be_added() {
    let picture = Picture::new("a", 40, 40);
    let mut fitter = fitter(&backbone(None), quick());
    fitter.set(&picture.labelled(), &Control::none()).unwrap();
    fitter.fit(&Control::none()).unwrap();
    let named = |name: &str| Class { name: name.to_owned(), colour: [1, 2, 3] };
    fitter.set_classes(vec![named("ground"), named("disc")]).unwrap();
    assert_eq!(fitter.model().unwrap().metadata().classes[1].name, "disc");
    fitter.set_classes(Class::numbered(3)).unwrap();
    assert!(fitter.model().is_err());
    let mut labels = picture.labels.clone();
    labels[..40].fill(2);
    say(&mut fitter, &picture, &labels);
    fitter.refine(&RefineOptions::default(), &Control::none()).unwrap();
    assert_eq!(fitter.model().unwrap().heads()[0].classes(), 3);
    let error = fitter.set_classes(Class::numbered(2)).unwrap_err();
    assert!(error.to_string().contains("class 2"), "{error}");
}

#[test]
fn what_fails_changes_nothing() {
    let picture = Picture::new("a.png", 64, 64);
    let mut fitter = fitter(&backbone(None), FitOptions { max_samples: 4998, ..quick() });
    fitter.set(&picture.labelled(), &Control::none()).unwrap();
    let samples = fitter.samples();
    assert_eq!(samples, 9 * 555);
    fitter.fit(&Control::none()).unwrap();
    let heads = fitter.heads().to_vec();
    let fails = |fitter: &mut HeadFitter, name: &str, labels: &[u8], size, words: &str| {
        let error = fitter.set_labels(name, labels, size, &Control::none()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    fails(&mut fitter, "b", &picture.labels, (64, 64), "no image \"b\"");
    fails(&mut fitter, "a.png", &picture.labels, (32, 128), "128 x 32 pixels, the image 64 x 64");
    fails(&mut fitter, "a.png", &picture.labels[1..], (64, 64), "4095 labels");
    fails(&mut fitter, "a.png", &[2; 4096], (64, 64), "a.png: label 2");
    let other = Picture::new("b", 40, 40);
    fitter.set_image("b", &other.view()).unwrap();
    fails(&mut fitter, "b", &other.labels, (40, 40), "max_samples");
    assert_eq!(fitter.images().collect::<Vec<_>>(), ["a.png", "b"]);

    let token = CancelToken::new();
    token.cancel();
    let stopped = Control::none().with_cancel(&token);
    fitter.set_feature_memory(0);
    let erased = scribbles(&picture, |y| y < 32);
    say(&mut fitter, &picture, &erased);
    let samples = fitter.samples();
    let result = fitter.set_labels("a.png", &picture.labels, (64, 64), &stopped);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert!(matches!(fitter.fit(&stopped), Err(Error::Cancelled)));
    assert!(matches!(fitter.refine(&RefineOptions::default(), &stopped), Err(Error::Cancelled)));
    for wrong in [
        RefineOptions { steps: 0, ..RefineOptions::default() },
        RefineOptions { batch: 1, ..RefineOptions::default() },
        RefineOptions { learning_rate: f64::NAN, ..RefineOptions::default() },
    ] {
        assert!(fitter.refine(&wrong, &Control::none()).is_err());
    }
    assert!(fitter.samples() == samples && fitter.heads() == heads);
    // Whoever erases all labels but one class cannot fit.
    say(&mut fitter, &picture, &[0; 4096]);
    assert!(fitter.fit(&Control::none()).unwrap_err().to_string().contains("two classes"));
    assert!(fitter.heads() == heads);
}

#[test]
fn features_of_a_gpu_fit_heads_too() {
    let picture = Picture::new("a", 48, 48);
    let model = backbone(None);
    let options = DeviceOptions { precision: Precision::F32, ..DeviceOptions::default() };
    let Ok(devices) = Device::list() else { return };
    let gpus = devices.iter().enumerate().filter(|(_, device)| device.kind != DeviceKind::Cpu);
    let mut tried = 0;
    for (number, info) in gpus {
        let device = Device::select(&number.to_string(), &options).unwrap();
        let classes = Class::numbered(2);
        let mut fitter =
            HeadFitter::new(&model, &device, classes, FeatureOptions::default(), quick()).unwrap();
        fitter.set(&picture.labelled(), &Control::none()).unwrap();
        let fitted = fitter.fit(&Control::none()).unwrap();
        assert!(fitted.training.accuracy > 0.95, "{}: {:?}", info.name, fitted.training);
        let found = dice(&fitter.model().unwrap(), &picture);
        assert!(found > 0.9, "{}: Dice {found}", info.name);
        tried += 1;
    }
    if tried == 0 {
        eprintln!("skipped: there is no GPU, nor one that is software");
    }
}
