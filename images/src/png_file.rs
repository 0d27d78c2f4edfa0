//! PNG files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations, Unit};

use crate::error::{Result, damaged};
use crate::intensity::{DeclaredRange, StoredType};
use crate::memory::{Kind, allocate};
use crate::orientation::Orientation;
use crate::pixel_size::PixelSize;
use crate::read::{Pixels, Stored, cannot_open};

/// Bytes that the decoder may take beside the pixels.
const MOST_FOR_ITSELF: usize = 256 << 20;

fn open(path: &Path) -> Result<png::Reader<BufReader<File>>> {
    let file = File::open(path).map_err(|error| cannot_open(path, &error))?;
    let mut decoder = Decoder::new_with_limits(BufReader::new(file), Limits { bytes: MOST_FOR_ITSELF });
    // Palettes as colours, 1 to 4 bits as 8.
    decoder.set_transformations(Transformations::EXPAND);
    decoder.read_info().map_err(|error| damaged(path, error))
}

fn orientation(info: &png::Info<'_>) -> Orientation {
    info.exif_metadata.as_ref().map_or_else(Orientation::default, |exif| Orientation::from_exif(exif))
}

/// Width and height as shown.
pub(crate) fn size(path: &Path) -> Result<(usize, usize)> {
    let reader = open(path)?;
    let info = reader.info();
    Ok(orientation(info).size((info.width as usize, info.height as usize)))
}

/// Reads the picture, of an animation the first, without its opacity.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Stored> {
    let mut reader = open(path)?;
    let (color, depth) = reader.output_color_type();
    let (samples, channels) = match color {
        ColorType::Grayscale | ColorType::Indexed => (1, 1),
        ColorType::GrayscaleAlpha => (2, 1),
        ColorType::Rgb => (3, 3),
        ColorType::Rgba => (4, 3),
    };
    let kind = if depth == BitDepth::Sixteen { Kind::U16 } else { Kind::U8 };
    let info = reader.info();
    let size = (info.width, info.height);
    let orientation = orientation(info);
    let significant_bits = info.sbit.as_ref().map(|bits| bits.to_vec());
    let pixel_size = match info.pixel_dims {
        Some(density) if density.unit == Unit::Meter => {
            PixelSize::of_density(density.xppu.into(), density.yppu.into(), 1e6)
        }
        _ => PixelSize::Absent,
    };
    let interlaced = info.interlaced;
    let mut pixels = if interlaced {
        interlaced_pixels(path, &mut reader, size, samples, kind, limit)?
    } else {
        allocate(path, size, channels, kind, limit)?
    };
    if interlaced {
        let picks: Vec<usize> = (0..channels).collect();
        pixels.pick(samples, &picks);
    } else {
        rows(path, &mut reader, &mut pixels, samples, channels, size.0 as usize)?;
    }
    let declared_range = significant_bits.and_then(|bits| DeclaredRange::of_png(&bits, &pixels, channels));
    Ok(Stored {
        width: size.0 as usize,
        height: size.1 as usize,
        channels,
        pixels,
        stored: if kind == Kind::U16 { StoredType::U16 } else { StoredType::U8 },
        declared_range,
        orientation,
        pixel_size,
        left_out: None,
    })
}

/// Reads row by row, so that a file that ends early has taken no more memory than it had pixels for.
fn rows(
    path: &Path,
    reader: &mut png::Reader<BufReader<File>>,
    pixels: &mut Pixels,
    samples: usize,
    channels: usize,
    width: usize,
) -> Result<()> {
    let mut y = 0;
    while let Some(row) = reader.next_row().map_err(|error| damaged(path, error))? {
        let begin = y * width * channels;
        match pixels {
            Pixels::U8(values) => {
                let out = values[begin..].chunks_exact_mut(channels);
                for (out, pixel) in out.zip(row.data().chunks_exact(samples)) {
                    out.copy_from_slice(&pixel[..channels]);
                }
            }
            Pixels::U16(values) => {
                let out = values[begin..].chunks_exact_mut(channels);
                for (out, pixel) in out.zip(row.data().chunks_exact(2 * samples)) {
                    for (out, value) in out.iter_mut().zip(pixel.chunks_exact(2)) {
                        *out = u16::from_be_bytes([value[0], value[1]]);
                    }
                }
            }
            Pixels::F32(_) => {}
        }
        y += 1;
    }
    Ok(())
}

fn interlaced_pixels(
    path: &Path,
    reader: &mut png::Reader<BufReader<File>>,
    size: (u32, u32),
    samples: usize,
    kind: Kind,
    limit: u64,
) -> Result<Pixels> {
    let mut pixels = allocate(path, size, samples, kind, limit)?;
    match &mut pixels {
        Pixels::U8(values) => {
            reader.next_frame(values).map_err(|error| damaged(path, error))?;
        }
        Pixels::U16(values) => {
            reader.next_frame(bytemuck::cast_slice_mut(values)).map_err(|error| damaged(path, error))?;
            values.iter_mut().for_each(|value| *value = u16::from_be(*value));
        }
        Pixels::F32(_) => {}
    }
    Ok(pixels)
}
