//! C and C++ programs find the library as users do: installed, by pkg-config and by CMake, and as a part of a CMake project.
//!
//! Cargo is replaced by a program that hands out the libraries that were built with the tests.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/packages.rs"]
mod packages;
#[path = "support/programs.rs"]
mod programs;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use packages::{CARGO, SCRATCH, files, install, model, succeed};
use programs::{FOLDER, root, works};

/// Whether the libraries of this test were built with it.
const NEEDS_MPI: bool = false;

/// Both libraries in a folder with architecture, installed for one place and moved to another.
static BOTH: LazyLock<PathBuf> = LazyLock::new(|| {
    let staged = SCRATCH.join("staged");
    install(&["--prefix=/opt/mdm", "--libdir=lib/machine"], &staged);
    let moved = SCRATCH.join("both");
    fs::rename(staged.join("opt/mdm"), &moved).unwrap();
    moved
});

/// The static library alone.
static STATIC: LazyLock<PathBuf> = LazyLock::new(|| {
    let prefix = SCRATCH.join("static");
    install(&["--prefix", prefix.to_str().unwrap(), "--library-type", "static"], Path::new(""));
    prefix
});

#[test]
fn the_tree_is_complete() {
    let version = env!("CARGO_PKG_VERSION");
    let real = format!("lib/machine/libmdm.so.{version}");
    let mut expected = vec![
        "include/mdm.h",
        "include/mdm.hpp",
        "lib/machine/cmake/mdm/mdm-config-version.cmake",
        "lib/machine/cmake/mdm/mdm-config.cmake",
        "lib/machine/cmake/mdm/mdm-targets.cmake",
        "lib/machine/libmdm.a",
        "lib/machine/libmdm.so",
        "lib/machine/libmdm.so.0",
        &real,
        "lib/machine/pkgconfig/mdm.pc",
    ];
    expected.sort_unstable();
    assert_eq!(files(&BOTH), expected);
    for name in ["libmdm.so", "libmdm.so.0"] {
        let target = fs::read_link(BOTH.join("lib/machine").join(name)).unwrap();
        assert_eq!(target.to_str().unwrap(), format!("libmdm.so.{version}"));
    }
    packages::check_texts(&BOTH);
}

#[test]
fn wrong_arguments_are_refused() {
    for (arguments, words) in [
        (&["--prefix"][..], "needs a value"),
        (&["--colour=red"], "unknown argument --colour"),
        (&["--library-type=dynamic"], "--library-type"),
        (&["--prefix=/opt/mdm", "--libdir=/usr/lib"], "below the prefix"),
        (&["--libdir=../lib"], "below the prefix"),
    ] {
        let output = Command::new(root().join("tools/install")).args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
    }
}

fn pkg_config(prefix: &Path, arguments: &[&str]) -> Vec<String> {
    let libdir = if prefix == *BOTH { "lib/machine" } else { "lib" };
    packages::pkg_config(&prefix.join(libdir), "mdm >= 0.1", arguments)
}

/// Builds and runs clients in C and C++ with what pkg-config says.
fn clients(prefix: &Path, arguments: &[&str]) {
    let flags = pkg_config(prefix, arguments);
    packages::clients(&root().join("tests/packages"), &flags, &BOTH.join("lib/machine"), &model());
}

#[test]
fn clients_by_pkg_config() {
    if !works("pkg-config") {
        return;
    }
    assert_eq!(pkg_config(&BOTH, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    clients(&BOTH, &["--cflags", "--libs"]);
    clients(&STATIC, &["--cflags", "--libs", "--static"]);
}

/// Configures, builds and runs the clients of a project, and tells whether they need the shared library.
fn project(arguments: &[String]) -> Option<bool> {
    packages::project(&root().join("tests/packages"), arguments, "libmdm.so.0", &model())
}

fn prefix(prefix: &Path) -> String {
    format!("-DCMAKE_PREFIX_PATH={}", prefix.display())
}

/// Where no folder has a name of the machine's architecture, CMake does not look into it by itself.
fn folder(prefix: &Path) -> String {
    format!("-Dmdm_DIR={}/lib/machine/cmake/mdm", prefix.display())
}

#[test]
fn a_cmake_project_takes_the_shared_library() {
    if let Some(shared) = project(&[folder(&BOTH)]) {
        assert!(shared);
    }
}

#[test]
fn a_cmake_project_takes_the_static_library() {
    for arguments in [vec![folder(&BOTH), "-DMDM_COMPONENTS=static".to_owned()], vec![prefix(&STATIC)]] {
        if let Some(shared) = project(&arguments) {
            assert!(!shared, "{arguments:?}");
        }
    }
}

/// Which library a project gets, found out without building it.
#[test]
fn a_cmake_project_chooses() {
    if !works("cmake") {
        return;
    }
    let source = FOLDER.join("choice");
    fs::create_dir_all(&source).unwrap();
    let code = "cmake_minimum_required(VERSION 3.18)\nproject(choice C)\n\
                find_package(mdm ${VERSION} CONFIG COMPONENTS ${COMPONENTS})\n\
                if(TARGET mdm::mdm)\nget_target_property(chosen mdm::mdm INTERFACE_LINK_LIBRARIES)\nendif()\n\
                message(STATUS \"chosen: ${mdm_FOUND} ${chosen}\")\n";
    fs::write(source.join("CMakeLists.txt"), code).unwrap();
    for (at, arguments, expected) in [
        (&*BOTH, &[][..], "1 mdm::shared"),
        (&*BOTH, &["-DBUILD_SHARED_LIBS=OFF"], "1 mdm::static"),
        (&*BOTH, &["-DBUILD_SHARED_LIBS=ON"], "1 mdm::shared"),
        (&*BOTH, &["-DMDM_STATIC=ON", "-DBUILD_SHARED_LIBS=ON"], "1 mdm::static"),
        (&*BOTH, &["-DMDM_STATIC=OFF", "-DBUILD_SHARED_LIBS=OFF"], "1 mdm::shared"),
        (&*BOTH, &["-DMDM_STATIC=ON", "-DCOMPONENTS=shared"], "1 mdm::shared"),
        (&*BOTH, &["-DCOMPONENTS=colour"], "0 "),
        (&*BOTH, &["-DVERSION=0.1.0"], "1 mdm::shared"),
        (&*BOTH, &["-DVERSION=0.0.9...0.9"], "1 mdm::shared"),
        (&*BOTH, &["-DVERSION=99.1"], "0 "),
        (&*STATIC, &[], "1 mdm::static"),
        (&*STATIC, &["-DCOMPONENTS=shared"], "0 "),
    ] {
        let libdir = if at == &*BOTH { "lib/machine" } else { "lib" };
        let build = tempfile::tempdir().unwrap();
        let output = succeed(
            Command::new("cmake")
                .args(["-G", "Unix Makefiles", "-S"])
                .arg(&source)
                .arg("-B")
                .arg(build.path())
                .arg(format!("-Dmdm_DIR={}/{libdir}/cmake/mdm", at.display()))
                .args(arguments),
        );
        let said = String::from_utf8(output.stdout).unwrap();
        let chosen = said.lines().find_map(|line| line.strip_prefix("-- chosen: ")).unwrap();
        // CMake says TRUE or 1, FALSE or 0.
        let chosen = chosen.replace("TRUE", "1").replace("FALSE", "0");
        assert_eq!(chosen.trim(), expected.trim(), "{arguments:?}: {said}");
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
    if let Some(shared) = project(&static_source) {
        assert!(!shared);
    }
}
