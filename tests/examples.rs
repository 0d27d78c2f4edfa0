//! What is in `examples` for C and C++ builds as its comments say, and does what it says.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mdm::segment::SegmentOptions;
use mdm::{Control, Device, DeviceOptions, ImageView, Model, PixelFormat, Segmenter};
use programs::{FOLDER, SANITIZERS, libraries, run, sanitizers, works};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    FOLDER.join("modèle.safetensors")
}

const WIDTH: usize = 61;
const HEIGHT: usize = 43;

fn pixels() -> Vec<u8> {
    (0..WIDTH * HEIGHT * 3)
        .map(|i| ((i / 3 % WIDTH / 9 + i / 3 / WIDTH / 7) % 2 * 150 + i * 7919 % 90) as u8)
        .collect()
}

fn labels(pixels: &[u8], format: PixelFormat) -> Vec<u8> {
    let model = Model::open(&model()).unwrap();
    let device = Device::select("cpu", &DeviceOptions::default()).unwrap();
    let mut segmenter = Segmenter::new(&model, &device, SegmentOptions::default()).unwrap();
    let image = ImageView::new(pixels, WIDTH, HEIGHT, format).unwrap();
    segmenter.segment(&image, &Control::none()).unwrap().labels
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `examples/c/segment.c`, built with some compiler and flags.
fn segment(compiler: &str, flags: &[&str]) -> PathBuf {
    let program = FOLDER.join(format!("segment-{compiler}{}", flags.len()));
    let libraries = libraries();
    run(Command::new(compiler)
        .args(["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"])
        .args(flags)
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join("examples/c/segment.c"))
        .arg("-L")
        .arg(libraries)
        .arg("-lmdm")
        .arg(format!("-Wl,-rpath,{}", FOLDER.display()))
        .arg("-o")
        .arg(&program));
    program
}

/// A program that must not touch the GPU drivers of this machine, which leak.
fn without_drivers(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("VK_DRIVER_FILES", "none").env("VK_ICD_FILENAMES", "none").env("XDG_RUNTIME_DIR", &*FOLDER);
    command
}

/// Runs it on a file of these bytes, in a folder of its own. The mask, if there is one.
fn segmented(program: &Path, image: &[u8], more: &[&str]) -> (Output, Option<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let (source, mask) = (folder.path().join("image.ppm"), folder.path().join("mask.pgm"));
    std::fs::write(&source, image).unwrap();
    let output = without_drivers(program).arg(model()).args([&source, &mask]).args(more).output().unwrap();
    let written = std::fs::read(&mask).ok();
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1 + usize::from(written.is_some()), "something is left behind");
    (output, written)
}

fn file(header: &str, pixels: &[u8]) -> Vec<u8> {
    [header.as_bytes(), pixels].concat()
}

#[test]
fn the_c_example_makes_masks() {
    if !works("cc") {
        return;
    }
    let mut programs = vec![segment("cc", &[])];
    if works("clang") {
        programs.push(segment("clang", &[]));
    }
    let pixels = pixels();
    let mask = |labels: Vec<u8>| file(&format!("P5\n{WIDTH} {HEIGHT}\n2\n"), &labels);
    for program in &programs {
        let image = file(&format!("P6\n# drawn\n{WIDTH}\t{HEIGHT} # wide, high\n255\n"), &pixels);
        let (output, written) = segmented(program, &image, &[]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(written, Some(mask(labels(&pixels, PixelFormat::Rgb8))));
        // A pixel of the model's own size changes nothing.
        assert_eq!(segmented(program, &image, &["0.5"]).1, written);
    }
    let grey = &pixels[..WIDTH * HEIGHT];
    let (_, written) = segmented(&programs[0], &file(&format!("P5 {WIDTH} {HEIGHT} 255 "), grey), &[]);
    assert_eq!(written, Some(mask(labels(grey, PixelFormat::Grey8))));
    // Samples that end at 1000, the most significant byte first.
    let samples: Vec<u16> = grey.iter().map(|&value| u16::from(value) * 3).collect();
    let big: Vec<u8> = samples.iter().flat_map(|sample| sample.to_be_bytes()).collect();
    let wide: Vec<u8> = samples
        .iter()
        .flat_map(|&sample| (((u32::from(sample) * 65535 + 500) / 1000) as u16).to_ne_bytes())
        .collect();
    let (_, written) = segmented(&programs[0], &file(&format!("P5 {WIDTH} {HEIGHT} 1000\n"), &big), &[]);
    assert_eq!(written, Some(mask(labels(&wide, PixelFormat::Grey16))));
}

#[test]
fn the_c_example_says_what_is_wrong() {
    if !works("cc") {
        return;
    }
    let checked = sanitizers("cc");
    let program = segment("cc", if checked { SANITIZERS } else { &[] });
    let fine = file(&format!("P6 {WIDTH} {HEIGHT} 255\n"), &pixels());
    for (image, more, words) in [
        (b"".to_vec(), "", "not a binary PPM"),
        (b"P6".to_vec(), "", "not a binary PPM"),
        (b"P6 3".to_vec(), "", "not a binary PPM"),
        (b"P6 # a comment without end".to_vec(), "", "not a binary PPM"),
        (b"P3 1 1 255\n0 0 0".to_vec(), "", "not a binary PPM"),
        (b"P6 0 1 255\n".to_vec(), "", "not a binary PPM"),
        (b"P6 1 -1 255\nabc".to_vec(), "", "not a binary PPM"),
        (b"P6 1 1 65536\nabcdef".to_vec(), "", "not a binary PPM"),
        (b"P6 1 99999999999999999999 255\nabc".to_vec(), "", "not a binary PPM"),
        (b"\x89PNG\r\n".to_vec(), "", "not a binary PPM"),
        (b"P6 2 2 255\nabc".to_vec(), "", "ends before its last pixel"),
        (fine[..fine.len() - 1].to_vec(), "", "ends before its last pixel"),
        (fine.clone(), "wide", "not a number"),
        (fine.clone(), "-1", "microns_per_pixel"),
    ] {
        let more: &[&str] = if more.is_empty() { &[] } else { &[more] };
        let (output, written) = segmented(&program, &image, more);
        assert_eq!(output.status.code(), Some(1), "{words}: {}", said(&output));
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
        assert_eq!(written, None);
    }
    let image = FOLDER.join("fine.ppm");
    std::fs::write(&image, fine).unwrap();
    for (model, image, mask, words) in [
        (Path::new("none.safetensors"), image.as_path(), "mask.pgm", "none.safetensors"),
        (&image, &image, "mask.pgm", "fine.ppm"),
        (&model(), Path::new("none.ppm"), "mask.pgm", "none.ppm: No such file"),
        (&model(), &image, "no folder/mask.pgm", "no folder/mask.pgm: No such file"),
    ] {
        let output = without_drivers(&program)
            .args([model, image, Path::new(mask)])
            .current_dir(&*FOLDER)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}: {}", said(&output));
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
        assert!(!FOLDER.join("mask.pgm").exists());
    }
}
