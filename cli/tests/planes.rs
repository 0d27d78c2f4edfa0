//! Files of several planes, turned images, damaged ones, and sizes of pixels.

mod support;

use std::path::Path;

use support::{Run, backbone, folders, mdm, write_labels};
use tiff::encoder::{Rational, TiffEncoder, colortype::Gray8};
use tiff::tags::{ResolutionUnit, Tag};

const SIDE: usize = 40;

/// Grey values: a bright disc on a dark ground.
fn picture() -> Vec<u8> {
    (0..SIDE * SIDE).map(|at| if inside(at) { 200 } else { 40 } + (at * 7 % 13) as u8).collect()
}

fn inside(at: usize) -> bool {
    (at % SIDE).abs_diff(14).pow(2) + (at / SIDE).abs_diff(17).pow(2) < 80
}

/// What a page says beside its pixels.
#[derive(Clone, Copy, Default)]
struct Said<'a> {
    description: &'a str,
    /// Pixels a centimetre along x and y.
    density: Option<(u32, u32)>,
}

fn write_pages(path: &Path, pages: &[&[u8]], said: Said<'_>) {
    let file = std::fs::File::create(path).expect("a file for the test");
    let mut encoder = TiffEncoder::new(file).expect("a TIFF for the test");
    for page in pages {
        let mut image = encoder.new_image::<Gray8>(SIDE as u32, SIDE as u32).expect("a page");
        if let Some((x, y)) = said.density {
            image.resolution(ResolutionUnit::Centimeter, Rational { n: x, d: 1 });
            image.y_resolution(Rational { n: y, d: 1 });
        }
        if !said.description.is_empty() {
            image.encoder().write_tag(Tag::ImageDescription, said.description).expect("a description");
        }
        image.write_data(page).expect("pixels");
    }
}

/// A folder with a backbone, labels, a picture, and stacks with that picture in the second of three pages.
fn stacks() -> tempfile::TempDir {
    let folder = folders(&["stacks"]);
    let at = |name: &str| folder.path().join(name);
    backbone(&at("backbone.safetensors"));
    let (picture, black) = (picture(), vec![0; SIDE * SIDE]);
    write_pages(&at("picture.tif"), &[&picture], Said::default());
    for name in ["stacks/a.tif", "stacks/b.tif"] {
        write_pages(&at(name), &[&black, &picture, &black], Said::default());
    }
    let labels: Vec<u8> = (0..SIDE * SIDE).map(|at| u8::from(inside(at))).collect();
    write_labels(&at("labels.png"), SIDE, &labels);
    folder
}

