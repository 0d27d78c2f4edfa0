//! The same picture as different cameras and programs store it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ops::Range;

use mdm::image::{ImageSource, StoredValues};
use mdm::intensity::{IntensitySample, IntensityWarning, Limits, SeenIntensities};
use mdm::model::Model;
use mdm::segment::{SegmentOptions, Segmentation, Segmenter};
use mdm::{Control, Device, Error, ImageView, IntensityRange, PixelFormat, Result};
use support::models::model;
use support::{gpus, uniform};

const HEIGHT: usize = 60;
const WIDTH: usize = 75;

/// Discs on a ground, with noise: 0 to 255.
fn picture() -> Vec<f64> {
    let noise: Vec<f64> = uniform("noise", HEIGHT * WIDTH, 3).collect();
    (0..HEIGHT * WIDTH)
        .map(|i| {
            let (y, x) = ((i / WIDTH % 20) as f64 - 10.0, (i % WIDTH % 25) as f64 - 12.0);
            let disc = if y * y + x * x < 50.0 { 170.0 } else { 10.0 };
            (disc + 70.0 * noise[i]).round()
        })
        .collect()
}

fn samples<const N: usize>(sample: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
    picture().into_iter().flat_map(sample).collect()
}

fn range(text: &str) -> Option<IntensityRange> {
    Some(text.parse().unwrap())
}

fn segment(
    model: &Model,
    device: &Device,
    view: &ImageView<'_>,
    range: Option<IntensityRange>,
) -> Segmentation {
    let options = SegmentOptions { probabilities: true, range, ..SegmentOptions::default() };
    Segmenter::new(model, device, options).unwrap().segment(view, &Control::none()).unwrap()
}

/// Part of the labels that are the same.
fn agreement(a: &Segmentation, b: &Segmentation) -> f64 {
    let same = a.labels.iter().zip(&b.labels).filter(|(a, b)| a == b).count();
    same as f64 / a.labels.len() as f64
}

#[test]
fn one_picture_has_one_segmentation_however_it_is_stored() {
    let twelve = |value: f64| value * 4095.0 / 255.0;
    let u16 = |value: f64| (value.round() as u16).to_ne_bytes();
    let view = |data, format| ImageView::new(data, WIDTH, HEIGHT, format).unwrap();
    let bytes = samples(|value| [value as u8]);
    let twelve_bits = samples(|value| u16(twelve(value)));
    let with_offset = samples(|value| u16(32768.0 + twelve(value)));
    let eight_bits = samples(u16);
    let signed = samples(|value| (twelve(value).round() as i16 - 2048).to_ne_bytes());
    let wide = samples(|value| (twelve(value).round() as u32).to_ne_bytes());
    let half = samples(|value| half::f16::from_f64(value / 255.0).to_ne_bytes());
    let float = samples(|value| (twelve(value) as f32).to_ne_bytes());
    let double = samples(|value| (value / 255.0).to_ne_bytes());
    let cases = [
        (
            "12 bits that are declared",
            view(&twelve_bits, PixelFormat::Grey16).with_range(0.0, 4095.0).unwrap(),
            None,
        ),
        ("12 bits", view(&twelve_bits, PixelFormat::Grey16), range("0,4095")),
        ("12 bits with an offset", view(&with_offset, PixelFormat::Grey16), range("32768,36863")),
        ("8 bits in 16", view(&eight_bits, PixelFormat::Grey16), range("0,255")),
        ("signed", view(&signed, PixelFormat::GreyI16), range("-2048,2047")),
        ("12 bits in 32", view(&wide, PixelFormat::GreyU32), range("0,4095")),
        ("halves", view(&half, PixelFormat::GreyF16), None),
        ("floats", view(&float, PixelFormat::GreyF32), range("0,4095")),
        ("doubles", view(&double, PixelFormat::GreyF64), None),
    ];
    let cpu = Device::cpu(Some(2)).unwrap();
    let model = model(|_| ());
    let want = segment(&model, &cpu, &view(&bytes, PixelFormat::Grey8), None);
    assert!(want.labels.iter().any(|label| *label != want.labels[0]), "there is something to see");
    for (what, view, range) in &cases {
        let got = segment(&model, &cpu, view, range.clone());
        assert!(got.report.intensities.warnings.is_empty(), "{what}: {:?}", got.report.intensities);
        assert!(agreement(&got, &want) > 0.99, "{what}: {}", agreement(&got, &want));
    }
    for (name, precision, device) in gpus() {
        let (_, view, range) = &cases[2];
        let got = segment(&model, device, view, range.clone());
        assert!(agreement(&got, &want) > 0.98, "{name} {precision:?}: {}", agreement(&got, &want));
    }
    let lost = segment(&model, &cpu, &view(&twelve_bits, PixelFormat::Grey16), None);
    let warnings = &lost.report.intensities.warnings;
    assert!(matches!(warnings[..], [IntensityWarning::Narrow { .. }]), "{warnings:?}");
    assert_eq!(warnings[0].suggestion(), range("0,4095"));
}

#[test]
fn percentiles_make_gain_and_offset_of_a_camera_vanish() {
    let model = model(|metadata| metadata.intensity_range = IntensityRange::PERCENTILE);
    let device = Device::cpu(Some(2)).unwrap();
    let of = |gain: f64, offset: f64| {
        let data = samples(|value| ((gain * value + offset) as f32).to_ne_bytes());
        let view = ImageView::new(&data, WIDTH, HEIGHT, PixelFormat::GreyF32).unwrap();
        segment(&model, &device, &view, None)
    };
    let want = of(1.0, 0.0);
    for (gain, offset) in [(16.0, 0.0), (0.01, -3.0), (8.0, 32768.0)] {
        let got = of(gain, offset);
        assert!(agreement(&got, &want) > 0.999, "{gain}, {offset}: {}", agreement(&got, &want));
        let limits = got.report.intensities.limits[0];
        let plain = want.report.intensities.limits[0];
        assert!((limits.low - (gain * plain.low + offset)).abs() < 1e-3 * gain.max(1.0));
        assert!((limits.high - (gain * plain.high + offset)).abs() < 1e-3 * gain.max(1.0));
    }
}

