//! What `docs/c-api.md` shows compiles without a warning, and its programs run.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/installed.rs"]
mod installed;
#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use installed::{installed, succeed};
use programs::{FOLDER, libraries, works};

/// Code blocks of one language, in order.
fn blocks(language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/c-api.md");
    let text = std::fs::read_to_string(path).unwrap();
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

/// Whole programs as they are; of the rest one program: functions where they stand, statements in functions of their own, which have the
/// variables of the first program as arguments.
fn programs(language: &str, includes: &str, arguments: &str) -> Vec<String> {
    let (mut programs, mut rest) = (Vec::new(), includes.to_owned());
    for (number, block) in blocks(language).into_iter().enumerate() {
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

fn compile(compiler: &str, options: &[&str], language: &str, program: &str) -> PathBuf {
    let source = FOLDER.path().join(format!("guide.{language}"));
    let target = FOLDER.path().join(format!("guide-{language}"));
    std::fs::write(&source, program).unwrap();
    succeed(
        Command::new(compiler)
            .args(options)
            .args([
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                "-Wno-unused-parameter",
                "-Wno-unused-variable",
            ])
            .arg("-I")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
            .arg(&source)
            .arg("-L")
            .arg(libraries())
            .arg("-lmdm")
            .arg(format!("-Wl,-rpath,{}", FOLDER.path().display()))
            .arg("-o")
            .arg(&target),
    );
    target
}

/// Runs a program that makes a mask of an image.
fn makes_a_mask(program: &Path) {
    let (image, mask) = (FOLDER.path().join("guide.ppm"), FOLDER.path().join("guide.pgm"));
    let mut pixels = b"P6\n40 30\n255\n".to_vec();
    pixels.extend((0..40 * 30 * 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    std::fs::write(&image, pixels).unwrap();
    let _ = std::fs::remove_file(&mask);
    let model = FOLDER.path().join("modèle.safetensors");
    succeed(Command::new(program).arg(model).arg(image).arg(&mask));
    let mask = std::fs::read(mask).unwrap();
    let labels = mask.strip_prefix(b"P5\n40 30\n1\n").unwrap();
    assert_eq!(labels.len(), 40 * 30);
    assert!(labels.iter().all(|&label| label < 3) && labels.iter().any(|&label| label != labels[0]));
}

#[test]
fn the_guide_in_c() {
    if !works("cc") {
        return;
    }
    let includes = "#include <mdm.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n";
    let arguments = "mdm_model *model, mdm_device *device, mdm_segmenter *segmenter, mdm_image image, \
                     mdm_result result, mdm_status status, mdm_error *error";
    let programs = programs("c", includes, arguments);
    assert!(programs.len() == 2, "one program, and fragments");
    for program in &programs {
        let fragments = program.contains("block_");
        let unused: &[&str] = if fragments { &["-Wno-unused-but-set-parameter"] } else { &[] };
        let built = compile("cc", &[&["-std=c11"], unused].concat(), "c", program);
        if !fragments {
            makes_a_mask(&built);
        }
    }
}

#[test]
fn the_guide_in_cpp() {
    if !works("c++") {
        return;
    }
    let includes = "#include <mdm.hpp>\n#include <algorithm>\n#include <cstdint>\n#include <iostream>\n#include <vector>\n";
    let arguments = "mdm::model &model, mdm::device &device, mdm::segmenter &segmenter, \
                     std::vector<std::uint8_t> &pixels, std::vector<std::uint8_t> &labels, \
                     std::uint32_t width, std::uint32_t height";
    let programs = programs("cpp", includes, arguments);
    assert!(programs.len() == 2, "one program, and fragments");
    for program in &programs {
        let built = compile("c++", &["-std=c++17"], "cpp", program);
        if !program.contains("block_") {
            makes_a_mask(&built);
        }
    }
}

#[test]
fn the_guide_in_cmake() {
    if !works("cmake") || !works("c++") {
        return;
    }
    let lists = blocks("cmake");
    let program = blocks("cpp").into_iter().find(|block| block.contains("int main(")).unwrap();
    let source = FOLDER.path().join("guide");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("CMakeLists.txt"), &lists[0]).unwrap();
    std::fs::write(source.join("mask.cpp"), program).unwrap();
    let (build, prefix) = (source.join("build"), format!("-DCMAKE_PREFIX_PATH={}", installed().display()));
    succeed(Command::new("cmake").arg("-S").arg(&source).arg("-B").arg(&build).arg(prefix));
    succeed(Command::new("cmake").arg("--build").arg(&build));
    makes_a_mask(&build.join("mask"));
}
