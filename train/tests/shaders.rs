//! Every permutation of every shader of training, as Vulkan, Metal and DX12 get it.

#![cfg(feature = "gpu")]

#[path = "../../tests/translation/mod.rs"]
mod translation;

use std::collections::BTreeSet;

use mdm_train::engine::gpu::permutations;
use translation::folder;

#[test]
fn every_permutation_translates_for_every_backend() {
    translation::every_permutation_translates_for_every_backend(&permutations());
}

#[test]
fn vectors_in_registers_are_written_as_fxc_can() {
    translation::vectors_in_registers_are_written_as_fxc_can(&permutations());
}

#[test]
fn every_permutation_keeps_the_limits() {
    translation::every_permutation_keeps_the_limits(&permutations());
}

#[test]
fn declarations_are_read_as_naga_reads_them() {
    translation::declarations_are_read_as_naga_reads_them(&permutations());
}

#[test]
fn every_file_is_tidy() {
    translation::every_file_is_tidy(&["shaders", "shaders/shared"]);
}

#[test]
fn every_file_is_used() {
    let files = folder("shaders");
    let there: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let all = permutations();
    let used: BTreeSet<&str> = all.iter().map(|permutation| permutation.shader.name()).collect();
    assert_eq!(there, used, "files in shaders/ (left) and the engine's shaders (right)");
}
