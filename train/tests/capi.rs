//! C programs train as hosts do: as they are, under sanitizers, and under Valgrind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use programs::{FOLDER, SANITIZERS, built, run, run_checked, sanitizers, works};

fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = FOLDER.join(format!("{name}{}", flags.concat().replace(['/', '=', ','], "_")));
    run(Command::new("cc")
        .args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"])
        .args(flags)
        .arg("-I")
        .arg(root.join("../include"))
        .arg(root.join(format!("tests/c/{name}.c")))
        .arg("-L")
        .arg(built("libmdm_train"))
        .arg("-lmdm_train")
        .arg(format!("-Wl,-rpath,{}", FOLDER.display()))
        .arg("-o")
        .arg(&program));
    program
}

fn plainly(name: &str, arguments: &[&str]) {
    if works("cc") {
        run(Command::new(compile(name, &[])).arg(&*FOLDER).args(arguments));
    }
}

fn sanitized(name: &str, arguments: &[&str]) {
    if works("cc") && sanitizers("cc") {
        let program = compile(name, SANITIZERS);
        run_checked(Command::new(program).arg(&*FOLDER).args(arguments));
    }
}

fn watched(name: &str, arguments: &[&str]) {
    if works("cc") && works("valgrind") {
        run_checked(
            Command::new("valgrind")
                .args(["-q", "--error-exitcode=9", "--leak-check=full", "--fair-sched=yes"])
                .args(["--show-leak-kinds=definite,indirect", "--errors-for-leak-kinds=definite,indirect"])
                .arg(compile(name, &["-DVALGRIND"]))
                .arg(&*FOLDER)
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
fn networks_are_tuned_as_the_header_says() {
    plainly("tuning", &[]);
}

#[test]
fn networks_are_tuned_under_sanitizers() {
    sanitized("tuning", &[]);
}

#[test]
fn networks_are_tuned_under_valgrind() {
    watched("tuning", &[]);
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
fn random_calls_end_with_a_status() {
    for seed in ["1", "2"] {
        plainly("random", &["400", seed]);
    }
}

#[test]
fn random_calls_under_sanitizers() {
    sanitized("random", &["600", "3"]);
}

#[test]
fn a_step_is_trained_under_valgrind() {
    watched("trainer", &[]);
}
