//! Choosing devices, and the same results on each. Where there is no GPU, not even a software one, tests that need one
//! say that they skip.

mod support;

use std::path::Path;

use serde_json::Value;
use support::{folders, mdm, mdm_with_cache, write_labels, write_rgb};

const SIDE: usize = 64;

/// Largest difference between the probabilities of f16 and f32.
const TOLERANCE: f32 = 0.02;

fn devices() -> Vec<Value> {
    let folder = folders(&[]);
    let list = mdm(folder.path(), &["devices", "--json"]).expect(0, &[]).json();
    list["devices"].as_array().expect("a list").clone()
}

/// GPUs of any kind as numbers and what they support.
fn gpus() -> Vec<(String, Vec<Value>)> {
    let gpus: Vec<_> = devices()
        .iter()
        .filter(|device| device["kind"] != "CPU")
        .map(|device| {
            (device["number"].to_string(), device["supports"].as_array().cloned().unwrap_or_default())
        })
        .collect();
    if gpus.is_empty() {
        eprintln!("skipped: no driver shows a GPU");
    }
    gpus
}

#[test]
fn devices_are_listed_with_the_one_that_auto_takes() {
    let devices = devices();
    for (number, device) in devices.iter().enumerate() {
        assert_eq!(device["number"], number);
        assert_eq!(device["auto"] == true, device["auto_reason"].is_null(), "{device}");
        for key in ["name", "kind", "backend", "precision"] {
            assert!(device[key].as_str().is_some_and(|word| !word.is_empty()), "{key} of {device}");
        }
        assert!(device["kind"] != "software GPU" || device["auto"] == false, "{device}");
    }
    assert_eq!(devices.iter().filter(|device| device["auto"] == true).count(), 1);
    let cpu = devices.last().expect("a device");
    assert_eq!(cpu["backend"], "cpu");
    assert!(cpu["threads"].as_u64() >= Some(1));
    let folder = folders(&[]);
    let table = mdm(folder.path(), &["devices"]).expect(0, &[]).out;
    for device in &devices {
        assert!(table.contains(device["name"].as_str().expect("a name")), "{table}");
    }
}

#[test]
fn a_device_that_is_not_there_is_wrong_usage() {
    let folder = folders(&[]);
    let bench =
        |more: &[&str]| mdm(folder.path(), &[&["bench", "--width", "32", "--window", "64"], more].concat());
    let names: Vec<String> =
        devices().iter().filter_map(|device| device["name"].as_str().map(ToOwned::to_owned)).collect();
    let mut words = vec!["nonsense", "auto", "gpu", "cpu"];
    words.extend(names.iter().map(String::as_str));
    bench(&["--device", "nonsense"]).expect(2, &words);
    bench(&["--device", "99"]).expect(2, &["99"]);
    bench(&["--memory", "much"]).expect(2, &["4GB"]);
    bench(&["--precision", "f8"]).expect(2, &["f16"]);
    bench(&["--device", "cpu", "--precision", "f16", "--runs", "1"]).expect(0, &["the CPU computes in f32"]);
}

#[test]
fn gpus_are_benchmarked_with_their_ceilings_and_their_shaders_are_kept() {
    let folder = folders(&[]);
    for (number, supports) in gpus() {
        let arguments =
            ["bench", "--device", &number, "--precision", "f32", "--width", "32", "--window", "32"];
        let arguments = [&arguments[..], &["--runs", "1", "--json", "--features", "features"]].concat();
        let report = mdm_with_cache(folder.path(), "cache", &arguments).expect(0, &[]).json();
        assert_eq!(report["device"]["precision"], "f32");
        assert!(report["device_memory_mb"].as_f64() > report["arena_mb"].as_f64(), "{report}");
        if supports.contains(&"timestamps".into()) {
            for key in ["product_gflop_per_second", "copy_gb_per_second"] {
                assert!(report["ceilings"][key].as_f64() > Some(0.0), "{key}: {report}");
            }
            let timed = |operation: &Value| operation["ms"].as_f64() > Some(0.0);
            assert!(report["operations"].as_array().expect("a list").iter().any(timed));
        }
        let bytes = std::fs::read(folder.path().join("features")).expect("features were written");
        // Blocks 8 to 10 have 8 x 8 pixels of 64 channels, 11 has 16 x 16 (it ends with upsampling), 12 has 32 channels.
        assert_eq!(bytes.len(), 4 * (3 * 8 * 8 * 64 + 16 * 16 * (64 + 32)));
        if supports.contains(&"pipeline cache".into()) {
            assert!(
                folder
                    .path()
                    .join("cache/pipelines")
                    .read_dir()
                    .is_ok_and(|mut files| files.next().is_some())
            );
            let again = mdm_with_cache(folder.path(), "cache", &arguments).expect(0, &[]).json();
            assert_eq!(again["pipeline_cache"], "warm");
        }
        let short = [&arguments[..], &["--memory", "1MB"]].concat();
        mdm(folder.path(), &short).expect(1, &["device memory"]);
    }
}

