//! Memory for pixels, as far as a file's claims can be true.

use std::path::Path;

use crate::error::{FileError, Result, damaged, failed};
use crate::read::Pixels;

/// Longest side of an image.
const LONGEST_SIDE: u32 = 1 << 20;

/// Decoded bytes that a header may always claim, however short the file is.
const ALWAYS_PLAUSIBLE: u64 = 64 << 20;

/// Most that any of the formats' compressions can shrink: Deflate reaches 1032, LZW 1365, JPEG about 1000.
const BEST_COMPRESSION: u64 = 4096;

/// Type of the values in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8,
    U16,
    F32,
}

impl Kind {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::U16 => 2,
            Kind::F32 => 4,
        }
    }
}

/// The number of values in an image whose header claims this size, if the claim can be true.
pub(crate) fn claimed_values(
    path: &Path,
    (width, height): (u32, u32),
    channels: usize,
    bytes_per_value: usize,
) -> Result<usize> {
    if width == 0 || height == 0 {
        return Err(failed(path, format!("has no pixels ({width} x {height})")));
    }
    if width > LONGEST_SIDE || height > LONGEST_SIDE {
        return Err(failed(
            path,
            format!("claims to be {width} x {height} pixels; sides up to {LONGEST_SIDE} are possible"),
        ));
    }
    let stored =
        std::fs::metadata(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?.len();
    let values = u64::from(width) * u64::from(height) * channels as u64;
    let bytes = values.saturating_mul(bytes_per_value as u64);
    if bytes > ALWAYS_PLAUSIBLE && bytes / BEST_COMPRESSION > stored {
        return Err(damaged(
            path,
            format!("it claims to be {width} x {height} pixels, which its {stored} bytes cannot hold"),
        ));
    }
    usize::try_from(values).map_err(|_| too_large(path, width, height))
}

/// Zeros for such an image of at most `most` bytes. The system has to find memory for them only as they are written to.
pub(crate) fn allocate(
    path: &Path,
    size: (u32, u32),
    channels: usize,
    kind: Kind,
    most: u64,
) -> Result<Pixels> {
    let len = claimed_values(path, size, channels, kind.bytes())?;
    if (len as u64).saturating_mul(kind.bytes() as u64) > most {
        let (width, height) = size;
        return Err(failed(
            path,
            format!(
                "its {width} x {height} pixels of {channels} channels take more than {:.1} GB of memory; cut it \
                 into parts, or allow more with --max-image-memory",
                most as f64 / 1e9
            ),
        ));
    }
    match kind {
        Kind::U8 => zeros(len).map(Pixels::U8),
        Kind::U16 => zeros(len).map(Pixels::U16),
        Kind::F32 => zeros(len).map(Pixels::F32),
    }
    .ok_or_else(|| too_large(path, size.0, size.1))
}

/// `len` zeros, if there is memory for them.
pub(crate) fn zeros<T: bytemuck::Zeroable>(len: usize) -> Option<Vec<T>> {
    bytemuck::allocation::try_zeroed_slice_box(len).ok().map(<[T]>::into_vec)
}

pub(crate) fn too_large(
    path: &Path,
    width: impl std::fmt::Display,
    height: impl std::fmt::Display,
) -> FileError {
    failed(path, format!("{width} x {height} pixels do not fit into memory; cut the image into parts"))
}
