//! C++ programs use mdm.hpp as hosts do: with and without exceptions, with each compiler and standard, under sanitizers.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use programs::{FOLDER, SANITIZERS, libraries, run, run_checked, sanitizers, works};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn compile(compiler: &str, name: &str, standard: &str, flags: &[&str]) -> PathBuf {
    let program =
        FOLDER.path().join(format!("{name}-{compiler}-{standard}{}", flags.concat()).replace(',', "_"));
    let libraries = libraries();
    run(Command::new(compiler)
        .arg(format!("-std={standard}"))
        .args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(["-Wconversion", "-Wshadow", "-Wold-style-cast", "-Wnon-virtual-dtor"])
        .args(flags)
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join(format!("tests/cpp/{name}.cpp")))
        .arg("-L")
        .arg(&libraries)
        .arg("-lmdm")
        .arg(format!("-Wl,-rpath,{}", FOLDER.path().display()))
        .arg("-o")
        .arg(&program));
    program
}

/// Compiles and runs a program with a compiler for two standards, the second time under sanitizers if there are any.
fn runs(compiler: &str, name: &str, flags: &[&str]) {
    if !works(compiler) {
        return;
    }
    run(Command::new(compile(compiler, name, "c++17", flags)).arg(FOLDER.path()));
    let mut flags = flags.to_vec();
    if sanitizers(compiler) {
        flags.extend(SANITIZERS);
    }
    run_checked(Command::new(compile(compiler, name, "c++20", &flags)).arg(FOLDER.path()));
}

const WITHOUT: &[&str] = &["-fno-exceptions", "-fno-rtti"];

#[test]
fn the_interface_with_gcc() {
    runs("g++", "interface", &[]);
}

#[test]
fn the_interface_with_clang() {
    runs("clang++", "interface", &[]);
}

#[test]
fn errors_without_exceptions_with_gcc() {
    runs("g++", "errors", WITHOUT);
}

#[test]
fn errors_without_exceptions_with_clang() {
    runs("clang++", "errors", WITHOUT);
}

/// What is appended to mdm.h belongs into mdm.hpp too.
#[test]
fn everything_of_the_c_header_is_there() {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let (c, cpp) = (read("mdm.h"), read("mdm.hpp"));
    let names = |text: &str| -> std::collections::BTreeSet<String> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("mdm_") || word.starts_with("MDM_"))
            .map(str::to_owned)
            .collect()
    };
    // Structs are initialised, and their callbacks typed, without these.
    let not_needed = |name: &str| {
        let ends = ["_init", "_INIT", "_callback", "_H"];
        name.starts_with("MDM_VERSION_") || ends.iter().any(|end| name.ends_with(end))
    };
    let missing: Vec<_> =
        names(&code(&c)).difference(&names(&cpp)).filter(|name| !not_needed(name)).cloned().collect();
    assert!(missing.is_empty(), "not in mdm.hpp: {missing:?}");
}

/// C without its comments.
fn code(header: &str) -> String {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").unwrap().1;
    }
    code + rest
}
