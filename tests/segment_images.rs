//! Whole images through a small network on the CPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use mdm::image::ImageSource;
use mdm::model::{Class, CorruptionKind, FeatureConfig, Head, Metadata, Model, NoiseSchedule};
use mdm::plan::Combine;
use mdm::segment::window::{Importance, WindowGrid};
use mdm::segment::{
    Band, FeatureOptions, Features, Scaling, SegmentOptions, Segmentation, Segmenter, WindowFeatures,
};
use mdm::{CancelToken, Control, Device, Error, ImageView, PixelFormat, Result};
use support::models::{CLASSES, OVERFLOWS, WINDOW, head, metadata, model, model_of, scaled_model};
use support::{relative_error, uniform};

fn device() -> Device {
    Device::cpu(Some(2)).unwrap()
}

fn pixels(height: usize, width: usize) -> Vec<u8> {
    uniform("pixels", height * width * 3, 0).map(|u| (u * 255.0) as u8).collect()
}

fn view(data: &[u8], height: usize, width: usize) -> ImageView<'_> {
    ImageView::new(data, width, height, PixelFormat::Rgb8).unwrap()
}

fn everything() -> SegmentOptions {
    SegmentOptions { probabilities: true, uncertainty: true, ..SegmentOptions::default() }
}

fn segment(model: &Model, image: &ImageView<'_>, options: SegmentOptions) -> Segmentation {
    Segmenter::new(model, &device(), options).unwrap().segment(image, &Control::none()).unwrap()
}

fn extract(model: &Model, image: &ImageView<'_>, options: FeatureOptions) -> Vec<WindowFeatures> {
    let mut all = Vec::new();
    let mut features = Features::new(model, &device(), options).unwrap();
    let mut collect = |window: WindowFeatures| {
        assert_eq!(window.channels(), features_of(model));
        all.push(window);
        Ok(())
    };
    features.extract(image, &Control::none(), &mut collect).unwrap();
    all
}

fn features_of(model: &Model) -> usize {
    model.heads()[0].channels()
}

/// Class probabilities of each head, as the head is written down.
fn probabilities(head: &Head, features: &[f32]) -> Vec<f64> {
    let mut x: Vec<f64> = features.iter().map(|x| f64::from(*x)).collect();
    for (layer, linear) in head.linear.iter().enumerate() {
        if let Some(norm) = layer.checked_sub(1).map(|layer| &head.norm[layer]) {
            for (i, x) in x.iter_mut().enumerate() {
                let deviation = (f64::from(norm.running_var[i]) + 1e-5).sqrt();
                *x = (x.max(0.0) - f64::from(norm.running_mean[i])) / deviation * f64::from(norm.weight[i])
                    + f64::from(norm.bias[i]);
            }
        }
        let rows = linear.weight.chunks_exact(linear.inputs).zip(&linear.bias);
        x = rows
            .map(|(row, bias)| {
                row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias)
            })
            .collect();
    }
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / sum).collect()
}

/// Heads applied to every pixel's features, and windows blended, in f64 and all at once.
fn plain(model: &Model, windows: &[WindowFeatures], height: usize, width: usize) -> Vec<f32> {
    let importance = Importance::new(WINDOW);
    let mut sums = vec![0.0; height * width * CLASSES];
    let mut weights = vec![0.0; height * width];
    let mut features = vec![0.0; features_of(model)];
    for window in windows {
        for y in 0..WINDOW {
            let row: Vec<f32> = importance.row(y).collect();
            for (x, weight) in row.into_iter().enumerate() {
                let (top, left) = (window.top + y as isize, window.left + x as isize);
                if !(0..height as isize).contains(&top) || !(0..width as isize).contains(&left) {
                    continue;
                }
                window.pixel(y, x, &mut features);
                let pixel = top as usize * width + left as usize;
                weights[pixel] += f64::from(weight);
                for head in model.heads() {
                    for (class, p) in probabilities(head, &features).into_iter().enumerate() {
                        sums[pixel * CLASSES + class] += f64::from(weight) * p / model.heads().len() as f64;
                    }
                }
            }
        }
    }
    sums.iter().enumerate().map(|(i, sum)| (sum / weights[i / CLASSES]) as f32).collect()
}

