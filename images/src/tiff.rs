//! Reads TIFF files straight into place, floating-point greys included.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use tiff::ColorType;
use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, Limits};
use tiff::tags::{PlanarConfiguration, SampleFormat, Tag};

use super::read::{Image, Kind, allocate, unsupported};
use super::resolution;
use crate::error::{FileError, Result, failed};
use crate::intensity::{DeclaredRange, RangeSource, StoredType};

/// Bytes that a tag's values, and a small image's strip, may take once decoded.
const MOST_OF_A_TAG: usize = 256 << 20;

/// What the first page says.
pub(super) struct Page {
    /// Absent where the pixels need a conversion that is not done here.
    pub(super) image: Option<Image>,
    pub(super) microns_per_pixel: Option<f64>,
    pub(super) declared_range: Option<DeclaredRange>,
    /// The tag Orientation.
    pub(super) orientation: u16,
    /// Whether other pages follow.
    pub(super) more_pages: bool,
}

/// Reads the first page.
pub(super) fn read(path: &Path) -> Result<Page> {
    let unreadable = |error: tiff::TiffError| unreadable(path, &error);
    let file = File::open(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?;
    let mut limits = Limits::unlimited();
    limits.ifd_value_size = MOST_OF_A_TAG;
    limits.decoding_buffer_size = MOST_OF_A_TAG;
    let mut decoder = Decoder::new(BufReader::new(file)).map_err(unreadable)?.with_limits(limits.clone());
    let mut page = Page {
        image: None,
        microns_per_pixel: resolution::of_tiff(&mut decoder),
        declared_range: None,
        orientation: decoder.find_tag_unsigned(Tag::Orientation).ok().flatten().unwrap_or(1),
        more_pages: decoder.more_images(),
    };
    let size = decoder.dimensions().map_err(unreadable)?;
    let color = decoder.colortype().map_err(unreadable)?;
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(unreadable)?;
    let float = formats.iter().flatten().any(|format| *format == SampleFormat::IEEEFP.to_u16());
    let signed = formats.iter().flatten().any(|format| *format == SampleFormat::Int.to_u16());
    let planar = decoder
        .find_tag_unsigned::<u16>(Tag::PlanarConfiguration)
        .map_err(unreadable)?
        .is_some_and(|value| value == PlanarConfiguration::Planar.to_u16());
    let (channels, bits) = match color {
        ColorType::Gray(bits) => (1, bits),
        ColorType::GrayA(bits) => (2, bits),
        ColorType::RGB(bits) => (3, bits),
        ColorType::RGBA(bits) => (4, bits),
        _ => return Ok(page),
    };
    let kind = match (bits, float) {
        (8, false) => Kind::U8,
        (16, false) => Kind::U16,
        (32, true) => Kind::F32,
        _ => return Ok(page),
    };
    if signed || (planar && channels > 1) {
        return Ok(page);
    }
    let stored = match kind {
        Kind::U8 => StoredType::U8,
        Kind::U16 => StoredType::U16,
        Kind::F32 => StoredType::F32,
    };
    page.declared_range = declared(&mut decoder, stored, if channels < 3 { 1 } else { 3 });
    let mut pixels = allocate(path, size, channels, kind)?;
    limits.intermediate_buffer_size = pixels.bytes().len().max(MOST_OF_A_TAG);
    decoder = decoder.with_limits(limits);
    decoder.read_image_bytes(pixels.bytes_mut()).map_err(unreadable)?;
    let (width, height) = (size.0 as usize, size.1 as usize);
    page.image = Some(Image::new(width, height, channels, pixels));
    Ok(page)
}

/// The range that OME-XML or the tags for the lowest and highest sample state.
fn declared(
    decoder: &mut Decoder<BufReader<File>>,
    stored: StoredType,
    colours: usize,
) -> Option<DeclaredRange> {
    let description = decoder.get_tag_ascii_string(Tag::ImageDescription).unwrap_or_default();
    if let Some(bits) = resolution::attribute(&description, "SignificantBits") {
        let source = RangeSource::OmeSignificantBits;
        return DeclaredRange::of_significant_bits(bits.parse().ok()?, stored, colours, source);
    }
    let mut numbers = |tag| {
        let mut numbers = Vec::new();
        append(&decoder.find_tag(tag).ok().flatten()?, &mut numbers)?;
        match *numbers.as_slice() {
            [only] => Some(vec![only; colours]),
            ref several => Some(several.get(..colours)?.to_vec()),
        }
    };
    let (low, high) = match numbers(Tag::SMaxSampleValue) {
        Some(high) => (numbers(Tag::SMinSampleValue)?, high),
        None => (
            numbers(Tag::MinSampleValue).unwrap_or_else(|| vec![0.0; colours]),
            numbers(Tag::MaxSampleValue)?,
        ),
    };
    let channels: Vec<(f64, f64)> = low.into_iter().zip(high).collect();
    // As wide as the type: nothing is said.
    let narrower = channels.iter().any(|range| Some(*range) != stored.limits());
    narrower.then_some(DeclaredRange { channels, source: RangeSource::TiffSampleValues })
}

/// The numbers in a tag, of whatever type they are.
fn append(value: &Value, numbers: &mut Vec<f64>) -> Option<()> {
    numbers.push(match value {
        Value::List(values) => return values.iter().try_for_each(|value| append(value, numbers)),
        Value::Byte(number) => (*number).into(),
        Value::Short(number) => (*number).into(),
        Value::Unsigned(number) => (*number).into(),
        Value::SignedByte(number) => (*number).into(),
        Value::SignedShort(number) => (*number).into(),
        Value::Signed(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Double(number) => *number,
        _ => return None,
    });
    Some(())
}

fn unreadable(path: &Path, error: &tiff::TiffError) -> FileError {
    match error {
        tiff::TiffError::UnsupportedError(kind) => unsupported(path, kind),
        error => {
            failed(path, format!("cannot be read as a TIFF image, it may be damaged or cut short: {error}"))
        }
    }
}
