//! The fuzz target of training's C interface builds, and holds for a few inputs. `fuzz/run --training` is for more.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/fuzz.rs"]
mod fuzz;
#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

#[test]
fn the_target_runs() {
    fuzz::holds("training", "mdm_train", 100);
}
