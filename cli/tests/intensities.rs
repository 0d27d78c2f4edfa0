//! Images of cameras that do not fill the bits of their files.

mod support;

use std::path::Path;

use support::{Run, backbone, folders, mdm, write_labels};

const SIDE: usize = 40;

/// Grey values of 0 to 255: bright discs on a dark ground.
fn picture(shift: usize) -> Vec<u8> {
    (0..SIDE * SIDE).map(|at| if inside(at, shift) { 200 } else { 40 } + (at * 7 % 13) as u8).collect()
}

fn inside(at: usize, shift: usize) -> bool {
    (at % SIDE).abs_diff(14 + shift).pow(2) + (at / SIDE).abs_diff(17 + shift).pow(2) < 80
}

/// Writes a grey TIFF of 8 or 16 bits, which may state its largest value.
fn write_tiff(path: &Path, bits: u16, bytes: &[u8], largest: Option<u16>) {
    let mut entries: Vec<(u16, u16, u32)> = vec![
        (256, 3, SIDE as u32),
        (257, 3, SIDE as u32),
        (258, 3, bits.into()),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, SIDE as u32),
        (279, 4, bytes.len() as u32),
    ];
    entries.extend(largest.map(|largest| (281, 3, largest.into())));
    let mut file = b"II*\0".to_vec();
    file.extend((8 + bytes.len() as u32).to_le_bytes());
    file.extend(bytes);
    file.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, value) in entries {
        file.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
        file.extend([1u32.to_le_bytes(), value.to_le_bytes()].concat());
    }
    file.extend([0; 4]);
    std::fs::write(path, file).expect("a file for the test");
}

fn sixteen(values: &[u8], stored: impl Fn(u16) -> u16) -> Vec<u8> {
    values.iter().flat_map(|value| stored((*value).into()).to_le_bytes()).collect()
}

fn twelve(value: u16) -> u16 {
    (u32::from(value) * 4095 / 255) as u16
}

/// A folder with a backbone, labels, and the same picture as 8 bits, 12 bits that are or are not declared, and 12 bits above 32768.
fn stored_differently() -> tempfile::TempDir {
    let folder = folders(&["labels"]);
    let at = |name: &str| folder.path().join(name);
    backbone(&at("backbone.safetensors"));
    let picture = picture(0);
    write_tiff(&at("eight.tif"), 8, &picture, None);
    write_tiff(&at("twelve.tif"), 16, &sixteen(&picture, twelve), None);
    write_tiff(&at("declared.tif"), 16, &sixteen(&picture, twelve), Some(4095));
    write_tiff(&at("offset.tif"), 16, &sixteen(&picture, |value| 32768 + twelve(value)), None);
    let labels: Vec<u8> = (0..SIDE * SIDE).map(|at| u8::from(inside(at, 0))).collect();
    write_labels(&at("labels.png"), SIDE, &labels);
    folder
}

