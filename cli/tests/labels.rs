//! Labels as people and other programs leave them: `mdm fit` and `mdm eval`.

mod support;

use std::path::Path;

use png::ColorType;
use support::{Run, backbone, folders, mdm, write_labels, write_png, write_rgb};

const SIDE: usize = 48;

/// Where in the image a pixel is: 0 outside, else the number of its disc. There are nine discs that do not touch.
fn disc(at: usize) -> u8 {
    let (x, y) = (at % SIDE, at / SIDE);
    let (column, row) = (x / 16, y / 16);
    let inside = (x % 16).abs_diff(8).pow(2) + (y % 16).abs_diff(8).pow(2) < 36;
    if inside { (3 * row + column + 1) as u8 } else { 0 }
}

fn discs() -> Vec<u8> {
    (0..SIDE * SIDE).map(disc).collect()
}

fn write_image(path: &Path) {
    let rgb: Vec<u8> = (0..SIDE * SIDE)
        .flat_map(|at| [if disc(at) > 0 { 200 } else { 40 } + (at * 7 % 13) as u8; 3])
        .collect();
    write_rgb(path, SIDE, &rgb);
}

/// A folder with a backbone and one image.
fn prepared() -> tempfile::TempDir {
    let folder = folders(&["images", "labels"]);
    backbone(&folder.path().join("backbone.safetensors"));
    write_image(&folder.path().join("images/a.png"));
    folder
}

