//! What `docs/c-api.md` shows compiles without a warning, and its programs run.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/guide.rs"]
mod guide;
#[path = "support/installed.rs"]
mod installed;
#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::Path;
use std::process::Command;

use guide::{blocks, compile, programs as programs_of};
use installed::{installed, succeed};
use programs::{FOLDER, works};

const GUIDE: &str = "c-api.md";

/// Runs a program that makes a mask of an image.
fn makes_a_mask(program: &Path) {
    let (image, mask) = (FOLDER.join("guide.ppm"), FOLDER.join("guide.pgm"));
    let mut pixels = b"P6\n40 30\n255\n".to_vec();
    pixels.extend((0..40 * 30 * 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    std::fs::write(&image, pixels).unwrap();
    let _ = std::fs::remove_file(&mask);
    let model = FOLDER.join("modèle.safetensors");
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
    let programs = programs_of(GUIDE, "c", includes, arguments);
    assert!(programs.len() == 2, "one program, and fragments");
    for program in &programs {
        let fragments = program.contains("block_");
        let unused: &[&str] = if fragments { &["-Wno-unused-but-set-parameter"] } else { &[] };
        let built = compile("cc", &[&["-std=c11"], unused].concat(), "c", "mdm", program);
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
    let programs = programs_of(GUIDE, "cpp", includes, arguments);
    assert!(programs.len() == 2, "one program, and fragments");
    for program in &programs {
        let built = compile("c++", &["-std=c++17"], "cpp", "mdm", program);
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
    let lists = blocks(GUIDE, "cmake");
    let program = blocks(GUIDE, "cpp").into_iter().find(|block| block.contains("int main(")).unwrap();
    let source = FOLDER.join("guide");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("CMakeLists.txt"), &lists[0]).unwrap();
    std::fs::write(source.join("mask.cpp"), program).unwrap();
    let (build, prefix) = (source.join("build"), format!("-DCMAKE_PREFIX_PATH={}", installed().display()));
    succeed(Command::new("cmake").arg("-S").arg(&source).arg("-B").arg(&build).arg(prefix));
    succeed(Command::new("cmake").arg("--build").arg(&build));
    makes_a_mask(&build.join("mask"));
}
