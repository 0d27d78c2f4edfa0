//! C and C++ programs find libmdm_train as users do: installed on request, by pkg-config and by CMake, and as a part of a CMake project.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/packages.rs"]
mod packages;
#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use packages::{CARGO, SCRATCH, files, install, succeed};
use programs::{FOLDER, root, works};

/// Whether the libraries of this test were built with it.
const NEEDS_MPI: bool = cfg!(feature = "mpi");

fn backbone() -> PathBuf {
    FOLDER.join("backbone.safetensors")
}

fn sources() -> PathBuf {
    root().join("train/tests/packages")
}

/// Both kinds of both libraries, installed for one place and moved to another.
static BOTH: LazyLock<PathBuf> = LazyLock::new(|| {
    let staged = SCRATCH.join("staged");
    install(&["--training", "--prefix=/opt/mdm"], &staged);
    let moved = SCRATCH.join("both");
    fs::rename(staged.join("opt/mdm"), &moved).unwrap();
    moved
});

/// The static libraries alone.
static STATIC: LazyLock<PathBuf> = LazyLock::new(|| {
    let prefix = SCRATCH.join("static");
    install(&["--prefix", prefix.to_str().unwrap(), "--training", "--library-type", "static"], Path::new(""));
    prefix
});

/// Without libmdm_train.
static INFERENCE: LazyLock<PathBuf> = LazyLock::new(|| {
    let prefix = SCRATCH.join("inference");
    install(&["--prefix", prefix.to_str().unwrap(), "--library-type", "shared"], Path::new(""));
    prefix
});

#[test]
fn the_tree_is_complete() {
    let version = env!("CARGO_PKG_VERSION");
    let mut expected = vec![
        "include/mdm.h".to_owned(),
        "include/mdm.hpp".to_owned(),
        "include/mdm_train.h".to_owned(),
        "include/mdm_train.hpp".to_owned(),
        "lib/cmake/mdm/mdm-config-version.cmake".to_owned(),
        "lib/cmake/mdm/mdm-config.cmake".to_owned(),
        "lib/cmake/mdm/mdm-targets.cmake".to_owned(),
        "lib/cmake/mdm/mdm-train-targets.cmake".to_owned(),
        "lib/pkgconfig/mdm.pc".to_owned(),
        "lib/pkgconfig/mdm_train.pc".to_owned(),
    ];
    for name in ["libmdm", "libmdm_train"] {
        let ends = [".a", ".so", ".so.0", &format!(".so.{version}")].map(|end| format!("lib/{name}{end}"));
        expected.extend(ends);
        for link in [".so", ".so.0"] {
            let target = fs::read_link(BOTH.join(format!("lib/{name}{link}"))).unwrap();
            assert_eq!(target.to_str().unwrap(), format!("{name}.so.{version}"));
        }
    }
    expected.sort_unstable();
    assert_eq!(files(&BOTH), expected);
    packages::check_texts(&BOTH);
    let names = files(&INFERENCE);
    assert!(!names.is_empty() && !names.iter().any(|name| name.contains("train")), "{names:?}");
}

/// Programs must find each library by its own name.
#[test]
fn the_soname_is_its_own() {
    if !works("readelf") {
        return;
    }
    for name in ["libmdm", "libmdm_train"] {
        let library = BOTH.join(format!("lib/{name}.so"));
        let output = succeed(Command::new("readelf").arg("-d").arg(library));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(&format!("soname: [{name}.so.0]")), "{said}");
        // The one contains what it needs of the other.
        assert!(!said.lines().any(|line| line.contains("NEEDED") && line.contains("mdm")), "{said}");
    }
}

fn clients(prefix: &Path, arguments: &[&str]) {
    let flags = packages::pkg_config(&prefix.join("lib"), "mdm_train >= 0.1", arguments);
    packages::clients(&sources(), &flags, &BOTH.join("lib"), &backbone());
}

