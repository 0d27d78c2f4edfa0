//! Writes label images, colour images and planes of floating-point values.

use std::borrow::Cow;
use std::io::{Seek, Write};

use tiff::encoder::colortype::Gray32Float;
use tiff::encoder::{TiffEncoder, TiffKind};
use tiff::tags::Tag;

/// Rows that are gathered before they are written.
const ROWS_AT_A_TIME: usize = 64;

/// Writes class indices as a PNG with a palette: still indices, but in colours where it is looked at.
pub fn write_coloured_labels(
    out: impl Write,
    width: usize,
    height: usize,
    labels: &[u8],
    colour: impl Fn(u8) -> [u8; 3],
) -> Result<(), png::EncodingError> {
    let mut encoder = encoder(out, width, height, png::ColorType::Indexed)?;
    encoder.set_palette((0..=255).flat_map(colour).collect::<Vec<u8>>());
    encoder.write_header()?.write_image_data(labels)
}

/// Writes an 8-bit grey PNG: grey values, or class indices for other programs to read.
pub fn write_grey(
    out: impl Write,
    width: usize,
    height: usize,
    values: &[u8],
) -> Result<(), png::EncodingError> {
    encoder(out, width, height, png::ColorType::Grayscale)?.write_header()?.write_image_data(values)
}

/// Writes an RGB PNG whose rows `fill` provides from the top, so that the picture is never in memory.
pub fn write_rgb(
    out: impl Write,
    width: usize,
    height: usize,
    mut fill: impl FnMut(usize, &mut [u8]),
) -> Result<(), png::EncodingError> {
    let mut encoder = encoder(out, width, height, png::ColorType::Rgb)?;
    encoder.set_compression(png::Compression::Balanced);
    let mut writer = encoder.write_header()?;
    let mut stream = writer.stream_writer()?;
    let mut row = vec![0; 3 * width];
    for y in 0..height {
        fill(y, &mut row);
        stream.write_all(&row)?;
    }
    stream.finish()
}

fn encoder<W: Write>(
    out: W,
    width: usize,
    height: usize,
    color: png::ColorType,
) -> Result<png::Encoder<'static, W>, png::EncodingError> {
    let side = |pixels: usize| {
        u32::try_from(pixels)
            .map_err(|_| std::io::Error::other("a PNG has at most 4294967295 rows or columns"))
    };
    let mut encoder = png::Encoder::new(out, side(width)?, side(height)?);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    Ok(encoder)
}

/// Writes `[height, width, planes]` as a TIFF of 32-bit floating-point pages, which Fiji opens as channels.
pub fn write_planes(
    out: &mut (impl Write + Seek),
    width: usize,
    height: usize,
    planes: usize,
    values: &[f32],
) -> Result<(), tiff::TiffError> {
    // Classic TIFF has 32-bit offsets.
    if size_of_val(values) < 0xF000_0000 {
        pages(TiffEncoder::new(out)?, width, height, planes, values)
    } else {
        pages(TiffEncoder::new_big(out)?, width, height, planes, values)
    }
}

fn pages<W: Write + Seek, K: TiffKind>(
    mut encoder: TiffEncoder<W, K>,
    width: usize,
    height: usize,
    planes: usize,
    values: &[f32],
) -> Result<(), tiff::TiffError> {
    let side = |pixels: usize| u32::try_from(pixels).map_err(|_| tiff::TiffError::IntSizeError);
    let (columns, rows) = (side(width)?, side(height)?);
    let mut strip = Vec::new();
    for plane in 0..planes {
        let mut page = encoder.new_image::<Gray32Float>(columns, rows)?;
        if plane == 0 && planes > 1 {
            let description = format!(
                "ImageJ=1.53t\nimages={planes}\nchannels={planes}\nhyperstack=true\nmode=grayscale\nmin=0\nmax=1\n"
            );
            page.encoder().write_tag(Tag::ImageDescription, description.as_str())?;
        }
        page.rows_per_strip(rows.min(ROWS_AT_A_TIME as u32))?;
        for rows in values.chunks(ROWS_AT_A_TIME * width * planes) {
            let part = if planes == 1 {
                Cow::Borrowed(rows)
            } else {
                strip.clear();
                strip.extend(rows.iter().skip(plane).step_by(planes));
                Cow::Borrowed(strip.as_slice())
            };
            page.write_strip(&part)?;
        }
        page.finish()?;
    }
    Ok(())
}
