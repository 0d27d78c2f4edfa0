//! The library as hosts find it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::programs::{FOLDER, libraries};

pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs what must succeed, whatever it prints.
pub(crate) fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
}

/// A prefix into which tools/install has put the library that cargo built with the tests.
pub(crate) fn installed() -> &'static Path {
    static PREFIX: LazyLock<PathBuf> = LazyLock::new(|| {
        let (built, prefix) = (FOLDER.join("built"), FOLDER.join("installed"));
        std::fs::create_dir_all(built.join("debug")).unwrap();
        std::fs::copy(libraries().join("libmdm.so"), built.join("debug/libmdm.so")).unwrap();
        succeed(
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/install"))
                .args(["--library-type", "shared", "--profile", "dev", "--prefix"])
                .arg(&prefix)
                .arg("--target-dir")
                .arg(&built)
                // There is nothing left to build.
                .env("CARGO", "true"),
        );
        prefix
    });
    &PREFIX
}
