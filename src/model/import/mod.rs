//! PyTorch checkpoints.

/// First bytes of a pickled magic number that starts checkpoints of PyTorch before 1.6.
const LEGACY_MAGIC: [u8; 14] =
    [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// What a file is, where it is a checkpoint of PyTorch.
pub(crate) fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"PK\x03\x04") {
        Some("a zip archive, probably a PyTorch checkpoint")
    } else if bytes.starts_with(&LEGACY_MAGIC) {
        Some("a PyTorch checkpoint in the old format")
    } else {
        None
    }
}
