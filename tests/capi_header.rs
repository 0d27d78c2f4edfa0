//! `include/mdm.h` is what `src/capi` says, compiles without a warning, and keeps what was released.
//!
//! `MDM_BLESS=1` writes the header and appends what is new to `tests/abi/mdm.txt`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/header.rs"]
mod header;

use header::Header;

fn mdm() -> Header {
    Header {
        root: env!("CARGO_MANIFEST_DIR").into(),
        name: "mdm.h",
        config: "cbindgen.toml",
        folder: "src/capi",
        sources: &[
            "versions",
            "errors",
            "log",
            "devices",
            "intensities",
            "models",
            "images",
            "cancel",
            "runs",
            "segmenters",
            "streams",
            "features",
        ],
        released: "tests/abi/mdm.txt",
    }
}

#[test]
fn the_header_is_up_to_date() {
    mdm().check_it_is_up_to_date();
    for (name, value) in [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        assert!(
            mdm().committed().contains(&format!("#define MDM_VERSION_{name} {value}\n")),
            "version in src/capi/versions.rs"
        );
    }
}

#[test]
fn the_header_compiles_without_a_warning() {
    mdm().check_it_compiles();
}

#[test]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn what_was_released_stays() {
    mdm().check_what_was_released();
}

#[test]
#[cfg(target_os = "linux")]
fn the_library_exports_what_the_header_declares_and_no_more() {
    header::check_exports("libmdm.so", &[mdm()]);
}