#[test]
fn a_model_applies_the_range_that_it_was_fitted_with() {
    let device = Device::cpu(Some(2)).unwrap();
    let data = samples(|value| (4.0 * value).to_ne_bytes());
    let view = ImageView::new(&data, WIDTH, HEIGHT, PixelFormat::GreyF64).unwrap();
    let fixed = model(|metadata| metadata.intensity_range = range("0,1020").unwrap());
    let asked = segment(&model(|_| ()), &device, &view, range("0,1020"));
    assert!(segment(&fixed, &device, &view, None).probabilities == asked.probabilities);
    let report = &asked.report.intensities;
    assert_eq!(report.limits, [Limits { low: 0.0, high: 1020.0 }]);
    // Unless it is told otherwise.
    let other = segment(&fixed, &device, &view, range("0,4080"));
    assert!(other.probabilities != asked.probabilities);
    // Models of the first version scaled by the type, whatever an image declared.
    let declared = view.with_range(0.0, 1020.0).unwrap();
    assert!(segment(&model(|_| ()), &device, &declared, None).probabilities == asked.probabilities);
    let old = model(|metadata| metadata.intensity_range = IntensityRange::Type);
    let mut segmenter = Segmenter::new(&old, &device, SegmentOptions::default()).unwrap();
    let error = segmenter.segment(&declared, &Control::none()).unwrap_err();
    assert!(error.to_string().contains("outside 0..=1"), "{error}");
}

#[test]
fn images_unlike_those_of_the_fit_are_noticed() {
    let device = Device::cpu(Some(2)).unwrap();
    let data = samples(|value| [value as u8]);
    let view = ImageView::new(&data, WIDTH, HEIGHT, PixelFormat::Grey8).unwrap();
    let seen = segment(&model(|_| ()), &device, &view, None).report.intensities;
    let fitted = model(|metadata| metadata.intensities_seen = SeenIntensities::with(None, &seen));
    assert!(segment(&fitted, &device, &view, None).report.intensities.warnings.is_empty());
    let bright = samples(|value| [255 - (value / 16.0) as u8]);
    let view = ImageView::new(&bright, WIDTH, HEIGHT, PixelFormat::Grey8).unwrap();
    let fitted = model(|metadata| {
        let dark = Limits { low: -1.0, high: 0.0 };
        metadata.intensities_seen = Some(SeenIntensities { stored: dark, scaled: dark });
    });
    let warnings = segment(&fitted, &device, &view, None).report.intensities.warnings;
    assert!(matches!(warnings[..], [IntensityWarning::Outside { share, .. }] if share > 0.9), "{warnings:?}");
}

/// An image of which rows can be read once.
struct Stream<'a> {
    view: ImageView<'a>,
    next: usize,
    /// Offered to a survey instead of the image.
    thumbnail: Option<ImageView<'a>>,
}

impl ImageSource for Stream<'_> {
    fn width(&self) -> usize {
        self.view.width()
    }

    fn height(&self) -> usize {
        self.view.height()
    }

    fn channels(&self) -> usize {
        1
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.view.read_rows(rows, out)
    }

    fn stored(&mut self) -> Option<&mut dyn StoredValues> {
        Some(self)
    }
}

impl StoredValues for Stream<'_> {
    fn full_range(&self) -> Limits {
        self.view.full_range()
    }

    fn read_stored(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        assert_eq!(rows.start, self.next, "each row once, in order");
        self.next = rows.end;
        self.view.read_stored(rows, out)
    }

    fn survey(&mut self, sample: &mut IntensitySample) -> Result<bool> {
        self.thumbnail.as_mut().map_or(Ok(false), |thumbnail| thumbnail.survey(sample))
    }
}

#[test]
fn streams_have_their_percentiles_from_a_smaller_image() {
    let device = Device::cpu(Some(2)).unwrap();
    let data = samples(|value| (value * 16.0).to_ne_bytes());
    let view = ImageView::new(&data, WIDTH, HEIGHT, PixelFormat::GreyF64).unwrap();
    let small: Vec<u8> = [100.0f64, 4000.0].iter().flat_map(|value| value.to_ne_bytes()).collect();
    let thumbnail = ImageView::new(&small, 2, 1, PixelFormat::GreyF64).unwrap();
    let options = |range| SegmentOptions { range, ..SegmentOptions::default() };
    let run = |range, thumbnail| {
        let mut labels = Vec::new();
        let mut segmenter = Segmenter::new(&model(|_| ()), &device, options(range)).unwrap();
        let mut source = Stream { view, next: 0, thumbnail };
        let report = segmenter.segment_bands(
            &mut source,
            &mut |band| {
                labels.extend_from_slice(band.labels);
                Ok(())
            },
            &Control::none(),
        )?;
        Ok::<_, Error>((labels, report.intensities.limits[0]))
    };
    let whole = range("percentile:0,100");
    let (labels, limits) = run(whole.clone(), Some(thumbnail)).unwrap();
    assert_eq!((limits.low, limits.high), (100.0, 4000.0));
    assert!(labels == segment(&model(|_| ()), &device, &view, range("100,4000")).labels);
    let error = run(whole, None).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("only once"), "{error}");
    let (labels, _) = run(range("0,4080"), None).unwrap();
    assert!(labels == segment(&model(|_| ()), &device, &view, range("0,4080")).labels);
}
