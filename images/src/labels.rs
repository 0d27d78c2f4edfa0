//! Label images: PNG files whose pixels are class indices.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::memory::claimed_values;
use crate::error::{FileError, Result, failed};

/// The index of pixels that nobody labelled.
pub const UNLABELLED: u8 = 255;

/// Class indices, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`.
    pub values: Vec<u8>,
}

fn unreadable(path: &Path, error: &png::DecodingError) -> FileError {
    failed(path, format!("cannot be read as a label PNG, it may be damaged or cut short: {error}"))
}

fn decoder(path: &Path) -> Result<png::Reader<BufReader<File>>> {
    let file = File::open(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?;
    let mut decoder = Decoder::new_with_limits(BufReader::new(file), Limits { bytes: 256 << 20 });
    // Palette entries and small depths must stay the indices that they are.
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.read_info().map_err(|error| match error {
        png::DecodingError::Format(_) if !is_png(path) => {
            failed(path, "is not a PNG; labels are PNG files of class indices, named like their image")
        }
        error => unreadable(path, &error),
    })
}

fn is_png(path: &Path) -> bool {
    let mut start = [0; 8];
    File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start)).is_ok()
        && start == *b"\x89PNG\r\n\x1a\n"
}

/// Reads class indices: the palette's of an indexed PNG, the grey values of others.
pub fn read_labels(path: &Path) -> Result<Labels> {
    let mut reader = decoder(path)?;
    let size = (reader.info().width, reader.info().height);
    let (color, depth) = reader.output_color_type();
    let sample_bytes = if depth == BitDepth::Sixteen { 2 } else { 1 };
    claimed_values(path, size, color.samples(), sample_bytes)?;
    let too_large = || failed(path, "does not fit into memory");
    let len = reader.output_buffer_size().ok_or_else(too_large)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| too_large())?;
    bytes.resize(len, 0);
    reader.next_frame(&mut bytes).map_err(|error| unreadable(path, &error))?;
    let (width, height) = (size.0 as usize, size.1 as usize);
    let values = match (color, depth) {
        (ColorType::Grayscale | ColorType::Indexed, BitDepth::Eight) => bytes,
        (ColorType::Grayscale | ColorType::Indexed, BitDepth::One | BitDepth::Two | BitDepth::Four) => {
            unpack(&bytes, width, height, depth as usize)
        }
        _ => bytes
            .chunks_exact(color.samples() * sample_bytes)
            .map(|pixel| index(path, pixel, color, sample_bytes))
            .collect::<Result<_>>()?,
    };
    Ok(Labels { width, height, values })
}

fn unpack(packed: &[u8], width: usize, height: usize, bits: usize) -> Vec<u8> {
    let row_bytes = (width * bits).div_ceil(8);
    let mask = (1u8 << bits) - 1;
    let mut values = Vec::with_capacity(width * height);
    for row in packed.chunks(row_bytes).take(height) {
        values.extend((0..width).map(|x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask));
    }
    values
}

/// The index that a pixel of 16 bits or several channels stands for: grey is accepted in any disguise.
fn index(path: &Path, pixel: &[u8], color: ColorType, sample_bytes: usize) -> Result<u8> {
    let colours = if matches!(color, ColorType::Rgb | ColorType::Rgba) { 3 } else { 1 };
    let mut samples = pixel.chunks_exact(sample_bytes).take(colours).map(|sample| match *sample {
        [high, low] => u16::from_be_bytes([high, low]),
        _ => sample.first().copied().unwrap_or_default().into(),
    });
    let first = samples.next().unwrap_or_default();
    if samples.any(|sample| sample != first) {
        return Err(failed(
            path,
            "is a colour picture; labels are PNG files of class indices (grey or with a palette): 0, 1, 2 ..., and 255 where nothing is labelled",
        ));
    }
    u8::try_from(first).map_err(|_| {
        failed(
            path,
            format!("holds the value {first}; labels are class indices from 0 to 254, and 255 where nothing is labelled"),
        )
    })
}