fn fit(folder: &Path, images: &str, labels: &str, more: &[&str]) -> Run {
    let mut arguments = vec!["fit", "--backbone", "backbone.safetensors", "--images", images];
    arguments.extend(["--labels", labels, "--ensemble", "1", "-o", "model.safetensors", "--json"]);
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn eval(folder: &Path, more: &[&str]) -> Run {
    let mut arguments = vec!["eval", "--prediction", "p", "--truth", "t", "--json"];
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn write_wide(path: &Path, numbers: &[u16]) {
    let file = std::fs::File::create(path).expect("a file for the test");
    let mut encoder = tiff::encoder::TiffEncoder::new(file).expect("a TIFF for the test");
    let (width, height) = (SIDE as u32, (numbers.len() / SIDE) as u32);
    encoder
        .write_image::<tiff::encoder::colortype::Gray16>(width, height, numbers)
        .expect("a TIFF for the test");
}

#[test]
fn object_numbers_are_recognised_and_become_classes() {
    let folder = prepared();
    let labels = folder.path().join("labels/a.png");
    write_labels(&labels, SIDE, &discs());
    fit(folder.path(), "images", "labels", &[]).expect(1, &["labels/a.png", "instance mask", "--objects"]);
    assert!(!folder.path().join("model.safetensors").exists());
    let names = |run: &Run| -> Vec<String> {
        let report = run.json();
        let classes = report["classes"].as_array().expect("a list");
        classes.iter().map(|class| class["name"].as_str().expect("a name").to_owned()).collect()
    };
    let whole = fit(folder.path(), "images", "labels", &["--objects"]).expect(0, &[]);
    assert_eq!(names(&whole), ["background", "object"]);
    let rim = fit(folder.path(), "images", "labels", &["--objects=rim"]).expect(0, &[]);
    assert_eq!(names(&rim), ["background", "object", "rim"]);
    let pixels = |run: &Run, class: usize| run.json()["classes"][class]["labelled_pixels"].as_u64();
    assert_eq!(pixels(&whole, 1), Some(discs().iter().filter(|disc| **disc > 0).count() as u64));
    assert_eq!(pixels(&whole, 0), pixels(&rim, 0));
    assert!(pixels(&rim, 2) > Some(0));
    // Numbers beyond 255 and their own file format.
    std::fs::remove_file(&labels).expect("removed");
    let wide: Vec<u16> = discs().iter().map(|disc| 100 * u16::from(*disc)).collect();
    write_wide(&folder.path().join("labels/a_cp_masks.tif"), &wide);
    fit(folder.path(), "images", "labels", &[]).expect(1, &["a_cp_masks.tif", "instance mask", "--objects"]);
    let run = fit(folder.path(), "images", "labels", &["--objects"]).expect(0, &[]);
    assert_eq!(pixels(&run, 1), pixels(&whole, 1));
}

#[test]
fn many_classes_are_fitted_where_they_are_named() {
    let folder = prepared();
    write_labels(&folder.path().join("labels/a.png"), SIDE, &discs());
    let names = (0..10).map(|class| format!("c{class}")).collect::<Vec<_>>().join(",");
    fit(folder.path(), "images", "labels", &["--classes", &names]).expect(0, &[]);
    for (names, words) in [("a,a", "a is named twice"), ("a,", "class 1 is empty")] {
        fit(folder.path(), "images", "labels", &["--classes", names]).expect(2, &[words]);
    }
}

#[test]
fn smoothed_masks_are_told_from_classes() {
    let folder = prepared();
    let values: Vec<u8> = (0..SIDE * SIDE)
        .map(|at| {
            let distance = ((at % SIDE) as f64 - 24.3).hypot((at / SIDE) as f64 - 23.8);
            ((18.0 - distance) * 60.0).clamp(0.0, 255.0) as u8
        })
        .collect();
    write_labels(&folder.path().join("labels/a.png"), SIDE, &values);
    let run = fit(folder.path(), "images", "labels", &[]).expect(1, &["labels/a.png", "resized mask"]);
    assert!(run.err.len() < 1000, "{}", run.err);
}

#[test]
fn colours_are_listed_and_mapped() {
    let folder = prepared();
    let labels = folder.path().join("labels/a.png");
    let rgb: Vec<u8> =
        discs().iter().flat_map(|disc| if *disc > 0 { [255, 0, 0] } else { [0, 0, 9] }).collect();
    write_png(&labels, SIDE, ColorType::Rgb, &rgb);
    fit(folder.path(), "images", "labels", &[]).expect(1, &["colour picture", "#ff0000", "#000009"]);
    let run =
        fit(folder.path(), "images", "labels", &["--label-colours", "#000009=0,#ff0000=1"]).expect(0, &[]);
    assert_eq!(run.json()["classes"].as_array().map(Vec::len), Some(2));
    fit(folder.path(), "images", "labels", &["--label-colours", "red=1"]).expect(2, &["#ff0000=1"]);
    // The remedy that is named for masks of 0 and 255.
    let mask: Vec<u8> = discs().iter().map(|disc| if *disc > 0 { 255 } else { 0 }).collect();
    write_labels(&labels, SIDE, &mask);
    let remedy = "#000000=0,#ffffff=1";
    fit(folder.path(), "images", "labels", &[]).expect(1, &["only class 0", remedy]);
    fit(folder.path(), "images", "labels", &["--label-colours", remedy]).expect(0, &[]);
}

#[test]
fn an_image_is_never_its_own_label_file() {
    let folder = prepared();
    std::fs::copy(folder.path().join("images/a.png"), folder.path().join("images/b.png")).expect("a copy");
    fit(folder.path(), "images", "images", &[]).expect(1, &["images and labels are the same files"]);
    fit(folder.path(), "images/a.png", "images/a.png", &[]).expect(2, &["as an image and as its labels"]);
    // Beside their images, labels are told by their names.
    let mask: Vec<u8> = discs().iter().map(|disc| u8::from(*disc > 0)).collect();
    write_labels(&folder.path().join("images/a_mask.png"), SIDE, &mask);
    let run =
        fit(folder.path(), "images", "images", &[]).expect(0, &["1 images have no label file", "b.png"]);
    assert_eq!(run.json()["images"], 1);
    std::fs::rename(folder.path().join("images/b.png"), folder.path().join("images/b.tif")).expect("renamed");
    write_labels(&folder.path().join("images/b.png"), SIDE, &mask);
    let run = fit(folder.path(), "images", "images", &[]).expect(0, &[]);
    assert_eq!(run.json()["images"], 2);
}

#[test]
fn names_that_do_not_pair_are_shown() {
    let folder = prepared();
    write_labels(&folder.path().join("labels/z.png"), SIDE, &discs());
    fit(folder.path(), "images", "labels", &[]).expect(1, &["images/a.png", "labels/z.png", "a_mask.png"]);
    std::fs::create_dir_all(folder.path().join("plates/p1")).expect("a folder");
    let run = fit(folder.path(), "plates", "labels", &[]).expect(1, &["plates", "name its subfolders"]);
    assert!(!run.err.contains("--recursive"), "{}", run.err);
}

#[test]
fn hidden_files_are_no_labels() {
    let folder = folders(&["p", "t"]);
    for side in ["p", "t"] {
        write_labels(&folder.path().join(side).join("a.png"), 2, &[0, 1]);
        std::fs::write(folder.path().join(side).join("._a.png"), "resource fork").expect("a file");
    }
    let run = eval(folder.path(), &[]).expect(0, &[]);
    assert_eq!(run.json()["images"].as_array().map(Vec::len), Some(1));
}

#[test]
fn truth_that_compares_nothing_is_not_scored() {
    let folder = folders(&["p", "t"]);
    write_labels(&folder.path().join("p/a.png"), 4, &[1, 1, 0, 0]);
    write_labels(&folder.path().join("t/a.png"), 4, &[255, 255, 0, 0]);
    eval(folder.path(), &[]).expect(1, &["t: holds only 0 and 255", "--ignore none"]);
    let run = eval(folder.path(), &["--ignore", "none"]).expect(0, &["255 is compared as class 1"]);
    assert_eq!(run.json()["mean"]["dice"], 1.0);
    assert_eq!(run.json()["mean"]["mean_iou"], 1.0);
    // One mask among labels, and one image without any label.
    write_labels(&folder.path().join("t/b.png"), 4, &[1, 1, 0, 0]);
    write_labels(&folder.path().join("p/b.png"), 4, &[1, 0, 0, 0]);
    write_labels(&folder.path().join("t/c.png"), 4, &[255; 4]);
    write_labels(&folder.path().join("p/c.png"), 4, &[1, 0, 0, 0]);
    let run = eval(folder.path(), &[]).expect(0, &["t/a.png", "only 0 and 255", "t/c.png", "left out"]);
    assert_eq!(run.json()["images"].as_array().map(Vec::len), Some(2));
    assert_eq!(run.json()["left_out"][0]["name"], "c");
    std::fs::remove_file(folder.path().join("t/a.png")).expect("removed");
    std::fs::remove_file(folder.path().join("t/b.png")).expect("removed");
    eval(folder.path(), &[]).expect(1, &["labels nothing in any image"]);
}

#[test]
fn numbers_that_do_not_match_are_told() {
    let folder = folders(&["p", "t"]);
    write_labels(&folder.path().join("p/a.png"), 4, &[255, 255, 0, 0]);
    write_labels(&folder.path().join("t/a_mask.png"), 4, &[1, 1, 0, 0]);
    let run = eval(folder.path(), &[]).expect(0, &["predictions hold only 0 and 255", "class 1"]);
    assert_eq!(run.json()["mean"]["mean_iou"], 1.0);
    write_labels(&folder.path().join("p/a.png"), 4, &[7, 7, 0, 0]);
    eval(folder.path(), &[]).expect(0, &["the indices 7 that the truth never has", "mean_iou"]);
    write_png(
        &folder.path().join("t/a_mask.png"),
        2,
        ColorType::GrayscaleAlpha,
        &[1, 255, 1, 255, 0, 255, 0, 0],
    );
    write_labels(&folder.path().join("p/a.png"), 2, &[1, 1, 0, 1]);
    let run = eval(folder.path(), &[]).expect(0, &["transparent pixels are unlabelled"]);
    assert_eq!(run.json()["mean"]["dice"], 1.0);
}

#[test]
fn object_scores_use_the_objects_that_the_truth_numbers() {
    let folder = folders(&["p", "t"]);
    // Discs that touch: regions of the mask are fewer than the objects.
    let touching: Vec<u8> = (0..SIDE * 16).map(|at| (at % SIDE / 5 + 1) as u8).collect();
    write_labels(&folder.path().join("t/a.png"), SIDE, &touching);
    write_labels(&folder.path().join("p/a.png"), SIDE, &touching.iter().map(|_| 1).collect::<Vec<u8>>());
    eval(folder.path(), &[]).expect(1, &["t/a.png", "instance mask", "--objects"]);
    let merged = eval(folder.path(), &["--objects"]).expect(0, &[]).json();
    assert_eq!(merged["mean"]["dice"], 1.0);
    assert!(merged["mean"]["aji"].as_f64() < Some(0.2), "{merged}");
    // Predictions that number objects themselves.
    let wide: Vec<u16> = touching.iter().map(|number| 300 + u16::from(*number)).collect();
    std::fs::remove_file(folder.path().join("p/a.png")).expect("removed");
    write_wide(&folder.path().join("p/a.tif"), &wide);
    let exact = eval(folder.path(), &["--objects"]).expect(0, &[]).json();
    assert_eq!(exact["mean"]["aji"], 1.0);
}
