//! C programs train as hosts do: as they are, under sanitizers, and under Valgrind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use programs::{FOLDER, SANITIZERS, run, run_checked, sanitizers, works};

/// Where cargo puts libmdm_train.so when it builds tests.
fn libraries() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(folder.join("libmdm_train.so").exists(), "cargo builds libmdm_train.so with the tests");
    // The name by which programs look for it.
    let link = FOLDER.path().join("libmdm_train.so.0");
    if !link.exists() {
        let _ = std::os::unix::fs::symlink(folder.join("libmdm_train.so"), link);
    }
    folder
}

/// Compiles a program of `folder`, which is relative to this crate.
fn compile(folder: &str, name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = FOLDER.path().join(format!("{name}{}", flags.concat().replace(['/', '=', ','], "_")));
    run(Command::new("cc")
        .args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"])
        .args(flags)
        .arg("-I")
        .arg(root.join("../include"))
        .arg(root.join(format!("{folder}/{name}.c")))
        .arg("-L")
        .arg(libraries())
        .arg("-lmdm_train")
        .arg(format!("-Wl,-rpath,{}", FOLDER.path().display()))
        .arg("-o")
        .arg(&program));
    program
}

fn plainly(name: &str, arguments: &[&str]) {
    if works("cc") {
        run(Command::new(compile("tests/c", name, &[])).arg(FOLDER.path()).args(arguments));
    }
}

fn sanitized(name: &str, arguments: &[&str]) {
    if works("cc") && sanitizers("cc") {
        let program = compile("tests/c", name, SANITIZERS);
        run_checked(Command::new(program).arg(FOLDER.path()).args(arguments));
    }
}

fn watched(name: &str, arguments: &[&str]) {
    if works("cc") && works("valgrind") {
        run_checked(
            Command::new("valgrind")
                .args(["-q", "--error-exitcode=9", "--leak-check=full", "--fair-sched=yes"])
                .args(["--show-leak-kinds=definite,indirect", "--errors-for-leak-kinds=definite,indirect"])
                .arg(compile("tests/c", name, &["-DVALGRIND"]))
                .arg(FOLDER.path())
                .args(arguments),
        );
    }
}

#[test]
fn heads_are_fitted_as_the_header_says() {
    plainly("fitter", &[]);
}

#[test]
fn fits_are_cancelled_and_freed() {
    plainly("threads", &["60"]);
}

#[test]
fn heads_are_fitted_under_sanitizers() {
    sanitized("fitter", &[]);
}

#[test]
fn fits_are_cancelled_under_sanitizers() {
    sanitized("threads", &["20"]);
}

#[test]
fn heads_are_fitted_under_valgrind() {
    watched("fitter", &[]);
}

#[test]
fn backbones_are_trained_as_the_header_says() {
    plainly("trainer", &[]);
}

#[test]
fn backbones_are_trained_under_sanitizers() {
    sanitized("trainer", &[]);
}

#[test]
fn a_step_is_trained_under_valgrind() {
    watched("trainer", &[]);
}

#[test]
fn the_example_refines_a_mask() {
    if !works("cc") {
        return;
    }
    let program = compile("../examples/c", "scribble", &["-std=c99"]);
    let (width, height) = (96, 64);
    let inside = |at: usize| at / width % 64 >= 16 && at / width < 48 && (24..72).contains(&(at % width));
    let mut image = format!("P5\n{width} {height}\n255\n").into_bytes();
    image.extend((0..width * height).map(|at| if inside(at) { 190 } else { 40 + (at % 7) as u8 }));
    let mut scribbles = format!("P5\n{width} {height}\n255\n").into_bytes();
    let stroke = |at: usize| at / width == 5 || at / width == 30;
    scribbles.extend((0..width * height).map(|at| if stroke(at) { u8::from(inside(at)) } else { 255 }));
    let file = |name: &str| FOLDER.path().join(name);
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