fn fit(folder: &Path, backbone: &str, image: &str, more: &[&str]) -> Run {
    let mut arguments = vec!["fit", "--backbone", backbone, "--images", image, "--labels", "labels.png"];
    arguments.extend(["--ensemble", "2", "-o", "model.safetensors", "--device", "cpu"]);
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn segment(folder: &Path, image: &str, more: &[&str]) -> Run {
    let arguments = ["segment", "--model", "model.safetensors", "-o", "out", "--device", "cpu", image];
    mdm(folder, &[&arguments, more].concat())
}

fn labels(folder: &Path, name: &str) -> Vec<u8> {
    mdm_images::read_labels(&folder.join("out").join(name)).expect("labels").values
}

#[test]
fn no_command_takes_a_part_of_a_file_silently() {
    let folder = stacks();
    let words = ["only plane 1 of 3 is used", "--channels, --z and --time"];
    fit(folder.path(), "backbone.safetensors", "picture.tif", &[]).expect(0, &[]);
    let run = segment(folder.path(), "stacks", &[]).expect(0, &words);
    assert_eq!(run.err.matches("only plane").count(), 1, "{}", run.err);
    let pretrain =
        ["pretrain", "stacks", "-o", "run", "--width", "32", "--size", "32", "--head-channels", "32"];
    let short = ["--steps", "1", "--batch", "1", "--samples-every", "0", "--device", "cpu"];
    mdm(folder.path(), &[&pretrain[..], &short].concat()).expect(0, &words);
    fit(folder.path(), "backbone.safetensors", "stacks/a.tif", &[]).expect(0, &words);
}

#[test]
fn the_plane_that_is_asked_for_is_used() {
    let folder = stacks();
    fit(folder.path(), "backbone.safetensors", "stacks/a.tif", &["--z", "2"]).expect(0, &[]);
    segment(folder.path(), "picture.tif", &[]).expect(0, &[]);
    let expected = labels(folder.path(), "picture.png");
    for z in ["2", "mid", "max"] {
        let run = segment(folder.path(), "stacks/a.tif", &["--z", z]).expect(0, &[]);
        assert!(!run.err.contains("plane"), "{}", run.err);
        assert!(!run.out.contains("skipped"), "{}", run.out);
        assert_eq!(labels(folder.path(), "a.png"), expected, "{z}");
    }
    segment(folder.path(), "stacks/a.tif", &["--z", "4"])
        .expect(1, &["a.tif: has 3 planes", "--z asks for number 4"]);
    segment(folder.path(), "picture.tif", &["--channels", "DAPI"])
        .expect(1, &["does not name its 1 channel"]);
    segment(folder.path(), "picture.tif", &["--channels", "1,2"]).expect(2, &["the network takes 1 or 3"]);
    segment(folder.path(), "picture.tif", &["--z", "first"]).expect(2, &["\"max\""]);
}

#[test]
fn sizes_that_are_unknown_or_differ_are_said_when_fitting() {
    let folder = stacks();
    let import = ["import", "backbone.safetensors", "-o", "scaled.safetensors", "--mpp", "1.0"];
    mdm(folder.path(), &import).expect(0, &[]);
    fit(folder.path(), "scaled.safetensors", "picture.tif", &[])
        .expect(0, &["does not say how large", "1 um"]);
    let quiet = fit(folder.path(), "scaled.safetensors", "picture.tif", &["--mpp", "1"]).expect(0, &[]);
    assert!(!quiet.err.contains("how large"), "{}", quiet.err);
    std::fs::create_dir_all(folder.path().join("two")).expect("a folder");
    std::fs::create_dir_all(folder.path().join("labels")).expect("a folder");
    for (name, density) in [("a", 40_000), ("b", 10_000)] {
        let said = Said { density: Some((density, density)), ..Said::default() };
        write_pages(&folder.path().join(format!("two/{name}.tif")), &[&picture()], said);
        let copy = folder.path().join(format!("labels/{name}.png"));
        std::fs::copy(folder.path().join("labels.png"), copy).expect("labels");
    }
    let two = ["fit", "--backbone", "backbone.safetensors", "--images", "two", "--labels", "labels"];
    let rest = ["--ensemble", "2", "-o", "model.safetensors", "--device", "cpu"];
    let words = ["pixels of 1 um", "pixels of 0.25 um", "the model will not know its own", "--mpp"];
    mdm(folder.path(), &[&two[..], &rest].concat()).expect(0, &words);
}

#[test]
fn odd_sizes_of_pixels_name_the_file_and_the_option() {
    let folder = stacks();
    let at = |name: &str| folder.path().join(name);
    fit(folder.path(), "backbone.safetensors", "picture.tif", &["--mpp", "0.5"]).expect(0, &[]);
    let tiny = Said { density: Some((10_000_000, 10_000_000)), ..Said::default() };
    write_pages(&at("tiny.tif"), &[&picture()], tiny);
    segment(folder.path(), "tiny.tif", &[]).expect(1, &["tiny.tif", "The file says so", "--mpp"]);
    let oblong = Said { density: Some((40_000, 20_000)), ..Said::default() };
    write_pages(&at("oblong.tif"), &[&picture()], oblong);
    segment(folder.path(), "oblong.tif", &[])
        .expect(1, &["oblong.tif", "0.25 um wide and 0.5 um high", "--mpp"]);
    segment(folder.path(), "oblong.tif", &["--mpp", "0.5"]).expect(0, &[]);
    let furlongs = Said {
        description: "<OME><Image><Pixels PhysicalSizeX=\"1\" PhysicalSizeXUnit=\"furlong\"/></Image></OME>",
        density: Some((20_000, 20_000)),
    };
    write_pages(&at("furlongs.tif"), &[&picture()], furlongs);
    segment(folder.path(), "furlongs.tif", &[]).expect(0, &["furlongs.tif", "1 furlong", "not understood"]);
}

#[test]
fn one_damaged_file_does_not_stop_the_others() {
    let folder = stacks();
    fit(folder.path(), "backbone.safetensors", "picture.tif", &[]).expect(0, &[]);
    let jpeg = b"\xFF\xD8\xFF\xE0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0";
    std::fs::write(folder.path().join("stacks/aa.jpg"), jpeg).expect("a file");
    let run = segment(folder.path(), "stacks", &["--z", "2"]).expect(1, &["aa.jpg: is damaged or cut short"]);
    assert!(run.out.contains("2 images segmented"), "{}", run.out);
}
