//! C++ programs use mdm.hpp as hosts do: with and without exceptions, with each compiler and standard, under sanitizers.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/cpp.rs"]
mod cpp;
#[path = "support/programs.rs"]
mod programs;
mod support;

fn runs(compiler: &str, name: &str, flags: &[&str]) {
    cpp::runs("tests/cpp", "mdm", compiler, name, flags);
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

/// What is appended to mdm.h belongs into mdm.hpp too.
#[test]
fn everything_of_the_c_header_is_there() {
    cpp::check_it_is_complete("mdm", &["mdm.hpp"]);
}
