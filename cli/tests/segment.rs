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

#[test]
fn subfolders_are_kept_below_the_output_folder() {
    let folder = fitted();
    for plate in ["plates/p1", "plates/p2/deep"] {
        std::fs::create_dir_all(folder.path().join(plate)).expect("a folder");
        std::fs::copy(folder.path().join("images/a.png"), folder.path().join(plate).join("well.png"))
            .expect("a copy");
    }
    segment(folder.path(), &["plates"]).expect(1, &["plates", "--recursive"]);
    let run = segment(folder.path(), &["plates", "--recursive", "--json"]).expect(0, &[]);
    assert_eq!(run.json()["done"], 2);
    for file in ["p1/well.png", "p2/deep/well.png", "overlays/p1/well.png", "overlays/p2/deep/well.png"] {
        assert!(folder.path().join("out").join(file).is_file(), "{file} is missing");
    }
    let run = segment(folder.path(), &["plates", "--recursive", "--json"]).expect(0, &[]);
    assert_eq!(run.json()["skipped"], 2);
}

#[test]
fn results_of_other_models_images_and_settings_are_replaced() {
    let folder = fitted();
    let path = |file: &str| folder.path().join(file);
    let run = |more: &[&str]| {
        let run = segment(folder.path(), &[&["images", "--json"], more].concat()).expect(0, &[]);
        let count = |what: &str| run.json()[what].as_u64().expect("a number");
        (count("done"), count("replaced"), count("skipped"))
    };
    assert_eq!(run(&[]), (2, 0, 0));
    assert_eq!(run(&[]), (0, 0, 2));
    assert_eq!(run(&["--vote"]), (2, 2, 0));
    assert_eq!(run(&["--vote"]), (0, 0, 2));
    fit(folder.path(), "model.safetensors", &["--seed", "7"]).expect(0, &[]);
    assert_eq!(run(&["--vote"]), (2, 2, 0));
    // Another image, a label file of no bytes, and one that was cut.
    disc(folder.path(), "a", (20, 20));
    assert_eq!(run(&["--vote"]), (1, 1, 1));
    std::fs::write(path("out/a.png"), "").expect("an empty file");
    let overlay = std::fs::read(path("out/overlays/b.png")).expect("the overlay is there");
    std::fs::write(path("out/overlays/b.png"), &overlay[..overlay.len() - 20]).expect("a cut file");
    assert_eq!(run(&["--vote"]), (2, 2, 0));
    // Labels that a person corrected, or an older version wrote, do not say what made them.
    write_labels(&path("out/a.png"), SIDE, &[1; SIDE * SIDE]);
    let corrected = std::fs::read(path("out/a.png")).expect("the labels are there");
    let kept = segment(folder.path(), &["images", "--vote"]).expect(0, &["1 label files", "--force"]);
    assert!(kept.out.contains("2 were done before"), "{}", kept.out);
    assert_eq!(std::fs::read(path("out/a.png")).expect("the labels are there"), corrected);
}

#[test]
fn a_wrong_pixel_size_ends_the_command_at_once() {
    let folder = fitted();
    fit(folder.path(), "model.safetensors", &["--mpp", "0.5"]).expect(0, &[]);
    let run = segment(folder.path(), &["images", "--mpp", "5000"]).expect(2, &["1/64 to 16"]);
    assert_eq!(run.err.matches("1/64 to 16").count(), 1, "{}", run.err);
}

#[cfg(unix)]
mod unix {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn an_interruption_leaves_nothing_half_written() {
        let folder = fitted();
        for copy in 0..400 {
            let name = format!("images/copy-{copy}.png");
            std::fs::copy(folder.path().join("images/a.png"), folder.path().join(name)).expect("a copy");
        }
        let mut running = Command::new(env!("CARGO_BIN_EXE_mdm"))
            .current_dir(folder.path())
            .env("MDM_CACHE", "")
            .args(["segment", "--model", "model.safetensors", "-o", "out", "images", "--device", "cpu"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let began = Instant::now();
        while !folder.path().join("out/a.png").exists() && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let signalled = Command::new("kill").args(["-INT", &running.id().to_string()]).status();
        assert!(signalled.expect("kill runs").success());
        let status = running.wait().expect("it ends");
        assert_eq!(status.code(), Some(130));
        for part in ["out", "out/overlays"] {
            for entry in std::fs::read_dir(folder.path().join(part)).expect("a folder").flatten() {
                assert!(!entry.file_name().as_bytes().starts_with(b"."), "{entry:?} was left");
            }
        }
        let done = std::fs::read_dir(folder.path().join("out")).expect("a folder").count();
        assert!(done < 300, "{done} files");
        let run = segment(folder.path(), &["images/a.png", "images/b.png", "--json"]).expect(0, &[]);
        assert!(run.json()["skipped"].as_u64() >= Some(1), "{}", run.out);
    }

    #[test]
    fn names_that_are_no_unicode_survive() {
        let folder = fitted();
        let name = OsStr::from_bytes(b"0.5\xB5m.png");
        if std::fs::copy(folder.path().join("images/a.png"), folder.path().join("images").join(name)).is_err()
        {
            return;
        }
        let run = segment(folder.path(), &["images", "--json"]).expect(0, &[]);
        assert_eq!(run.json()["done"], 3);
        assert!(folder.path().join("out").join(name).is_file());
    }

    #[test]
    fn broken_links_are_reported() {
        let folder = fitted();
        std::os::unix::fs::symlink("gone.png", folder.path().join("images/c.png")).expect("a link");
        segment(folder.path(), &["images"]).expect(1, &["images/c.png", "gone.png", "1 of 3 inputs failed"]);
        assert!(folder.path().join("out/b.png").is_file());
    }
}
