//! What guides show is compiled: whole programs as they are, the rest as functions of one program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;

use crate::programs::{FOLDER, built, root, run};

/// Code blocks of one language in a guide, in order.
pub(crate) fn blocks(guide: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs").join(guide)).unwrap();
    let opening = format!("```{language}");
    let (mut found, mut current) = (Vec::new(), None::<String>);
    for line in text.lines() {
        match &mut current {
            Some(_) if line == "```" => found.extend(current.take()),
            Some(block) => *block += &format!("{line}\n"),
            None if line == opening => current = Some(String::new()),
            None => {}
        }
    }
    assert!(current.is_none(), "a block does not end");
    found
}

/// Whole programs as they are; of the rest one program, which begins with `before`: functions where they stand, statements in functions of
/// their own, which have the variables of the guide as arguments.
pub(crate) fn programs(guide: &str, language: &str, before: &str, arguments: &str) -> Vec<String> {
    let (mut programs, mut rest) = (Vec::new(), before.to_owned());
    for (number, block) in blocks(guide, language).into_iter().enumerate() {
        if block.contains("int main(") {
            programs.push(block);
        } else if block.starts_with("static ") {
            rest += &block;
        } else {
            rest += &format!(
                "void block_{number}({arguments});\nvoid block_{number}({arguments}) {{\n{block}}}\n"
            );
        }
    }
    programs.push(rest + "int main(void) { return 0; }\n");
    programs
}

/// Compiles one of them and links it with a library.
pub(crate) fn compile(
    compiler: &str,
    options: &[&str],
    language: &str,
    library: &str,
    program: &str,
) -> PathBuf {
    let source = FOLDER.join(format!("guide.{language}"));
    let target = FOLDER.join(format!("guide-{language}"));
    std::fs::write(&source, program).unwrap();
    run(Command::new(compiler)
        .args(options)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unused-parameter", "-Wno-unused-variable"])
        .arg("-I")
        .arg(root().join("include"))
        .arg(&source)
        .arg("-L")
        .arg(built(&format!("lib{library}")))
        .arg(format!("-l{library}"))
        .arg(format!("-Wl,-rpath,{}", FOLDER.display()))
        .arg("-o")
        .arg(&target));
    target
}
