//! Samples of PNG files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::stored::{Palette, Samples, Stored};
use crate::Orientation;
use crate::error::{FileError, Result, failed};
use crate::memory::claimed_values;

fn unreadable(path: &Path, error: &DecodingError) -> FileError {
    failed(path, format!("cannot be read as a label PNG, it may be damaged or cut short: {error}"))
}

/// Reads the samples as they are: palette entries and small depths stay the numbers that they are.
pub(super) fn read(path: &Path) -> Result<Stored> {
    let file = File::open(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?;
    let mut decoder = Decoder::new_with_limits(BufReader::new(file), Limits { bytes: 256 << 20 });
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|error| unreadable(path, &error))?;
    let size = (reader.info().width, reader.info().height);
    let orientation = reader.info().exif_metadata.as_deref().map(Orientation::from_exif).unwrap_or_default();
    let (color, depth) = reader.output_color_type();
    let wide = depth == BitDepth::Sixteen;
    claimed_values(path, size, color.samples(), if wide { 2 } else { 1 })?;
    let too_large = || failed(path, "does not fit into memory");
    let len = reader.output_buffer_size().ok_or_else(too_large)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| too_large())?;
    bytes.resize(len, 0);
    reader.next_frame(&mut bytes).map_err(|error| unreadable(path, &error))?;
    let (width, height) = (size.0 as usize, size.1 as usize);
    let info = reader.info();
    let transparency = info.trns.as_deref();
    let palette = (color == ColorType::Indexed).then(|| Palette {
        colours: info.palette.iter().flat_map(|palette| palette.as_chunks().0).copied().collect(),
        opacity: transparency.unwrap_or_default().to_vec(),
    });
    let pairs = |bytes: &[u8]| -> Vec<u32> {
        bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).collect()
    };
    let samples = match depth {
        BitDepth::Sixteen => Samples::Wide(pairs(&bytes)),
        BitDepth::Eight => Samples::Bytes(bytes),
        _ => Samples::Bytes(unpack(&bytes, width, height, depth as usize)),
    };
    Ok(Stored {
        width,
        height,
        channels: color.samples(),
        samples,
        most: (1 << depth as u32) - 1,
        // The decoder leaves as many bytes a sample as the samples have.
        transparent: transparency
            .filter(|_| palette.is_none())
            .map(|colour| if wide { pairs(colour) } else { colour.iter().copied().map(u32::from).collect() }),
        palette,
        orientation,
    })
}

/// Samples of less than 8 bits, whose rows begin with a byte.
fn unpack(packed: &[u8], width: usize, height: usize, bits: usize) -> Vec<u8> {
    let row_bytes = (width * bits).div_ceil(8);
    let mask = (1u8 << bits) - 1;
    let mut values = Vec::with_capacity(width * height);
    for row in packed.chunks(row_bytes).take(height) {
        values.extend((0..width).map(|x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask));
    }
    values
}
