//! Samples of TIFF files.

use std::path::Path;

use super::stored::{Palette, Samples, Stored};
use crate::choice::ReadOptions;
use crate::error::{Result, failed};
use crate::read::Pixels;
use crate::tiff::{Raw, read_raw};

/// Whole numbers up to here are all kept apart in memory.
const LARGEST: f32 = 16_777_216.0;

/// Reads the samples of the only page.
pub(super) fn read(path: &Path) -> Result<Stored> {
    let raw: Raw = read_raw(path, ReadOptions::MOST_BYTES)?;
    if raw.pages > 1 {
        return Err(failed(
            path,
            "has several pages; a label file has one, so save the page that belongs to the image on its own",
        ));
    }
    if raw.lossy {
        return Err(failed(
            path,
            "is compressed as JPEG, which does not keep numbers as they are; save labels as PNG, or with LZW or Deflate",
        ));
    }
    if raw.samples > 4 {
        return Err(failed(
            path,
            "does not hold one number a pixel; save labels as an 8- or 16-bit grey PNG or TIFF",
        ));
    }
    let whole = |value: f32| {
        if value >= 0.0 && value.fract() == 0.0 && value < LARGEST {
            return Ok(value as u32);
        }
        let only = if value >= LARGEST { "below 16777216" } else { "0 and above" };
        Err(failed(
            path,
            format!("holds the value {value}; labels are whole numbers, {only}, so this is no label file"),
        ))
    };
    let samples = match raw.pixels {
        Pixels::U8(values) => Samples::Bytes(values),
        Pixels::U16(values) => Samples::Wide(values.into_iter().map(u32::from).collect()),
        Pixels::F32(values) => Samples::Wide(values.into_iter().map(whole).collect::<Result<_>>()?),
    };
    let bits = raw.stored.bits;
    Ok(Stored {
        width: raw.width,
        height: raw.height,
        channels: raw.samples,
        samples,
        most: if bits < 32 { (1u32 << bits) - 1 } else { u32::MAX },
        palette: raw.palette.map(|colours| Palette { colours, opacity: Vec::new() }),
        transparent: None,
        orientation: raw.orientation,
    })
}
