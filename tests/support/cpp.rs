//! Programs in C++ that use a library's header for it, and what has to be in such a header.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use crate::programs::{FOLDER, SANITIZERS, built, root, run, run_checked, sanitizers, works};

/// Flags that take exceptions away.
pub(crate) const WITHOUT_EXCEPTIONS: &[&str] = &["-fno-exceptions", "-fno-rtti"];

/// Compiles `name`.cpp of a folder below the root and links it with a library.
fn compile(
    folder: &str,
    library: &str,
    compiler: &str,
    name: &str,
    standard: &str,
    flags: &[&str],
) -> PathBuf {
    let program = FOLDER.join(format!("{name}-{compiler}-{standard}{}", flags.concat()).replace(',', "_"));
    run(Command::new(compiler)
        .arg(format!("-std={standard}"))
        .args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(["-Wconversion", "-Wshadow", "-Wold-style-cast", "-Wnon-virtual-dtor"])
        .args(flags)
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join(folder).join(format!("{name}.cpp")))
        .arg("-L")
        .arg(built(&format!("lib{library}")))
        .arg(format!("-l{library}"))
        .arg(format!("-Wl,-rpath,{}", FOLDER.display()))
        .arg("-o")
        .arg(&program));
    program
}

/// Compiles and runs a program with a compiler for two standards, the second time under sanitizers if there are any.
pub(crate) fn runs(folder: &str, library: &str, compiler: &str, name: &str, flags: &[&str]) {
    if !works(compiler) {
        return;
    }
    run(Command::new(compile(folder, library, compiler, name, "c++17", flags)).arg(&*FOLDER));
    let mut flags = flags.to_vec();
    if sanitizers(compiler) {
        flags.extend(SANITIZERS);
    }
    run_checked(Command::new(compile(folder, library, compiler, name, "c++20", &flags)).arg(&*FOLDER));
}

/// Fails where something of `name`.h is in none of the headers for C++, of which `name`.hpp is one.
pub(crate) fn check_it_is_complete(name: &str, headers: &[&str]) {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let c = read(&format!("{name}.h"));
    let cpp: String = headers.iter().map(|header| read(header)).collect();
    let names = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("mdm_") || word.starts_with("MDM_"))
            .map(str::to_owned)
            .collect()
    };
    // Structs are initialised, and their callbacks typed, without these.
    let not_needed = |name: &str| {
        let ends = ["_init", "_INIT", "_callback", "_H"];
        name.starts_with("MDM_VERSION_") || ends.iter().any(|end| name.ends_with(end))
    };
    let missing: Vec<_> =
        names(&code(&c)).difference(&names(&cpp)).filter(|name| !not_needed(name)).cloned().collect();
    assert!(missing.is_empty(), "not in {headers:?}: {missing:?}");
}

/// C without its comments.
fn code(header: &str) -> String {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").unwrap().1;
    }
    code + rest
}