fn fit(folder: &Path, image: &str, more: &[&str]) -> Run {
    let mut arguments = vec!["fit", "--backbone", "backbone.safetensors", "--images", image];
    arguments.extend(["--labels", "labels.png", "--ensemble", "2", "-o", "model.safetensors", "--json"]);
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn segment(folder: &Path, images: &[&str], more: &[&str]) -> Run {
    let arguments = ["segment", "--model", "model.safetensors", "-o", "out", "--force", "--json"];
    mdm(folder, &[&arguments, images, more].concat())
}

fn labels(folder: &Path, name: &str) -> Vec<u8> {
    mdm_images::read_labels(&folder.join("out").join(name)).expect("labels").values
}

fn agreement(a: &[u8], b: &[u8]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

#[test]
fn a_model_of_8_bits_segments_12_bits() {
    let folder = stored_differently();
    let fitted = fit(folder.path(), "eight.tif", &[]).expect(0, &[]);
    assert!(!fitted.err.contains("warning"), "{}", fitted.err);
    assert_eq!(fitted.json()["range"], "declared");
    let run = segment(folder.path(), &["eight.tif", "declared.tif"], &[]).expect(0, &[]);
    assert!(!run.err.contains("warning"), "{}", run.err);
    assert_eq!(run.json()["images"][1]["intensity_limits"][0]["high"], 4095.0);
    let want = labels(folder.path(), "eight.png");
    assert!(want.contains(&0) && want.contains(&1));
    assert!(agreement(&labels(folder.path(), "declared.png"), &want) > 0.99);

    std::fs::copy(folder.path().join("offset.tif"), folder.path().join("again.tif")).expect("a copy");
    let words = [
        "2 images, such as again.tif: ",
        "looks like 12 bits with an offset of 32768",
        "--range 32768,36863",
        "twelve.tif: values reach",
        "--range 0,4095",
    ];
    let run = segment(folder.path(), &["again.tif", "offset.tif", "twelve.tif"], &[]).expect(0, &words);
    assert_eq!(run.err.matches("warning").count(), 2, "{}", run.err);
    let warned = &run.json()["intensity_warnings"][0];
    assert_eq!((&warned["kind"], &warned["images"]), (&"narrow".into(), &2.into()));
    assert_eq!(warned["suggestion"], "32768,36863");
    for (image, range) in [("twelve", "0,4095"), ("offset", "32768,36863")] {
        let run = segment(folder.path(), &[&format!("{image}.tif")], &["--range", range]).expect(0, &[]);
        assert!(!run.err.contains("warning"), "{}", run.err);
        assert!(agreement(&labels(folder.path(), &format!("{image}.png")), &want) > 0.99, "{image}");
    }
}

#[test]
fn a_model_keeps_the_range_of_its_fit() {
    let folder = stored_differently();
    let words = ["values reach", "looks like 12 bits; use --range 0,4095 or --range percentile"];
    fit(folder.path(), "twelve.tif", &["--range", "type"]).expect(0, &words);
    // What it was fitted on is no surprise to it.
    let run = segment(folder.path(), &["twelve.tif"], &[]).expect(0, &[]);
    assert!(!run.err.contains("warning"), "{}", run.err);

    let run = fit(folder.path(), "twelve.tif", &["--range", "0,4095"]).expect(0, &[]);
    assert_eq!(run.json()["range"], "0,4095");
    let info = mdm(folder.path(), &["info", "model.safetensors"]).expect(0, &[]);
    assert!(info.out.contains("0,4095 in stored units; fitted on values"), "{}", info.out);
    segment(folder.path(), &["twelve.tif"], &[]).expect(0, &[]);
    let want = labels(folder.path(), "twelve.png");
    segment(folder.path(), &["offset.tif"], &[]).expect(0, &["offset.tif: 100 % of the values"]);
    segment(folder.path(), &["eight.tif"], &[]).expect(0, &["eight.tif: values reach"]);
    segment(folder.path(), &["eight.tif"], &["--range", "type"]).expect(0, &[]);
    assert!(agreement(&labels(folder.path(), "eight.png"), &want) > 0.99);

    fit(folder.path(), "twelve.tif", &["--range", "percentile"]).expect(0, &[]);
    let run = segment(folder.path(), &["twelve.tif", "eight.tif", "offset.tif"], &[]).expect(0, &[]);
    assert!(!run.err.contains("warning"), "{}", run.err);
    let want = labels(folder.path(), "twelve.png");
    for name in ["eight.png", "offset.png"] {
        assert!(agreement(&labels(folder.path(), name), &want) > 0.99, "{name}");
    }
}

#[test]
fn images_without_contrast_and_ranges_that_are_none_are_named() {
    let folder = stored_differently();
    write_tiff(&folder.path().join("black.tif"), 8, &[7; SIDE * SIDE], None);
    fit(folder.path(), "black.tif", &[]).expect(0, &["black.tif: all pixels have the value 7: no contrast"]);
    for range in ["4095", "5,5", "percentile:99", "full"] {
        fit(folder.path(), "eight.tif", &["--range", range]).expect(2, &["--range", "0,4095"]);
    }
    fit(folder.path(), "eight.tif", &["--range", "-5,255"]).expect(0, &[]);
    fit(folder.path(), "eight.tif", &["--range", "0,255/0,255"]).expect(2, &["2 channels", "has 1"]);
}
