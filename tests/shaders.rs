//! Every permutation of every shader, as Vulkan, Metal and DX12 get it.

#![cfg(feature = "gpu")]

mod translation;

use std::collections::BTreeSet;

use mdm::engine::gpu::shader::{Permutation, Shader};
use translation::folder;

#[test]
fn every_permutation_translates_for_every_backend() {
    translation::every_permutation_translates_for_every_backend(&Permutation::all());
}

#[test]
fn vectors_in_registers_are_written_as_fxc_can() {
    translation::vectors_in_registers_are_written_as_fxc_can(&Permutation::all());
}

#[test]
fn every_permutation_keeps_the_limits() {
    translation::every_permutation_keeps_the_limits(&Permutation::all());
}

#[test]
fn declarations_are_read_as_naga_reads_them() {
    translation::declarations_are_read_as_naga_reads_them(&Permutation::all());
}

#[test]
fn every_file_is_tidy() {
    translation::every_file_is_tidy(&["shaders", "shaders/shared"]);
}

#[test]
fn every_file_is_used() {
    let files = folder("shaders");
    let there: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let used: BTreeSet<&str> = Shader::ALL.iter().map(|shader| shader.name()).collect();
    assert_eq!(there, used, "files in shaders/ (left) and the engine's shaders (right)");
    let compiled: BTreeSet<&str> =
        Permutation::all().iter().map(|permutation| permutation.shader.name()).collect();
    assert_eq!(compiled, used, "shaders with permutations (left) and all shaders (right)");

    let shared = folder("shaders/shared");
    let there: BTreeSet<&str> = shared.iter().map(|(name, _)| name.as_str()).collect();
    let imports =
        files.iter().flat_map(|(_, text)| text.lines()).filter_map(|line| line.strip_prefix("#import "));
    let imported: BTreeSet<&str> = imports.map(str::trim).collect();
    assert_eq!(there, imported, "files in shaders/shared/ (left) and what shaders import (right)");
}
