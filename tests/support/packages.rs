//! Libraries as users install them: with tools/install, found by pkg-config and by CMake.
//!
//! Cargo is replaced by a program that hands out the libraries that were built with the tests.

#![allow(dead_code, clippy::unwrap_used, reason = "a test fails by panicking, and uses a part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::NEEDS_MPI;
use crate::programs::{FOLDER, root, run, works};

/// A model with heads.
pub(crate) fn model() -> PathBuf {
    FOLDER.join("modèle.safetensors")
}

/// For what several tests need and is large; the next run takes its place.
pub(crate) static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!(env!("CARGO_PKG_NAME"), "-packages"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
});

/// Runs what must succeed, whatever it prints.
pub(crate) fn succeed(command: &mut Command) -> Output {
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

/// What a static library of this test needs of the system, as the linker is told.
pub(crate) fn native_libraries() -> Vec<String> {
    let words = |output: Vec<u8>| -> Vec<String> {
        String::from_utf8(output).unwrap().split_whitespace().map(str::to_owned).collect()
    };
    let folder = &*FOLDER;
    fs::write(folder.join("empty.rs"), "").unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = succeed(
        Command::new(rustc)
            .args(["--crate-type=staticlib", "--print=native-static-libs", "empty.rs"])
            .current_dir(folder),
    );
    let said = words(output.stderr);
    let at = said.iter().position(|word| word == "native-static-libs:").unwrap();
    let mut libraries: Vec<_> =
        said[at + 1..].iter().take_while(|word| word.starts_with('-')).cloned().collect();
    if NEEDS_MPI {
        let mpi = words(succeed(Command::new("mpicc").arg("-show")).stdout);
        libraries.extend(mpi.into_iter().filter(|word| word.starts_with("-L") || word.starts_with("-l")));
    }
    libraries
}

/// Stands in for cargo: puts the libraries of this test where it is asked to build them, those of the packages that it is asked for.
pub(crate) static CARGO: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = &*FOLDER;
    let native = native_libraries().join(" ");
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nset -e\nwhile [ $# -gt 0 ]; do\n    case $1 in\n        --target-dir) built=$2/debug ;;\n        \
         -p) names=\"$names $(echo \"$2\" | tr - _)\" ;;\n    esac\n    shift\ndone\nmkdir -p \"$built\"\n\
         for name in $names; do\n    for kind in so a; do\n        file='{libraries}'/lib$name.$kind\n        \
         [ -e \"$file\" ]\n        ln -sf \"$file\" \"$built\"\n    done\ndone\necho 'note: native-static-libs: {native}' >&2\n",
        libraries = own.parent().unwrap().display()
    );
    let path = folder.join("cargo");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
});

/// Runs tools/install with DESTDIR.
pub(crate) fn install(arguments: &[&str], destination: &Path) {
    succeed(
        Command::new(root().join("tools/install"))
            .args(["--profile", "dev", "--target-dir"])
            .arg(SCRATCH.join("built"))
            .args(arguments)
            .env("CARGO", &*CARGO)
            .env("DESTDIR", destination),
    );
}

/// Paths of all files below a folder, relative to it, in order.
pub(crate) fn files(below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(below).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort_unstable();
    found
}

/// Fails where an installed text has something that was not filled in, or names the prefix it was installed for, `/opt/mdm`.
pub(crate) fn check_texts(prefix: &Path) {
    for name in files(prefix) {
        if name.ends_with(".pc") || name.ends_with(".cmake") {
            let text = fs::read_to_string(prefix.join(&name)).unwrap();
            assert!(!text.contains('@') && !text.contains("/opt/mdm"), "{name}: {text}");
        }
    }
}

/// What pkg-config says of a package in a folder of libraries, word by word.
pub(crate) fn pkg_config(libraries: &Path, package: &str, arguments: &[&str]) -> Vec<String> {
    let output = succeed(
        Command::new("pkg-config")
            .args(arguments)
            .arg(package)
            .env("PKG_CONFIG_PATH", libraries.join("pkgconfig")),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Compiles `client.c` and `client.cpp` of a folder and runs them with an argument, where they find `libraries`.
pub(crate) fn clients(folder: &Path, flags: &[String], libraries: &Path, argument: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    for (compiler, source, standard) in [("cc", "client.c", "-std=c99"), ("c++", "client.cpp", "-std=c++17")]
    {
        if !works(compiler) {
            continue;
        }
        let program = scratch.path().join(source).with_extension("out");
        succeed(
            Command::new(compiler)
                .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
                .arg(folder.join(source))
                .args(flags)
                .arg("-o")
                .arg(&program),
        );
        run(Command::new(program).arg(argument).env("LD_LIBRARY_PATH", libraries));
    }
}

/// Configures, builds and runs the clients of a project in `source`, and tells whether they need the shared library of that name.
pub(crate) fn project(
    source: &Path,
    arguments: &[String],
    shared_library: &str,
    argument: &Path,
) -> Option<bool> {
    if !works("cmake") || !works("cc") || !works("c++") || !works("make") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let build = folder.path();
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source).arg("-B").arg(build);
    succeed(configure.args(["-G", "Unix Makefiles", "-Werror=dev"]).args(arguments));
    succeed(Command::new("cmake").arg("--build").arg(build));
    let name = format!("{shared_library}\0").into_bytes();
    let mut shared = Vec::new();
    for client in ["client_c", "client_cpp"] {
        let program = build.join(client);
        run(Command::new(&program).arg(argument));
        let bytes = fs::read(&program).unwrap();
        shared.push(bytes.windows(name.len()).any(|bytes| bytes == name));
    }
    assert_eq!(shared[0], shared[1]);
    Some(shared[0])
}
