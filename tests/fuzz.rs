//! The fuzz target of the C interface builds, and holds for a few inputs. `fuzz/run` is for more.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fuzz.rs"]
mod fuzz;
#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::PathBuf;

use programs::FOLDER;

#[test]
fn the_target_runs() {
    fuzz::holds("capi", "mdm", 200);
}

/// Leaves small models for other programs.
#[test]
#[ignore = "writes to the folder that MDM_TEST_MODELS names"]
fn small_models() {
    let target = PathBuf::from(std::env::var_os("MDM_TEST_MODELS").unwrap());
    for file in std::fs::read_dir(&*FOLDER).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), target.join(file.file_name())).unwrap();
    }
}
