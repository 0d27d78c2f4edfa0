//! The fuzz target of the C interface builds, and holds for a few inputs. `fuzz/run` is for more.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use programs::{FOLDER, libraries, works};

#[test]
fn the_target_runs() {
    if !works("clang") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = FOLDER.path().join("fuzz");
    let built = Command::new("clang")
        .args([
            "-g",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fsanitize=fuzzer,address,undefined",
        ])
        .arg("-fno-sanitize-recover=all")
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("fuzz/capi.c"))
        .arg("-L")
        .arg(libraries())
        .arg("-lmdm")
        .arg(format!("-Wl,-rpath,{}", FOLDER.path().display()))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() && said.contains("libclang_rt") {
        eprintln!("skipped: clang has no libFuzzer");
        return;
    }
    assert!(built.status.success(), "{said}");
    let output = Command::new(program)
        .args(["-runs=200", "-seed=1", "-max_len=300", "-len_control=0"])
        .env("MDM_FUZZ_MODEL", FOLDER.path().join("modèle.safetensors"))
        .env("XDG_RUNTIME_DIR", FOLDER.path())
        // The GPU drivers of this machine may leak.
        .env("VK_DRIVER_FILES", "none")
        .env("VK_ICD_FILENAMES", "none")
        .current_dir(FOLDER.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Leaves small models for other programs.
#[test]
#[ignore = "writes to the folder that MDM_TEST_MODELS names"]
fn small_models() {
    let target = PathBuf::from(std::env::var_os("MDM_TEST_MODELS").unwrap());
    for file in std::fs::read_dir(FOLDER.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), target.join(file.file_name())).unwrap();
    }
}
