//! What `docs/training-c-api.md` shows compiles without a warning.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/guide.rs"]
mod guide;
#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

const GUIDE: &str = "training-c-api.md";

fn compiles(compiler: &str, options: &[&str], language: &str, before: &str, arguments: &str) {
    if !programs::works(compiler) {
        return;
    }
    let programs = guide::programs(GUIDE, language, before, arguments);
    assert!(programs.len() == 1 && programs[0].contains("block_0"), "all are fragments");
    guide::compile(compiler, options, language, "mdm_train", &programs[0]);
}

#[test]
fn the_guide_in_c() {
    let before = "#include <mdm_train.h>\n\
                  mdm_status read_image(void *user_data, uint64_t index, mdm_image *image) { return MDM_OK; }\n";
    let arguments = "mdm_model *backbone, mdm_model *model, mdm_device *device, mdm_fitter *fitter, mdm_trainer *trainer, \
                     mdm_image image, mdm_labels labels, mdm_fit_report report, mdm_run run, mdm_step_report done, int enough, \
                     mdm_error *error";
    compiles("cc", &["-std=c11", "-Wno-unused-but-set-parameter"], "c", before, arguments);
}

#[test]
fn the_guide_in_cpp() {
    let before = "#include <mdm_train.hpp>\n#include <cstdint>\n#include <vector>\n\
                  const std::vector<std::uint8_t> &plate(std::uint64_t);\n\
                  const std::vector<std::uint8_t> &plate(std::uint64_t) { static std::vector<std::uint8_t> none; return none; }\n";
    let arguments = "const mdm::model &backbone, const mdm::device &device, const mdm::image_view &image, \
                     const std::vector<std::uint8_t> &labels, std::uint32_t width, std::uint32_t height, const mdm::cancel_token &token";
    compiles("c++", &["-std=c++17"], "cpp", before, arguments);
}
