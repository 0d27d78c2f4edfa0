//! `mdm fit` and `mdm segment` on small images with a small random backbone.

mod support;

use std::path::Path;
use std::time::SystemTime;

use support::{Run, backbone, folders, mdm, write_labels, write_rgb};

const SIDE: usize = 40;

/// A folder with a backbone, two labelled images of bright discs, and a model fitted to them.
fn fitted() -> tempfile::TempDir {
    let folder = folders(&["images", "labels"]);
    backbone(&folder.path().join("backbone.safetensors"));
    for (name, centre) in [("a", (12, 14)), ("b", (25, 22))] {
        disc(folder.path(), name, centre);
    }
    fit(folder.path(), "model.safetensors", &[]).expect(0, &[]);
    folder
}

fn fit(folder: &Path, output: &str, more: &[&str]) -> Run {
    let mut arguments =
        vec!["fit", "--backbone", "backbone.safetensors", "--images", "images", "--labels", "labels"];
    arguments.extend(["--ensemble", "2", "-o", output]);
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn disc(folder: &Path, name: &str, centre: (usize, usize)) {
    let inside =
        |at: usize| (at % SIDE).abs_diff(centre.0).pow(2) + (at / SIDE).abs_diff(centre.1).pow(2) < 64;
    let rgb: Vec<u8> = (0..SIDE * SIDE)
        .flat_map(|at| [if inside(at) { 200 } else { 40 } + (at * 7 % 13) as u8; 3])
        .collect();
    write_rgb(&folder.join("images").join(format!("{name}.png")), SIDE, &rgb);
    let labels: Vec<u8> = (0..SIDE * SIDE).map(|at| u8::from(inside(at))).collect();
    write_labels(&folder.join("labels").join(format!("{name}.png")), SIDE, &labels);
}

fn segment(folder: &Path, more: &[&str]) -> Run {
    let mut arguments = vec!["segment", "--model", "model.safetensors", "-o", "out"];
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn written(folder: &Path, file: &str) -> SystemTime {
    std::fs::metadata(folder.join(file)).and_then(|file| file.modified()).expect("the file is there")
}

#[test]
fn fitting_segmenting_and_evaluating_go_together() {
    let folder = fitted();
    let run =
        segment(folder.path(), &["images", "--json", "--probabilities", "--uncertainty"]).expect(0, &[]);
    let summary = run.json();
    assert_eq!(summary["done"], 2);
    assert_eq!(summary["classes"], serde_json::json!(["background", "foreground"]));
    for file in ["a.png", "overlays/a.png", "probabilities/a.tif", "uncertainty/a.tif"] {
        assert!(folder.path().join("out").join(file).is_file(), "{file} is missing");
    }
    let names: Vec<_> = std::fs::read_dir(folder.path().join("out")).expect("a folder").flatten().collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let score =
        mdm(folder.path(), &["eval", "--prediction", "out", "--truth", "labels", "--json"]).expect(0, &[]);
    let dice = score.json()["mean"]["dice"].as_f64().expect("a number");
    assert!(dice > 0.8, "Dice {dice} on the images that were fitted");
}

#[test]
fn what_is_done_is_skipped_unless_forced_or_incomplete() {
    let folder = fitted();
    segment(folder.path(), &["images/a.png"]).expect(0, &[]);
    let first = written(folder.path(), "out/a.png");
    let run = segment(folder.path(), &["images", "--json"]).expect(0, &[]);
    assert_eq!((&run.json()["done"], &run.json()["skipped"]), (&1.into(), &1.into()));
    assert_eq!(written(folder.path(), "out/a.png"), first);
    let run = segment(folder.path(), &["images/a.png", "--uncertainty", "--json"]).expect(0, &[]);
    assert_eq!(run.json()["done"], 1);
    let second = written(folder.path(), "out/a.png");
    assert!(second > first);
    segment(folder.path(), &["images/a.png", "--force"]).expect(0, &[]);
    assert!(written(folder.path(), "out/a.png") > second);
}

#[test]
fn bad_files_are_listed_and_the_rest_goes_on() {
    let folder = fitted();
    let images = folder.path().join("images");
    let whole = std::fs::read(images.join("a.png")).expect("the image is there");
    std::fs::write(images.join("cut.png"), &whole[..whole.len() / 2]).expect("a cut image");
    std::fs::write(images.join("text.jpg"), "no picture").expect("a file");
    let run = segment(folder.path(), &["images", "nowhere.png", "none*.tif", "--json"]);
    let words = ["cut.png", "text.jpg", "nowhere.png", "none*.tif", "4 of 6 inputs failed"];
    let run = run.expect(1, &words);
    assert_eq!((&run.json()["done"], &run.json()["failed"]), (&2.into(), &4.into()));
    assert!(folder.path().join("out/b.png").is_file());
    assert!(!folder.path().join("out/cut.png").exists());
}

#[test]
fn tiny_images_and_patterns_work() {
    let folder = fitted();
    for (name, width, count) in [("one", 1, 1), ("seven", 7, 7), ("row", 90, 90)] {
        write_rgb(&folder.path().join(format!("images/tiny-{name}.png")), width, &vec![90; 3 * count]);
    }
    let run = segment(folder.path(), &["images/tiny-*.png", "--json"]).expect(0, &[]);
    assert_eq!(run.json()["done"], 3);
}

#[test]
fn outputs_that_would_collide_are_refused_before_any_work() {
    let folder = fitted();
    std::fs::create_dir(folder.path().join("other")).expect("a folder");
    std::fs::copy(folder.path().join("images/a.png"), folder.path().join("other/a.tif")).expect("a copy");
    segment(folder.path(), &["images", "other"]).expect(2, &["images/a.png", "other/a.tif", "same output"]);
    mdm(folder.path(), &["segment", "--model", "model.safetensors", "-o", "images", "images/a.png"])
        .expect(2, &["images/a.png", "output folder"]);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_said_at_once() {
    let folder = fitted();
    std::fs::write(folder.path().join("out"), "a file in the way").expect("a file");
    segment(folder.path(), &["images"]).expect(1, &["out", "cannot create this folder", "-o"]);
    fit(folder.path(), "nowhere/model.safetensors", &[]).expect(2, &["nowhere", "no such folder"]);
}

#[test]
fn a_model_that_cannot_segment_says_what_it_needs() {
    let folder = fitted();
    let run = |model: &str| mdm(folder.path(), &["segment", "--model", model, "-o", "out", "images"]);
    run("absent.safetensors").expect(1, &["absent.safetensors"]);
    run("labels/a.png").expect(1, &["labels/a.png"]);
    let backbone = run("backbone.safetensors");
    assert!(backbone.code != 0 && backbone.err.contains("heads"), "{}", backbone.err);
    fit(folder.path(), "heads.safetensors", &["--heads-only"]).expect(0, &[]);
    let alone = run("heads.safetensors");
    assert!(alone.code != 0 && alone.err.contains("backbone"), "{}", alone.err);
    mdm(
        folder.path(),
        &[
            "segment",
            "--model",
            "heads.safetensors",
            "--backbone",
            "backbone.safetensors",
            "-o",
            "out",
            "images",
        ],
    )
    .expect(0, &[]);
}

#[test]
fn labels_that_cannot_be_meant_are_refused_before_any_work() {
    let folder = folders(&["images", "labels"]);
    backbone(&folder.path().join("backbone.safetensors"));
    fit(folder.path(), "model.safetensors", &[]).expect(1, &["images", "no PNG, JPEG, TIFF or BMP"]);
    disc(folder.path(), "a", (12, 14));
    let labels = folder.path().join("labels/a.png");
    write_labels(&labels, SIDE - 1, &vec![1; (SIDE - 1) * SIDE]);
    fit(folder.path(), "model.safetensors", &[])
        .expect(1, &["labels/a.png: is 39 x 40", "images/a.png is 40 x 40"]);
    write_labels(&labels, SIDE, &vec![0; SIDE * SIDE]);
    fit(folder.path(), "model.safetensors", &[]).expect(1, &["only class 0"]);
    let mask: Vec<u8> = (0..SIDE * SIDE).map(|at| if at % 3 == 0 { 255 } else { 0 }).collect();
    write_labels(&labels, SIDE, &mask);
    fit(folder.path(), "model.safetensors", &[]).expect(1, &["replace 255 by 1"]);
    std::fs::rename(&labels, folder.path().join("labels/c.png")).expect("renamed");
    fit(folder.path(), "model.safetensors", &[]).expect(1, &["no label file has the name of an image"]);
    assert!(!folder.path().join("model.safetensors").exists());
}

#[test]
fn scribbles_and_a_seed_decide_the_model() {
    let folder = folders(&["images", "labels"]);
    backbone(&folder.path().join("backbone.safetensors"));
    disc(folder.path(), "a", (20, 20));
    let scribbles: Vec<u8> = (0..SIDE * SIDE)
        .map(|at| match (at % SIDE, at / SIDE) {
            (17..24, 18..22) => 1,
            (2..36, 3..6) => 0,
            _ => 255,
        })
        .collect();
    write_labels(&folder.path().join("labels/a.png"), SIDE, &scribbles);
    let model = |seed: &str| {
        let run =
            fit(folder.path(), "model.safetensors", &["--seed", seed, "--classes", "glass,cell", "--json"])
                .expect(0, &[]);
        assert_eq!(run.json()["classes"][1]["name"], "cell");
        assert_eq!(run.json()["classes"][1]["labelled_pixels"], 28);
        std::fs::read(folder.path().join("model.safetensors")).expect("the model is there")
    };
    let first = model("3");
    assert!(first == model("3"), "the same seed gives the same file");
    assert!(first != model("4"), "another seed gives another file");
}
