//! Heads and backbones learn from images of cameras that do not fill their type.

#![allow(clippy::unwrap_used)]

mod pictures;
mod support;

use std::sync::Arc;

use mdm::intensity::IntensityWarning;
use mdm::model::{Class, Model, UnetConfig};
use mdm::segment::{FeatureOptions, SegmentOptions, Segmenter};
use mdm::{Control, Device, ImageView, IntensityRange, PixelFormat, Result};
use mdm_train::fit::{FitOptions, FitReport, HeadFitter, LabelledImage, fit};
use mdm_train::metrics::Scores;
use mdm_train::pretrain::{Images, Recipe, Start, Trainer, examine};
use pictures::{Picture, backbone};

fn quick() -> FitOptions {
    FitOptions { ensemble: 2, min_steps: 150, epochs: 2, batch: 1024, ..FitOptions::default() }
}

/// A picture as a camera of 12 bits stores it.
fn twelve_bits(picture: &Picture) -> Vec<u8> {
    let value = |value: &u8| (u32::from(*value) * 4095 / 255) as u16;
    picture.pixels.iter().flat_map(|pixel| value(pixel).to_ne_bytes()).collect()
}

fn view<'a>(pixels: &'a [u8], picture: &Picture) -> ImageView<'a> {
    ImageView::new(pixels, picture.width, picture.height, PixelFormat::Grey16).unwrap()
}

fn fitted(
    model: &Model,
    picture: &Picture,
    image: ImageView<'_>,
    range: Option<IntensityRange>,
) -> FitReport {
    let images = [LabelledImage { image, ..picture.labelled() }];
    let features = FeatureOptions { range, ..FeatureOptions::default() };
    let device = Device::cpu(Some(2)).unwrap();
    fit(model, &device, &mut &images[..], Vec::new(), &features, &quick(), &Control::none()).unwrap()
}

fn dice(model: &Model, picture: &Picture, image: &ImageView<'_>) -> f64 {
    let device = Device::cpu(Some(2)).unwrap();
    let mut segmenter = Segmenter::new(model, &device, SegmentOptions::default()).unwrap();
    let result = segmenter.segment(image, &Control::none()).unwrap();
    assert!(result.report.intensities.warnings.is_empty(), "{:?}", result.report.intensities);
    Scores::of_classes(&result.labels, &picture.labels, picture.width).unwrap().dice
}

#[test]
fn a_model_keeps_how_the_images_of_its_fit_were_scaled() {
    let (picture, new) = (Picture::new("a", 64, 64), Picture::new("new", 50, 70));
    let (pixels, new_pixels) = (twelve_bits(&picture), twelve_bits(&new));
    let (image, new_image) = (view(&pixels, &picture), view(&new_pixels, &new));
    let declared = |view: ImageView<'_>| view.with_range(0.0, 4095.0).unwrap().ranges().unwrap().to_vec();
    let limits = declared(image);

    let report = fitted(&backbone(None), &picture, image.with_ranges(&limits).unwrap(), None);
    assert!(report.warnings.is_empty());
    let metadata = report.model.metadata();
    assert_eq!(metadata.intensity_range, IntensityRange::Declared);
    let seen = metadata.intensities_seen.unwrap();
    assert!(seen.stored.low > 900.0 && seen.stored.high < 2800.0 && seen.scaled.high < 0.5, "{seen:?}");
    assert!(dice(&report.model, &new, &new.view()) > 0.85, "of 8 bits");
    assert!(dice(&report.model, &new, &new_image.with_ranges(&limits).unwrap()) > 0.85, "of 12 bits");

    let report = fitted(&backbone(None), &picture, image, Some("0,4095".parse().unwrap()));
    assert_eq!(report.model.metadata().intensity_range.to_string(), "0,4095");
    assert!(dice(&report.model, &new, &new_image) > 0.85);

    let report = fitted(&backbone(None), &picture, image, None);
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert_eq!(warning.image, "a");
    assert_eq!(warning.warning.suggestion(), Some("0,4095".parse().unwrap()));
}

#[test]
fn a_backbone_hands_its_range_on_unless_it_is_that_of_a_type() {
    let picture = Picture::new("a", 40, 40);
    let with = |range: IntensityRange| {
        let mut metadata = backbone(None).metadata().clone();
        metadata.intensity_range = range;
        let model = backbone(None).with_heads(metadata, Vec::new()).unwrap();
        fitted(&model, &picture, picture.view(), None).model.metadata().intensity_range.clone()
    };
    assert_eq!(with(IntensityRange::PERCENTILE), IntensityRange::PERCENTILE);
    let fixed: IntensityRange = "0,400".parse().unwrap();
    assert_eq!(with(fixed.clone()), fixed);
    assert_eq!(with(IntensityRange::Type), IntensityRange::Declared);
}