#[test]
fn segmentation_is_the_heads_on_the_features_blended() {
    for (height, width, normalise) in [(50, 71, false), (40, 33, true), (20, 45, false), (7, 1, true)] {
        let model = model(|metadata| metadata.features.normalise = normalise);
        let data = pixels(height, width);
        let image = view(&data, height, width);
        let got = segment(&model, &image, everything());
        let want = plain(&model, &extract(&model, &image, FeatureOptions::default()), height, width);
        let error = relative_error(got.probabilities.as_ref().unwrap(), &want);
        assert!(error < 1e-5, "{height} x {width}, normalise {normalise}: {error}");
        assert_eq!((got.height, got.width, got.labels.len()), (height, width, height * width));
        assert_eq!(got.report.windows, WindowGrid::new(height, width, WINDOW, 0.25).unwrap().count());
        assert!(got.uncertainty.unwrap().iter().all(|u| (-1e-6..1.2).contains(u)));
    }
}

#[test]
fn the_batch_changes_no_bit() {
    let model = model(|_| ());
    let (height, width) = (40, 90);
    let data = pixels(height, width);
    let image = view(&data, height, width);
    let one = segment(&model, &image, everything());
    let windows = extract(&model, &image, FeatureOptions::default());
    assert_eq!(windows.len(), one.report.windows);
    for batch in [3, 64] {
        let several = segment(&model, &image, SegmentOptions { batch: Some(batch), ..everything() });
        assert!(several.labels == one.labels, "batch {batch}");
        assert!(several.probabilities == one.probabilities, "batch {batch}");
        assert!(several.uncertainty == one.uncertainty, "batch {batch}");
        assert!(
            extract(&model, &image, FeatureOptions { batch: Some(batch), ..FeatureOptions::default() })
                == windows
        );
    }
}

#[test]
fn a_window_is_corrupted_by_where_it_lies() {
    let noise = |metadata: &mut Metadata| {
        metadata.corruption.kind = CorruptionKind::Gaussian { schedule: NoiseSchedule::Linear };
    };
    let data = pixels(32, 160);
    for model in [model(|_| ()), model(noise)] {
        // Other windows before it, or none: the first window of a crop is the first of the image.
        let with = |options| extract(&model, &view(&data, 32, 160), options);
        let options = FeatureOptions { overlap: Some(0.0), ..FeatureOptions::default() };
        let windows = with(options.clone());
        let crop: Vec<u8> = data.chunks_exact(160 * 3).flat_map(|row| row[..WINDOW * 3].to_vec()).collect();
        let alone = extract(&model, &view(&crop, 32, WINDOW), options.clone());
        assert!(alone[0] == windows[0]);
        assert!(with(options.clone()) == windows, "the same seed, the same features");
        let other = with(FeatureOptions { seed: 1, ..options.clone() });
        assert!(other.iter().zip(&windows).all(|(a, b)| a.maps != b.maps), "another seed");
        let clean = with(FeatureOptions { corrupt: Some(false), ..options.clone() });
        assert!(clean.iter().zip(&windows).all(|(a, b)| a.maps != b.maps), "uncorrupted");
        let clean_again = with(FeatureOptions { corrupt: Some(false), seed: 1, ..options });
        assert!(clean == clean_again, "nothing is random without corruption");
    }
}

/// The same content at one place of two windows is corrupted differently.
#[test]
fn windows_do_not_share_their_corruption() {
    let grey = vec![200; 32 * 160 * 3];
    let options = FeatureOptions { overlap: Some(0.0), ..FeatureOptions::default() };
    let windows = extract(&model(|_| ()), &view(&grey, 32, 160), options);
    assert_eq!(windows.len(), 5);
    for (i, window) in windows.iter().enumerate() {
        assert!(windows[..i].iter().all(|other| other.maps != window.maps));
    }
}

