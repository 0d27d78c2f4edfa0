//! Checks of a generated header: that it is what the code says, compiles, and keeps what was released.
#![allow(dead_code, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A header and what it is made from. Paths are relative to the root of the sources.
pub(crate) struct Header {
    /// The root of the sources.
    pub(crate) root: PathBuf,
    /// Its name in `include`.
    pub(crate) name: &'static str,
    /// cbindgen's configuration.
    pub(crate) config: &'static str,
    /// The folder of its sources.
    pub(crate) folder: &'static str,
    /// Their names, in the order in which the header presents them.
    pub(crate) sources: &'static [&'static str],
    /// What was released.
    pub(crate) released: &'static str,
}

/// Whether headers and lists are to be written.
pub(crate) fn bless() -> bool {
    std::env::var_os("MDM_BLESS").is_some()
}

pub(crate) fn works(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Names and values of macros.
pub(crate) fn constants(header: &str) -> BTreeMap<&str, &str> {
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

/// Names of the functions that a header declares.
fn functions(header: &str) -> Vec<String> {
    let declared = declarations(header);
    let functions = declared.iter().filter(|line| !line.starts_with("typedef"));
    functions.filter_map(|line| Some(line.split_once('(')?.0.rsplit([' ', '*']).next()?.to_owned())).collect()
}

impl Header {
    fn path(&self) -> PathBuf {
        self.root.join("include").join(self.name)
    }

    fn generated(&self) -> String {
        let config = cbindgen::Config::from_file(self.root.join(self.config)).unwrap();
        let mut builder = cbindgen::Builder::new().with_config(config);
        for name in self.sources {
            builder = builder.with_src(self.root.join(self.folder).join(format!("{name}.rs")));
        }
        let mut header = Vec::new();
        builder.generate().unwrap().write(&mut header);
        String::from_utf8(header).unwrap()
    }

    pub(crate) fn committed(&self) -> String {
        // A checkout on Windows may have changed the ends of lines.
        fs::read_to_string(self.path()).unwrap_or_default().replace("\r\n", "\n")
    }

    /// Fails unless the committed header is the generated one; writes it where that is asked for.
    pub(crate) fn check_it_is_up_to_date(&self) {
        let header = self.generated();
        if bless() {
            fs::write(self.path(), &header).unwrap();
        }
        assert!(
            self.committed() == header,
            "include/{} is not what {} says; run this test with MDM_BLESS=1",
            self.name,
            self.folder
        );
    }

    /// Fails unless compilers accept it without a warning.
    pub(crate) fn check_it_compiles(&self) {
        let folder = tempfile::tempdir().unwrap();
        let header = self.committed();
        // Every initialiser is used, so that one with a member too few is found.
        let uses: String = constants(&header)
            .keys()
            .filter_map(|name| name.strip_prefix("MDM_")?.strip_suffix("_INIT"))
            .map(|name| {
                let lower = name.to_lowercase();
                format!("mdm_{lower} {lower} = MDM_{name}_INIT;\nif ({lower}.struct_size == 0) return 1;\n")
            })
            .collect();
        let code =
            format!("#include <{}>\nint main(void);\nint main(void) {{\n{uses}return 0;\n}}\n", self.name);
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
                    .arg(self.root.join("include"))
                    .arg(&source));
            }
        }
    }

    /// Everything that programs were compiled against: functions, types, constants, and where members lie.
    fn interface(&self) -> Vec<String> {
        let header = self.committed();
        let mut lines = Vec::new();
        for (name, value) in constants(&header) {
            if !name.ends_with("_INIT") && !name.starts_with("MDM_VERSION_") && !name.ends_with("ABI_VERSION")
            {
                lines.push(format!("constant {name} {value}"));
            }
        }
        let mut code = format!("#include <{}>\n#include <stdio.h>\nint main(void) {{\n", self.name);
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
        run(Command::new("cc").arg("-I").arg(self.root.join("include")).arg(&source).arg("-o").arg(&program));
        lines.extend(run(&mut Command::new(program)).lines().map(str::to_owned));
        lines.sort();
        lines
    }

    /// Fails where something that was released has changed or gone; appends what is new where that is asked for.
    pub(crate) fn check_what_was_released(&self) {
        if !works("cc") {
            return;
        }
        let path = self.root.join(self.released);
        let now = self.interface();
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
}

/// Fails unless the shared library `name` exports what the headers declare and no more.
pub(crate) fn check_exports(name: &str, headers: &[Header]) {
    let library = headers[0].root.join("target");
    let library = std::env::var_os("CARGO_TARGET_DIR").map_or(library, PathBuf::from);
    let own = std::env::current_exe().unwrap();
    let library = [own.parent().unwrap(), &library.join("debug")]
        .into_iter()
        .map(|folder: &Path| folder.join(name))
        .find(|file| file.exists())
        .expect("cargo builds the library with the tests");
    if !works("nm") {
        return;
    }
    let exported = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let mut exported: Vec<&str> =
        exported.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    let mut declared: Vec<String> =
        headers.iter().flat_map(|header| functions(&header.committed())).collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
}
