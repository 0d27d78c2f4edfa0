//! C++ programs use mdm_train.hpp as hosts do: with and without exceptions, with each compiler and standard, under sanitizers.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/cpp.rs"]
mod cpp;
#[path = "../../tests/support/programs.rs"]
mod programs;
mod support;

fn runs(compiler: &str, name: &str, flags: &[&str]) {
    cpp::runs("train/tests/cpp", "mdm_train", compiler, name, flags);
}

#[test]
fn the_interface_with_gcc() {
    runs("g++", "interface", &[]);
}

#[test]
fn the_interface_with_clang() {
    runs("clang++", "interface", &[]);
}

#[test]
fn errors_without_exceptions_with_gcc() {
    runs("g++", "errors", cpp::WITHOUT_EXCEPTIONS);
}

#[test]
fn errors_without_exceptions_with_clang() {
    runs("clang++", "errors", cpp::WITHOUT_EXCEPTIONS);
}

/// What is appended to mdm_train.h belongs into mdm_train.hpp too.
#[test]
fn everything_of_the_c_header_is_there() {
    cpp::check_it_is_complete("mdm_train", &["mdm_train.hpp", "mdm.hpp"]);
}