#[test]
fn tiny_images_are_padded() {
    let model = model(|_| ());
    for (height, width) in [(1, 1), (7, 7), (1, 50), (50, 1), (33, 7)] {
        let data = pixels(height, width);
        let got = segment(&model, &view(&data, height, width), everything());
        assert_eq!(got.labels.len(), height * width);
        for (label, pixel) in got.labels.iter().zip(got.probabilities.unwrap().chunks_exact(CLASSES)) {
            assert!((pixel.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert!(pixel.iter().all(|p| p.is_finite() && *p <= pixel[usize::from(*label)]));
        }
    }
}

#[test]
fn images_are_brought_to_the_models_scale_and_labels_back() {
    let model = model(|_| ());
    let (height, width) = (40, 51);
    let small = pixels(height, width);
    let large: Vec<u8> = (0..4 * height * width)
        .flat_map(|i| {
            let (y, x) = (i / (2 * width) / 2, i % (2 * width) / 2);
            small[(y * width + x) * 3..][..3].to_vec()
        })
        .collect();
    let (small, large) = (view(&small, height, width), view(&large, 2 * height, 2 * width));
    let fine = large.with_microns_per_pixel(0.25);
    let want = extract(&model, &small, FeatureOptions::default());
    assert!(extract(&model, &fine, FeatureOptions::default()) == want);
    let options = FeatureOptions { microns_per_pixel: Some(0.25), ..FeatureOptions::default() };
    let features = Features::new(&model, &device(), options).unwrap();
    assert_eq!(features.scaled_size(&large).unwrap(), (height, width));

    let low = segment(&model, &small, everything());
    assert_eq!((low.report.scale, low.report.scaling), (1.0, Scaling::ImageUnknown));
    let high = segment(&model, &fine, everything());
    assert_eq!((high.report.scale, high.report.scaling), (0.5, Scaling::Rescaled));
    assert_eq!((high.report.scaled_height, high.report.scaled_width), (height, width));
    assert_eq!((high.height, high.width, high.labels.len()), (2 * height, 2 * width, 4 * height * width));
    // Bilinear with pixel centres at half integers: three quarters of the nearest, a quarter of the next.
    let at = |result: &Segmentation, y: usize, x: usize| {
        result.probabilities.as_ref().unwrap()[(y * result.width + x) * CLASSES]
    };
    for y in 1..height - 1 {
        for x in 1..width - 1 {
            let mix = |a: f32, b: f32| 0.75 * a + 0.25 * b;
            let upper = mix(at(&low, y, x), at(&low, y, x - 1));
            let above = mix(at(&low, y - 1, x), at(&low, y - 1, x - 1));
            assert!((at(&high, 2 * y, 2 * x) - mix(upper, above)).abs() < 1e-5);
        }
    }
    let close = segment(&model, &small.with_microns_per_pixel(0.51), everything());
    assert_eq!(close.report.scaling, Scaling::Close);
    assert!(close.probabilities == low.probabilities);
    let coarse = segment(&model, &small.with_microns_per_pixel(1.0), everything());
    assert_eq!((coarse.report.scaled_height, coarse.labels.len()), (2 * height, height * width));
}

#[test]
fn a_streamed_image_is_segmented_like_one_in_memory() {
    struct Stream<'a>(ImageView<'a>, usize);
    impl ImageSource for Stream<'_> {
        fn width(&self) -> usize {
            self.0.width()
        }
        fn height(&self) -> usize {
            self.0.height()
        }
        fn channels(&self) -> usize {
            3
        }
        fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            assert_eq!(rows.start, self.1, "each row once, in order");
            self.1 = rows.end;
            self.0.read_rows(rows, out)
        }
    }
    let model = model(|_| ());
    let (height, width) = (90, 40);
    let data = pixels(height, width);
    let image = view(&data, height, width);
    for microns in [None, Some(0.3), Some(0.8)] {
        let options = SegmentOptions { microns_per_pixel: microns, ..everything() };
        let want = segment(&model, &image, options.clone());
        let (mut labels, mut values) = (Vec::new(), Vec::new());
        let mut sink = |band: Band<'_>| {
            assert_eq!(band.top * width, labels.len());
            assert_eq!((band.width, band.classes), (width, CLASSES));
            labels.extend_from_slice(band.labels);
            values.extend_from_slice(band.probabilities.unwrap());
            Ok(())
        };
        let mut source = Stream(image, 0);
        let mut segmenter = Segmenter::new(&model, &device(), options).unwrap();
        segmenter.segment_bands(&mut source, &mut sink, &Control::none()).unwrap();
        assert!(labels == want.labels && Some(values) == want.probabilities);
    }
}

#[test]
fn grey_images_are_like_their_colour_twins() {
    let model = model(|_| ());
    let grey: Vec<u8> = uniform("grey", 40 * 40, 0).map(|u| (u * 255.0) as u8).collect();
    let colour: Vec<u8> = grey.iter().flat_map(|value| [*value; 3]).collect();
    let bgra: Vec<u8> = grey.iter().flat_map(|value| [*value, *value, *value, 17]).collect();
    let want = segment(&model, &view(&colour, 40, 40), everything());
    for (data, format) in [(&grey, PixelFormat::Grey8), (&bgra, PixelFormat::Bgra8)] {
        let got = segment(&model, &ImageView::new(data, 40, 40, format).unwrap(), everything());
        assert!(got.probabilities == want.probabilities, "{format:?}");
    }
}

