//! What is in `examples/c` for training builds as its comments say, and does what it says.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use programs::{FOLDER, SANITIZERS, built, root, run, sanitizers, works};

/// A program of `examples/c`.
fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let program = FOLDER.join(format!("{name}{}", flags.len()));
    run(Command::new("cc")
        .args(["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"])
        .args(flags)
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join(format!("examples/c/{name}.c")))
        .arg("-L")
        .arg(built("libmdm_train"))
        .arg("-lmdm_train")
        .arg(format!("-Wl,-rpath,{}", FOLDER.display()))
        .arg("-o")
        .arg(&program));
    program
}

fn file(name: &str) -> PathBuf {
    FOLDER.join(name)
}

#[test]
fn scribble_refines_a_mask() {
    if !works("cc") {
        return;
    }
    let program = compile("scribble", &[]);
    let (width, height) = (96, 64);
    let inside = |at: usize| at / width % 64 >= 16 && at / width < 48 && (24..72).contains(&(at % width));
    let mut image = format!("P5\n{width} {height}\n255\n").into_bytes();
    image.extend((0..width * height).map(|at| if inside(at) { 190 } else { 40 + (at % 7) as u8 }));
    let mut scribbles = format!("P5\n{width} {height}\n255\n").into_bytes();
    let stroke = |at: usize| at / width == 5 || at / width == 30;
    scribbles.extend((0..width * height).map(|at| if stroke(at) { u8::from(inside(at)) } else { 255 }));
    std::fs::write(file("image.pgm"), image).unwrap();
    std::fs::write(file("scribbles.pgm"), scribbles).unwrap();
    let output = Command::new(program)
        .arg(file("backbone.safetensors"))
        .args([file("image.pgm"), file("scribbles.pgm"), file("mask.pgm"), file("scribbled.safetensors")])
        .env("MDM_DEVICE", "cpu")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mask = std::fs::read(file("mask.pgm")).unwrap();
    let pixels = &mask[mask.len() - width * height..];
    let right = pixels.iter().enumerate().filter(|(at, label)| (**label == 1) == inside(*at)).count();
    assert!(right > width * height * 9 / 10, "{right} of {}", width * height);
    mdm::Model::open(&file("scribbled.safetensors")).unwrap();
}

/// Four images to learn from, and one that is none. They are written once: programs of other tests may be reading them.
static IMAGES: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let (width, height) = (96, 80);
    let mut paths = Vec::new();
    for number in 0..4 {
        let mut image = format!("P5\n{width} {height}\n255\n").into_bytes();
        let pixel = |at: usize| (at % width / (5 + number) + at / width / 6) % 2 * 140 + at * 7919 % 60;
        image.extend((0..width * height).map(|at| pixel(at) as u8));
        let path = file(&format!("plate {number}.pgm"));
        std::fs::write(&path, image).unwrap();
        paths.push(path);
    }
    let torn = file("torn.pgm");
    std::fs::write(&torn, "P5\n96 80\n255\ntoo short").unwrap();
    paths.push(torn);
    paths
});

/// A run of some steps with files of this name.
fn pretrain(program: &Path, name: &str, steps: &str) -> Command {
    let mut command = Command::new(program);
    command
        .arg(file(&format!("{name}.checkpoint")))
        .arg(file(&format!("{name}.safetensors")))
        .arg(steps)
        .args(&*IMAGES)
        .env("MDM_DEVICE", "cpu");
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn pretrain_goes_on_after_an_interrupt() {
    if !works("cc") {
        return;
    }
    let program = compile("pretrain", &[]);
    let whole = pretrain(&program, "whole", "15").output().unwrap();
    assert!(whole.status.success(), "{}", said(&whole));
    for words in ["step 5 of 15: loss 0.", "step 15 of 15: loss 0.", "left out: image 4: "] {
        assert!(said(&whole).contains(words), "{words}: {}", said(&whole));
    }
    let mut child =
        pretrain(&program, "parts", "15").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.starts_with("step 5 of 15"), "{first}");
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("stopped") && !rest.contains("15 of 15"), "{rest}");
    assert!(!file("parts.safetensors").exists());
    // The steps that it has are the checkpoint's.
    let parts = pretrain(&program, "parts", "1").output().unwrap();
    assert!(parts.status.success() && said(&parts).contains("step 15 of 15"), "{}", said(&parts));
    let read = |name: &str| std::fs::read(file(name)).unwrap();
    assert!(read("whole.safetensors") == read("parts.safetensors"), "the run is another");
    mdm::Model::open(&file("parts.safetensors")).unwrap();
}

#[test]
fn pretrain_says_what_is_wrong() {
    if !works("cc") {
        return;
    }
    let program = compile("pretrain", if sanitizers("cc") { SANITIZERS } else { &[] });
    for steps in ["0", "-1", "many", "99999999999999999999", "3x"] {
        let output = pretrain(&program, "wrong", steps).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{steps}: {}", said(&output));
        assert!(said(&output).contains("usage"), "{}", said(&output));
    }
    std::fs::create_dir_all(file("folder.checkpoint")).unwrap();
    std::fs::write(file("nonsense.checkpoint"), "nonsense").unwrap();
    for (name, words) in
        [("nowhere/at/all", "nowhere"), ("folder", "folder.checkpoint"), ("nonsense", "nonsense.checkpoint")]
    {
        let output = pretrain(&program, name, "1").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {}", said(&output));
        assert!(said(&output).contains(words), "{name}: {}", said(&output));
    }
    let output = Command::new(&program)
        .args([file("starved.checkpoint"), file("starved.safetensors")])
        .args(["1", "none.pgm", "torn.pgm"])
        .env("MDM_DEVICE", "cpu")
        .current_dir(&*FOLDER)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("image"), "{}", said(&output));
    assert!(!file("starved.safetensors").exists());
    let fine = pretrain(&program, "checked", "2").output().unwrap();
    assert!(fine.status.success(), "{}", said(&fine));
}
