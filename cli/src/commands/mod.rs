//! One subcommand a file.

pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fit;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod pretrain;
pub(crate) mod segment;
pub(crate) mod tune;