#[test]
fn an_ensemble_can_vote() {
    let model = model(|metadata| metadata.heads = 4);
    let data = pixels(WINDOW, WINDOW);
    let image = view(&data, WINDOW, WINDOW);
    let voted = segment(&model, &image, SegmentOptions { combine: Combine::Vote, ..everything() });
    // One window alone: its weights cancel, so that shares of four heads are left.
    let shares = voted.probabilities.unwrap();
    assert!(shares.iter().all(|share| (share * 4.0 - (share * 4.0).round()).abs() < 1e-5));
    assert!(shares.iter().any(|share| *share > 0.2 && *share < 0.8), "some heads disagree");
}

#[test]
fn a_call_can_be_watched_and_stopped() {
    let model = model(|_| ());
    let data = pixels(100, 100);
    let image = view(&data, 100, 100);
    let mut segmenter = Segmenter::new(&model, &device(), SegmentOptions::default()).unwrap();
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = |progress: mdm::Progress| {
        assert!(progress.done == 0 || progress.done > done.load(Ordering::Relaxed));
        done.store(progress.done, Ordering::Relaxed);
        total.store(progress.total, Ordering::Relaxed);
    };
    let report = segmenter.segment(&image, &Control::none().with_progress(&watch)).unwrap().report;
    assert_eq!(done.into_inner(), report.windows as u64);
    assert_eq!(total.into_inner(), report.windows as u64);

    let token = CancelToken::new();
    let last = AtomicU64::new(0);
    let stop = |progress: mdm::Progress| {
        last.store(progress.done, Ordering::Relaxed);
        if progress.done == 3 {
            token.cancel();
        }
    };
    let control = Control::none().with_cancel(&token).with_progress(&stop);
    assert!(matches!(segmenter.segment(&image, &control), Err(Error::Cancelled)));
    assert_eq!(last.into_inner(), 3);
    // The segmenter is as good as new.
    assert!(segmenter.segment(&image, &Control::none()).is_ok());
}

#[test]
fn errors_of_callbacks_stop_the_call() {
    let model = model(|_| ());
    let data = pixels(100, 40);
    let image = view(&data, 100, 40);
    let calls = Cell::new(0);
    let mut fail = |_: WindowFeatures| {
        calls.set(calls.get() + 1);
        Err(Error::Cancelled)
    };
    let mut features = Features::new(&model, &device(), FeatureOptions::default()).unwrap();
    assert!(features.extract(&image, &Control::none(), &mut fail).is_err());
    assert_eq!(calls.get(), 1);
    let mut segmenter = Segmenter::new(&model, &device(), SegmentOptions::default()).unwrap();
    let mut fail = |_: Band<'_>| Err(Error::Cancelled);
    assert!(segmenter.segment_bands(&mut image.clone(), &mut fail, &Control::none()).is_err());
}

#[test]
fn settings_that_cannot_be_are_errors() {
    let device = device();
    let good = model(|_| ());
    let default = SegmentOptions::default;
    for options in [
        SegmentOptions { batch: Some(0), ..default() },
        SegmentOptions { window: Some(0), ..default() },
        SegmentOptions { window: Some(usize::MAX), ..default() },
        SegmentOptions { overlap: Some(1.0), ..default() },
        SegmentOptions { overlap: Some(f64::NAN), ..default() },
    ] {
        assert!(matches!(Segmenter::new(&good, &device, options), Err(Error::Invalid { .. })));
    }
    let config = |timesteps: &[u32], blocks: &[usize]| FeatureOptions {
        features: Some(FeatureConfig {
            timesteps: timesteps.to_vec(),
            blocks: blocks.to_vec(),
            normalise: false,
        }),
        ..FeatureOptions::default()
    };
    for options in [
        config(&[], &[1]),
        config(&[50], &[]),
        config(&[50], &[2, 1]),
        config(&[50], &[4]),
        config(&[1001], &[1]),
    ] {
        assert!(matches!(Features::new(&good, &device, options), Err(Error::Invalid { .. })));
    }
    let data = pixels(4, 4);
    for microns in [0.0, f64::NAN, 5e-4, 500.0] {
        let options = SegmentOptions { microns_per_pixel: Some(microns), ..default() };
        let mut segmenter = Segmenter::new(&good, &device, options).unwrap();
        let result = segmenter.segment(&view(&data, 4, 4), &Control::none());
        assert!(matches!(result, Err(Error::Invalid { .. })), "{microns}");
    }
    // An odd window is made one that the network can halve.
    let odd = Segmenter::new(&good, &device, SegmentOptions { window: Some(31), ..default() }).unwrap();
    assert_eq!(odd.window(), 32);
}