#[test]
fn a_fitter_scales_as_a_fit_does() {
    let picture = Picture::new("a", 50, 40);
    let pixels = twelve_bits(&picture);
    let (model, device) = (backbone(None), Device::cpu(Some(2)).unwrap());
    for range in [IntensityRange::PERCENTILE, "0,4095".parse().unwrap()] {
        let report = fitted(&model, &picture, view(&pixels, &picture), Some(range.clone()));
        let features = FeatureOptions { range: Some(range.clone()), ..FeatureOptions::default() };
        let mut fitter = HeadFitter::new(&model, &device, Class::numbered(2), features, quick()).unwrap();
        let image = LabelledImage { image: view(&pixels, &picture), ..picture.labelled() };
        fitter.set(&image, &Control::none()).unwrap();
        let intensities = fitter.intensities("a").unwrap();
        assert!(intensities.warnings.is_empty() && intensities.limits[0].high < 4096.0);
        fitter.fit(&Control::none()).unwrap();
        let metadata = fitter.model().unwrap().metadata().clone();
        assert_eq!(&metadata.intensity_range, &range);
        assert_eq!(metadata.intensities_seen, report.model.metadata().intensities_seen);
    }
    let mut fitter =
        HeadFitter::new(&model, &device, Class::numbered(2), FeatureOptions::default(), quick()).unwrap();
    fitter.set_image("a", &view(&pixels, &picture)).unwrap();
    let warnings = &fitter.intensities("a").unwrap().warnings;
    assert!(matches!(warnings[..], [IntensityWarning::Narrow { .. }]), "{warnings:?}");
}

const SIDE: usize = 24;

/// Stripes whose values are multiplied by a gain and moved by an offset.
struct Stripes {
    gain: f32,
    offset: f32,
}

impl Images for Stripes {
    fn count(&self) -> usize {
        3
    }

    fn name(&self, index: usize) -> String {
        format!("stripes {index}")
    }

    fn read(&self, index: usize, take: &mut dyn FnMut(&ImageView<'_>) -> Result<()>) -> Result<()> {
        let value = |i: usize| ((i % SIDE * 3 + i / SIDE * (index + 5)) % 64 * 4) as f32;
        let pixels: Vec<u8> =
            (0..SIDE * SIDE).flat_map(|i| (self.gain * value(i) + self.offset).to_ne_bytes()).collect();
        take(&ImageView::new(&pixels, SIDE, SIDE, PixelFormat::GreyF32)?)
    }
}

fn recipe(range: IntensityRange) -> Recipe {
    let mut recipe = Recipe {
        unet: UnetConfig {
            image_size: 16,
            in_channels: 1,
            out_channels: 1,
            model_channels: 32,
            channel_mult: vec![1, 1],
            num_res_blocks: 1,
            attention_ds: vec![2],
            num_head_channels: Some(32),
            ..UnetConfig::mdm_paper()
        },
        steps: 3,
        batch: 4,
        microbatch: 2,
        ..Recipe::default()
    };
    recipe.crops.range = range;
    recipe
}

fn losses(range: IntensityRange, gain: f32, offset: f32) -> (Vec<f64>, Model) {
    let device = Device::cpu(Some(2)).unwrap();
    let images = Arc::new(Stripes { gain, offset });
    let mut trainer = Trainer::new(&device, Start::New(recipe(range)), images).unwrap();
    let losses = (0..3).map(|_| trainer.step(&Control::none()).unwrap().loss).collect();
    (losses, trainer.backbone(None, "").unwrap())
}

#[test]
fn crops_are_scaled_by_the_range_of_the_recipe() {
    let fixed = |low: f64, high: f64| IntensityRange::fixed(low, high).unwrap();
    for (range, moved) in
        [(fixed(0.0, 252.0), fixed(100.0, 1108.0)), (IntensityRange::PERCENTILE, IntensityRange::PERCENTILE)]
    {
        let (want, backbone) = losses(range.clone(), 1.0, 0.0);
        assert_eq!(backbone.metadata().intensity_range, range);
        let (found, _) = losses(moved, 4.0, 100.0);
        for (found, want) in found.iter().zip(&want) {
            assert!((found - want).abs() < 1e-4, "{found} instead of {want}");
        }
    }
    let device = Device::cpu(Some(1)).unwrap();
    let images = Arc::new(Stripes { gain: 1.0, offset: 0.0 });
    let mut trainer =
        Trainer::new(&device, Start::New(recipe(IntensityRange::Declared)), images.clone()).unwrap();
    let error = trainer.step(&Control::none()).unwrap_err().to_string();
    assert!(error.contains("outside 0..=1"), "{error}");
    let warnings = examine(&*images, &fixed(0.0, 1e6));
    assert_eq!(warnings.len(), 3);
    assert!(warnings[0].0 == "stripes 0" && matches!(warnings[0].1, IntensityWarning::Narrow { .. }));
}

#[test]
fn recipes_of_before_scale_by_the_type() {
    let mut json = serde_json::to_value(recipe(IntensityRange::Declared)).unwrap();
    json["crops"].as_object_mut().unwrap().remove("range").unwrap();
    let old: Recipe = serde_json::from_value(json).unwrap();
    assert_eq!(old.crops.range, IntensityRange::Type);
}
