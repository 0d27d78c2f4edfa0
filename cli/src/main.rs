//! The `mdm` command.
fn main() {}