/// A model of the bundled backbone for 64 pixels, fitted to a drawn image of a bright disc.
fn fitted(folder: &Path) {
    let inside = |at: usize| (at % SIDE).abs_diff(24).pow(2) + (at / SIDE).abs_diff(30).pow(2) < 200;
    let rgb: Vec<u8> = (0..SIDE * SIDE)
        .flat_map(|at| [if inside(at) { 180 } else { 40 } + (at * 7 % 23) as u8; 3])
        .collect();
    write_rgb(&folder.join("image.png"), SIDE, &rgb);
    let labels: Vec<u8> = (0..SIDE * SIDE).map(|at| u8::from(inside(at))).collect();
    write_labels(&folder.join("labels.png"), SIDE, &labels);
    let backbone = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/mdm_nuclei_32.safetensors");
    let fit =
        ["fit", "--device", "cpu", "--backbone", backbone, "--images", "image.png", "--labels", "labels.png"];
    let fit =
        [&fit[..], &["--window", "64", "--ensemble", "2", "--no-held-out", "--json", "-o", "model"]].concat();
    let report = mdm(folder, &fit).expect(0, &[]).json();
    assert_eq!((&report["device"]["backend"], &report["fallback"]), (&"cpu".into(), &Value::Null));
    assert_eq!(report["head_device"], serde_json::json!({ "gpu": null, "fallback": null }));
}

/// Labels and probabilities of the image, class by class.
fn segmented(folder: &Path, device: &str, precision: &str) -> (Vec<u8>, Vec<Vec<f32>>) {
    let output = format!("on-{device}-{precision}");
    let segment = ["segment", "--model", "model", "image.png", "--no-overlay", "--probabilities", "--json"];
    let segment = [&segment[..], &["--device", device, "--precision", precision, "-o", &output]].concat();
    let report = mdm(folder, &segment).expect(0, &[]).json();
    assert_eq!(report["device"]["precision"], precision);
    let file = |name: &str| std::fs::File::open(folder.join(&output).join(name)).expect("a result");
    let mut png =
        png::Decoder::new(std::io::BufReader::new(file("image.png"))).read_info().expect("labels are a PNG");
    let mut labels = vec![0; png.output_buffer_size().expect("a size")];
    png.next_frame(&mut labels).expect("the labels are whole");
    let mut tiff =
        tiff::decoder::Decoder::new(file("probabilities/image.tif")).expect("probabilities are a TIFF");
    let mut pages = Vec::new();
    loop {
        let tiff::decoder::DecodingResult::F32(page) = tiff.read_image().expect("a page") else {
            unreachable!("pages are f32")
        };
        pages.push(page);
        if !tiff.more_images() {
            return (labels, pages);
        }
        tiff.next_image().expect("another page");
    }
}

#[test]
fn gpus_segment_like_the_processor() {
    let gpus = gpus();
    if gpus.is_empty() {
        return;
    }
    let folder = folders(&[]);
    fitted(folder.path());
    let (labels, probabilities) = segmented(folder.path(), "cpu", "f32");
    assert!(labels.contains(&0) && labels.contains(&1) && probabilities.len() == 2);
    for (number, supports) in gpus {
        for (precision, tolerance) in [("f32", 1e-4), ("f16", TOLERANCE)] {
            if precision == "f16" && !supports.contains(&"f16".into()) {
                eprintln!("skipped: device {number} has no f16");
                continue;
            }
            let (own_labels, own) = segmented(folder.path(), &number, precision);
            for (expected, own) in probabilities.iter().zip(&own) {
                let worst = expected.iter().zip(own).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < tolerance, "device {number}, {precision}: probabilities differ by {worst}");
            }
            for (at, (expected, own)) in labels.iter().zip(&own_labels).enumerate() {
                let gap = (probabilities[0][at] - probabilities[1][at]).abs();
                assert!(
                    expected == own || gap < 2.0 * tolerance,
                    "device {number}, {precision}: pixel {at} is {own}, not {expected}"
                );
            }
        }
    }
}
