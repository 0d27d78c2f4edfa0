//! `include/mdm.h` is what `src/capi` says, compiles without a warning, and keeps what was released.
//!
//! `MDM_BLESS=1` writes the header and appends what is new to `tests/abi/mdm.txt`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn bless() -> bool {
    std::env::var_os("MDM_BLESS").is_some()
}

/// In the order in which the header presents them.
const SOURCES: [&str; 10] =
    ["versions", "errors", "log", "devices", "models", "images", "cancel", "runs", "segmenters", "streams"];

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES.iter().chain(&["features"]) {
        builder = builder.with_src(root().join(format!("src/capi/{name}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

fn committed() -> String {
    // A checkout on Windows may have changed the ends of lines.
    fs::read_to_string(root().join("include/mdm.h")).unwrap().replace("\r\n", "\n")
}

#[test]
fn the_header_is_up_to_date() {
    let header = generated();
    if bless() {
        fs::write(root().join("include/mdm.h"), &header).unwrap();
    }
    assert!(
        committed() == header,
        "include/mdm.h is not what src/capi says; run MDM_BLESS=1 cargo test --test capi_header"
    );
    for (name, value) in [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        assert!(
            header.contains(&format!("#define MDM_VERSION_{name} {value}\n")),
            "version in src/capi/versions.rs"
        );
    }
}

fn works(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_header_compiles_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let header = committed();
    // Every initialiser is used, so that one with a member too few is found.
    let uses: String = constants(&header)
        .keys()
        .filter_map(|name| name.strip_prefix("MDM_")?.strip_suffix("_INIT"))
        .map(|name| {
            let lower = name.to_lowercase();
            format!("mdm_{lower} {lower} = MDM_{name}_INIT;\nif ({lower}.struct_size == 0) return 1;\n")
        })
        .collect();
    let code = format!("#include <mdm.h>\nint main(void);\nint main(void) {{\n{uses}return 0;\n}}\n");
    for (compiler, language, standards) in [
        ("gcc", "c", &["c99", "c11", "c17"][..]),
        ("clang", "c", &["c99", "c11", "c17"]),
        ("g++", "cc", &["c++17", "c++20"]),
        ("clang++", "cc", &["c++17", "c++20"]),
    ] {
        if !works(compiler) {
            continue;
        }
        let source = folder.path().join(format!("use.{language}"));
        fs::write(&source, &code).unwrap();
        for standard in standards {
            run(Command::new(compiler)
                .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion", "-fsyntax-only"])
                .arg(format!("-std={standard}"))
                .arg("-I")
                .arg(root().join("include"))
                .arg(&source));
        }
    }
}

/// Names and values of macros.
fn constants(header: &str) -> BTreeMap<&str, &str> {
    header.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' ')).collect()
}

/// The header without comments and directives, a declaration a line.
fn declarations(header: &str) -> Vec<String> {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").unwrap().1;
    }
    code += rest;
    let lines = code.lines().filter(|line| !line.starts_with('#') && !line.starts_with("extern \"C\""));
    let code = lines.collect::<Vec<_>>().join(" ");
    let (mut found, mut depth, mut current) = (Vec::new(), 0, String::new());
    for c in code.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            _ => {}
        }
        if c == ';' && depth == 0 {
            found.push(current.split_whitespace().collect::<Vec<_>>().join(" "));
            current.clear();
        } else {
            current.push(c);
        }
    }
    found
}

/// Name and members of a struct.
fn members(declaration: &str) -> Option<(String, Vec<String>)> {
    let (_, body) = declaration.strip_prefix("typedef struct ")?.split_once('{')?;
    let (body, name) = body.rsplit_once('}')?;
    let member = |text: &str| {
        let name = text.trim().split('[').next()?.rsplit([' ', '*']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    Some((name.trim().to_owned(), body.split(';').filter_map(member).collect()))
}

/// Everything that programs were compiled against: functions, types, constants, and where members lie.
fn interface() -> Vec<String> {
    let header = committed();
    let mut lines = Vec::new();
    for (name, value) in constants(&header) {
        if !name.ends_with("_INIT") && !name.starts_with("MDM_VERSION_") && name != "MDM_ABI_VERSION" {
            lines.push(format!("constant {name} {value}"));
        }
    }
    let mut code = String::from("#include <mdm.h>\n#include <stdio.h>\nint main(void) {\n");
    for declaration in declarations(&header) {
        if let Some((name, members)) = members(&declaration) {
            code += &format!("printf(\"size {name} %zu\\n\", sizeof({name}));\n");
            for member in members {
                code += &format!(
                    "printf(\"member {name}.{member} at %zu, %zu bytes\\n\", offsetof({name}, {member}), \
                     sizeof((({name} *)0)->{member}));\n"
                );
            }
        } else {
            lines.push(format!("declaration {declaration}"));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    fs::write(&source, code + "return 0;\n}\n").unwrap();
    run(Command::new("cc").arg("-I").arg(root().join("include")).arg(&source).arg("-o").arg(&program));
    lines.extend(run(&mut Command::new(program)).lines().map(str::to_owned));
    lines.sort();
    lines
}

#[test]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn what_was_released_stays() {
    if !works("cc") {
        return;
    }
    let path = root().join("tests/abi/mdm.txt");
    let now = interface();
    let sizes = |lines: &[String]| -> BTreeMap<String, usize> {
        let size = |line: &String| {
            let (name, size) = line.strip_prefix("size ")?.split_once(' ')?;
            Some((name.to_owned(), size.parse().unwrap()))
        };
        lines.iter().filter_map(size).collect()
    };
    let released: Vec<String> =
        fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
    for line in released.iter().filter(|line| !line.starts_with("size ")) {
        assert!(now.contains(line), "this was released and may not change: {line}");
    }
    let (before, after) = (sizes(&released), sizes(&now));
    for (name, size) in &before {
        assert!(after.get(name).is_some_and(|now| now >= size), "{name} has become smaller");
        assert!(
            after[name] == *size || name != "mdm_level",
            "mdm_level has no size of its own and may not grow"
        );
    }
    if bless() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, now.join("\n") + "\n").unwrap();
    }
    assert!(!released.is_empty() || bless(), "{} is missing", path.display());
}

#[test]
#[cfg(target_os = "linux")]
fn the_library_exports_what_the_header_declares_and_no_more() {
    let library = root().join("target");
    let library = std::env::var_os("CARGO_TARGET_DIR").map_or(library, PathBuf::from);
    let own = std::env::current_exe().unwrap();
    let library = [own.parent().unwrap(), &library.join("debug")]
        .into_iter()
        .map(|folder: &Path| folder.join("libmdm.so"))
        .find(|file| file.exists())
        .expect("cargo builds libmdm.so with the tests");
    if !works("nm") {
        return;
    }
    let exported = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let mut exported: Vec<&str> =
        exported.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    let header = committed();
    let declared = declarations(&header);
    let mut declared: Vec<&str> = declared
        .iter()
        .filter(|line| !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
}