#[test]
fn clients_by_pkg_config() {
    if !works("pkg-config") {
        return;
    }
    clients(&BOTH, &["--cflags", "--libs"]);
    clients(&STATIC, &["--cflags", "--libs", "--static"]);
}

fn project(arguments: &[String]) -> Option<bool> {
    packages::project(&sources(), arguments, "libmdm_train.so.0", &backbone())
}

fn prefix(prefix: &Path) -> String {
    format!("-DCMAKE_PREFIX_PATH={}", prefix.display())
}

#[test]
fn a_cmake_project_takes_the_shared_library() {
    if let Some(shared) = project(&[prefix(&BOTH)]) {
        assert!(shared);
    }
}

#[test]
fn a_cmake_project_takes_the_static_library() {
    for arguments in [vec![prefix(&BOTH), "-DMDM_COMPONENTS=static".to_owned()], vec![prefix(&STATIC)]] {
        if let Some(shared) = project(&arguments) {
            assert!(!shared, "{arguments:?}");
        }
    }
}

#[test]
fn a_cmake_project_adds_the_source_tree() {
    let source = [
        format!("-DMDM_SOURCE={}", root().display()),
        format!("-DMDM_CARGO={}", CARGO.display()),
        "-DMDM_CARGO_PROFILE=dev".to_owned(),
    ];
    if let Some(shared) = project(&source) {
        assert!(shared);
    }
    let mut static_source = source.to_vec();
    static_source.push("-DMDM_STATIC=ON".to_owned());
    // Libraries that CMake has built know nothing of MPI, with which those of this test may have been built.
    for language in ["C", "CXX"] {
        let libraries = packages::native_libraries().join(" ");
        static_source.push(format!("-DCMAKE_{language}_STANDARD_LIBRARIES={libraries}"));
    }
    if let Some(shared) = project(&static_source) {
        assert!(!shared);
    }
}

/// Configures a project of these lines.
fn configured(lines: &str, arguments: &[String]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let code = format!("cmake_minimum_required(VERSION 3.18)\nproject(lines C)\n{lines}");
    fs::write(folder.path().join("CMakeLists.txt"), code).unwrap();
    fs::write(folder.path().join("empty.c"), "int main(void) { return 0; }\n").unwrap();
    Command::new("cmake")
        .args(["-G", "Unix Makefiles", "-S"])
        .arg(folder.path())
        .arg("-B")
        .arg(folder.path().join("build"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn cmake_says_what_is_wrong() {
    if !works("cmake") || !works("cc") {
        return;
    }
    let training = "find_package(mdm CONFIG REQUIRED COMPONENTS train)\nadd_executable(app empty.c)\n\
                    target_link_libraries(app PRIVATE mdm::train)\n";
    let output = configured(training, &[prefix(&BOTH)]);
    assert!(output.status.success(), "{output:?}");
    for (lines, arguments, words) in [
        (
            training,
            [prefix(&INFERENCE)],
            "no shared libmdm_train, the component 'train'; tools/install --training",
        ),
        (&format!("{training}target_link_libraries(app PRIVATE mdm::mdm)\n"), [prefix(&BOTH)], "MDM_LIBRARY"),
        (
            &format!("{training}add_subdirectory(\"{}\" mdm)\n", root().display())
                .replace("find_package", "#"),
            [format!("-DMDM_CARGO={}", CARGO.display())],
            "mdm::train",
        ),
    ] {
        let output = configured(lines, &arguments);
        // Lines are wrapped.
        let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!output.status.success() && said.contains(words), "{words}: {said}");
    }
    // Whoever can do without it looks for the target.
    let optional = "find_package(mdm CONFIG REQUIRED OPTIONAL_COMPONENTS train)\n\
                    if(TARGET mdm::train OR mdm_train_FOUND)\nmessage(FATAL_ERROR \"it is there\")\nendif()\n";
    let output = configured(optional, &[prefix(&INFERENCE)]);
    assert!(output.status.success(), "{output:?}");
    assert!(!configured(optional, &[prefix(&BOTH)]).status.success());
}
