//! One suite for every engine: each operation over generated shapes against a naive reference in f64.
//!
//! An operation is a plan of its own. Every instruction set of the CPU engine runs it, and once more with another number
//! of threads, which must not change a bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attention;
mod convolution;
mod corruption;
mod embedding;
mod heads;
mod norms;
mod problem;
#[path = "../support/mod.rs"]
mod support;
