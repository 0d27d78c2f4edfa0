//! `include/mdm_train.h` is what `train/src/capi` says, compiles without a warning, and keeps what was released.
//!
//! `MDM_BLESS=1` writes the header and appends what is new to `train/tests/abi/mdm_train.txt`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/header.rs"]
mod header;

use header::Header;

fn named(name: &'static str, sources: &'static [&'static str]) -> Header {
    Header {
        root: concat!(env!("CARGO_MANIFEST_DIR"), "/..").into(),
        name,
        config: "train/cbindgen.toml",
        folder: "train/src/capi",
        sources,
        released: "train/tests/abi/mdm_train.txt",
    }
}

fn mdm_train() -> Header {
    named(
        "mdm_train.h",
        &["versions", "models", "labels", "fitters", "tuning", "training_images", "trainers"],
    )
}

#[test]
fn the_header_is_up_to_date() {
    mdm_train().check_it_is_up_to_date();
}

#[test]
fn the_header_compiles_without_a_warning() {
    mdm_train().check_it_compiles();
}

#[test]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn what_was_released_stays() {
    mdm_train().check_what_was_released();
}

#[test]
#[cfg(target_os = "linux")]
fn the_library_exports_what_both_headers_declare_and_no_more() {
    header::check_exports("libmdm_train.so", &[mdm_train(), named("mdm.h", &[])]);
}
