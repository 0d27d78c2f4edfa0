//! C and C++ programs find the library as users do: installed, by pkg-config and by CMake, and as a part of a CMake project.
//!
//! Cargo is replaced by a program that hands out the libraries that were built with the tests.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use programs::{FOLDER, libraries, run, works};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    FOLDER.path().join("modèle.safetensors")
}

/// For what several tests need and is large; the next run takes its place.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
});

/// Runs what must succeed, whatever it prints.
fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Stands in for cargo: puts the libraries of this test where it is asked to build them.
static CARGO: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = FOLDER.path();
    fs::write(folder.join("empty.rs"), "").unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = succeed(
        Command::new(rustc)
            .args(["--crate-type=staticlib", "--print=native-static-libs", "empty.rs"])
            .current_dir(folder),
    );
    let said = String::from_utf8(output.stderr).unwrap();
    let native = said.lines().find(|line| line.contains("native-static-libs:")).unwrap();
    let script = format!(
        "#!/bin/sh\nset -e\nwhile [ $# -gt 0 ]; do\n    case $1 in --target-dir) built=$2/debug ;; esac\n    shift\ndone\n\
         mkdir -p \"$built\"\nln -sf '{libraries}/libmdm.so' '{libraries}/libmdm.a' \"$built\"\necho '{native}' >&2\n",
        libraries = libraries().display()
    );
    let path = folder.join("cargo");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
});

fn install(arguments: &[&str], destination: &Path) {
    succeed(
        Command::new(root().join("tools/install"))
            .args(["--profile", "dev", "--target-dir"])
            .arg(SCRATCH.join("built"))
            .args(arguments)
            .env("CARGO", &*CARGO)
            .env("DESTDIR", destination),
    );
}

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
    let mut found = Vec::new();
    let mut folders = vec![BOTH.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(&*BOTH).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort_unstable();
    let version = env!("CARGO_PKG_VERSION");
    let real = format!("lib/machine/libmdm.so.{version}");
    let mut expected = vec![
        "include/mdm.h",
        "include/mdm.hpp",
        "lib/machine/cmake/mdm/mdm-config-version.cmake",
        "lib/machine/cmake/mdm/mdm-config.cmake",
        "lib/machine/libmdm.a",
        "lib/machine/libmdm.so",
        "lib/machine/libmdm.so.0",
        &real,
        "lib/machine/pkgconfig/mdm.pc",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    for name in ["libmdm.so", "libmdm.so.0"] {
        let target = fs::read_link(BOTH.join("lib/machine").join(name)).unwrap();
        assert_eq!(target.to_str().unwrap(), format!("libmdm.so.{version}"));
    }
    for name in ["pkgconfig/mdm.pc", "cmake/mdm/mdm-config.cmake", "cmake/mdm/mdm-config-version.cmake"] {
        let text = fs::read_to_string(BOTH.join("lib/machine").join(name)).unwrap();
        assert!(!text.contains('@') && !text.contains("/opt/mdm"), "{name}: {text}");
    }
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
    let output = succeed(
        Command::new("pkg-config")
            .args(arguments)
            .arg("mdm >= 0.1")
            .env("PKG_CONFIG_PATH", prefix.join(libdir).join("pkgconfig")),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Compiles clients in C and C++ with what pkg-config says, and runs them.
fn clients(prefix: &Path, arguments: &[&str]) {
    let flags = pkg_config(prefix, arguments);
    let folder = tempfile::tempdir().unwrap();
    for (compiler, source, standard) in [("cc", "client.c", "-std=c99"), ("c++", "client.cpp", "-std=c++17")]
    {
        if !works(compiler) {
            continue;
        }
        let program = folder.path().join(source).with_extension("out");
        succeed(
            Command::new(compiler)
                .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
                .arg(root().join("tests/packages").join(source))
                .args(&flags)
                .arg("-o")
                .arg(&program),
        );
        run(Command::new(program).arg(model()).env("LD_LIBRARY_PATH", BOTH.join("lib/machine")));
    }
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
    if !works("cmake") || !works("cc") || !works("c++") || !works("make") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let build = folder.path();
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(root().join("tests/packages")).arg("-B").arg(build);
    succeed(configure.args(["-G", "Unix Makefiles", "-Werror=dev"]).args(arguments));
    succeed(Command::new("cmake").arg("--build").arg(build));
    let mut shared = Vec::new();
    for client in ["client_c", "client_cpp"] {
        let program = build.join(client);
        run(Command::new(&program).arg(model()));
        let bytes = fs::read(&program).unwrap();
        shared.push(bytes.windows(12).any(|bytes| bytes == b"libmdm.so.0\0"));
    }
    assert_eq!(shared[0], shared[1]);
    Some(shared[0])
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
    let source = FOLDER.path().join("choice");
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
