//! One subcommand a file.

pub(crate) mod devices;
pub(crate) mod eval;
