//! One subcommand a file.

pub(crate) mod bench;
pub(crate) mod devices;
pub(crate) mod eval;
