//! C programs use the library as hosts do: as they are, under sanitizers, and under Valgrind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use programs::{FOLDER, SANITIZERS, libraries, run, run_checked, sanitizers, works};

fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = FOLDER.join(format!("{name}{}", flags.concat().replace(['/', '=', ','], "_")));
    let libraries = libraries();
    run(Command::new("cc")
        .args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"])
        .args(flags)
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join(format!("tests/c/{name}.c")))
        .arg("-L")
        .arg(&libraries)
        .arg("-lmdm")
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
        run_checked(Command::new(compile(name, SANITIZERS)).arg(&*FOLDER).args(arguments));
    }
}

fn watched(name: &str, arguments: &[&str]) {
    if works("cc") && works("valgrind") {
        run_checked(
            Command::new("valgrind")
                .args([
                    "-q",
                    "--error-exitcode=9",
                    "--leak-check=full",
                    "--show-leak-kinds=definite,indirect",
                ])
                .args(["--errors-for-leak-kinds=definite,indirect", "--fair-sched=yes", "--num-callers=30"])
                .arg(compile(name, &["-DVALGRIND"]))
                .arg(&*FOLDER)
                .args(arguments),
        );
    }
}

#[test]
fn the_interface_does_what_the_header_says() {
    plainly("interface", &[]);
}

#[test]
fn threads_cancel_free_and_share() {
    plainly("threads", &["400"]);
}

#[test]
fn random_calls_end_with_a_status() {
    for seed in ["1", "2", "3"] {
        plainly("random", &["6000", seed]);
    }
}

#[test]
fn the_interface_under_sanitizers() {
    sanitized("interface", &[]);
}

#[test]
fn threads_under_sanitizers() {
    sanitized("threads", &["100"]);
}

#[test]
fn random_calls_under_sanitizers() {
    sanitized("random", &["10000", "4"]);
}

#[test]
fn the_interface_under_valgrind() {
    watched("interface", &[]);
}

#[test]
fn threads_under_valgrind() {
    watched("threads", &["8"]);
}
