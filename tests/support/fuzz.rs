//! Targets of libFuzzer, tried on a few inputs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use crate::programs::{FOLDER, built, root, works};

/// Builds `name`.c of `fuzz` with a library and runs it on some inputs, unless clang has no libFuzzer.
pub(crate) fn holds(name: &str, library: &str, runs: u32) {
    if !works("clang") {
        return;
    }
    let program = FOLDER.join(format!("fuzz-{name}"));
    let compiled = Command::new("clang")
        .args(["-g", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"])
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join(format!("fuzz/{name}.c")))
        .arg("-L")
        .arg(built(&format!("lib{library}")))
        .arg(format!("-l{library}"))
        .arg(format!("-Wl,-rpath,{}", FOLDER.display()))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compiled.stderr);
    if !compiled.status.success() && said.contains("libclang_rt") {
        eprintln!("skipped: clang has no libFuzzer");
        return;
    }
    assert!(compiled.status.success(), "{said}");
    let output = Command::new(program)
        .arg(format!("-runs={runs}"))
        .args(["-seed=1", "-max_len=300", "-len_control=0"])
        .env("MDM_FUZZ_MODEL", FOLDER.join("modèle.safetensors"))
        .env("XDG_RUNTIME_DIR", &*FOLDER)
        // The GPU drivers of this machine may leak.
        .env("VK_DRIVER_FILES", "none")
        .env("VK_ICD_FILENAMES", "none")
        .current_dir(&*FOLDER)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