#[test]
fn work_can_be_handed_to_another_thread() {
    let model = model(|_| ());
    let mut segmenter = Segmenter::new(&model, &device(), SegmentOptions::default()).unwrap();
    let data = pixels(8, 8);
    let here = segmenter.segment(&view(&data, 8, 8), &Control::none()).unwrap();
    let there = std::thread::scope(|scope| {
        scope.spawn(|| segmenter.segment(&view(&data, 8, 8), &Control::none()).unwrap()).join().unwrap()
    });
    assert_eq!(here.labels, there.labels);
}

#[test]
fn a_source_without_pixels_is_an_error() {
    struct Empty(usize, usize);
    impl ImageSource for Empty {
        fn width(&self) -> usize {
            self.0
        }
        fn height(&self) -> usize {
            self.1
        }
        fn channels(&self) -> usize {
            3
        }
        fn read_rows(&mut self, _: Range<usize>, _: &mut [f32]) -> Result<()> {
            Ok(())
        }
    }
    let mut segmenter = Segmenter::new(&model(|_| ()), &device(), SegmentOptions::default()).unwrap();
    for mut source in [Empty(0, 5), Empty(5, 0), Empty(usize::MAX, usize::MAX)] {
        let result = segmenter.segment_bands(&mut source, &mut |_| Ok(()), &Control::none());
        assert!(matches!(result, Err(Error::Image(_))));
    }
}

#[test]
fn models_without_heads_or_with_too_many_classes_are_errors() {
    let mut headless = metadata();
    (headless.heads, headless.classes) = (0, Vec::new());
    let headless = model_of(headless, CLASSES).unwrap();
    let error = Segmenter::new(&headless, &device(), SegmentOptions::default()).err().unwrap();
    assert!(error.to_string().contains("no heads"), "{error}");
    let mut many = metadata();
    many.classes = (0..256).map(|i| Class { name: format!("{i}"), colour: [0; 3] }).collect();
    // Whoever notices first.
    let result =
        model_of(many, 256).and_then(|many| Segmenter::new(&many, &device(), SegmentOptions::default()));
    assert!(result.is_err());
}

#[test]
fn models_that_share_a_backbone_keep_their_own_heads() {
    let first = model(|_| ());
    let data = pixels(WINDOW, WINDOW);
    let image = view(&data, WINDOW, WINDOW);
    let of_first = segment(&first, &image, everything());
    let other: Vec<Head> = (7..9).map(|salt| head(features_of(&first), CLASSES, salt)).collect();
    let alone = segment(&first.with_heads(metadata(), other.clone()).unwrap(), &image, everything());
    let fresh = model(|_| ()).with_heads(metadata(), other).unwrap();
    let want = segment(&fresh, &image, everything());
    assert!(want.probabilities != of_first.probabilities);
    assert!(alone.probabilities == want.probabilities);
}

#[test]
fn an_overflow_is_an_error_instead_of_labels() {
    let data = pixels(40, 50);
    for (weight, _, scale) in OVERFLOWS {
        let model = scaled_model(weight, scale);
        for combine in [Combine::Mean, Combine::Vote] {
            let options = SegmentOptions { combine, ..SegmentOptions::default() };
            let mut segmenter = Segmenter::new(&model, &device(), options).unwrap();
            match segmenter.segment(&view(&data, 40, 50), &Control::none()) {
                Err(Error::Tensor { name, .. }) if name == "probabilities" => {}
                other => panic!("{weight}: {:?}", other.map(|result| result.report)),
            }
        }
        let mut features = Features::new(&model, &device(), FeatureOptions::default()).unwrap();
        match features.extract(&view(&data, 40, 50), &Control::none(), &mut |_| Ok(())) {
            Err(Error::Tensor { name, .. }) if name == "features" => {}
            other => panic!("{weight}: {other:?}"),
        }
    }
}
