//! Samples of TIFF files.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use ::tiff::TiffError;
use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::{PhotometricInterpretation, PlanarConfiguration, Tag};

use super::png::unpack;
use super::stored::{Palette, Samples, Stored};
use crate::Orientation;
use crate::error::{FileError, Result, failed};
use crate::read::claimed_values;

/// Bytes that a tag's values, and a small image's strip, may take once decoded.
const MOST_OF_A_TAG: usize = 256 << 20;

/// Reads the samples of the only page.
pub(super) fn read(path: &Path) -> Result<Stored> {
    let unreadable = |error: TiffError| unreadable(path, &error);
    let file = File::open(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?;
    let mut file = BufReader::new(file);
    let interpretation = interpretation(&mut file)
        .map_err(|error| failed(path, format!("cannot be read as a label TIFF: {error}")))?;
    let indexed = interpretation.is_some_and(|(_, value)| value == PALETTE);
    // The decoder knows no palettes and would turn the numbers around where white is 0.
    let patch =
        interpretation.filter(|(_, value)| [WHITE_IS_ZERO, PALETTE].contains(value)).map(|(place, _)| place);
    let mut limits = Limits::unlimited();
    limits.ifd_value_size = MOST_OF_A_TAG;
    limits.decoding_buffer_size = MOST_OF_A_TAG;
    let mut decoder =
        Decoder::new(AsGrey { file, patch, at: 0 }).map_err(unreadable)?.with_limits(limits.clone());
    if decoder.more_images() {
        return Err(failed(
            path,
            "has several pages; a label file has one, so save the page that belongs to the image on its own",
        ));
    }
    let size = decoder.dimensions().map_err(unreadable)?;
    let channels: usize = decoder.find_tag_unsigned(Tag::SamplesPerPixel).map_err(unreadable)?.unwrap_or(1);
    let bits: Vec<u16> =
        decoder.find_tag_unsigned_vec(Tag::BitsPerSample).map_err(unreadable)?.unwrap_or_else(|| vec![1]);
    let planar = decoder
        .find_tag_unsigned::<u16>(Tag::PlanarConfiguration)
        .map_err(unreadable)?
        .is_some_and(|value| value == PlanarConfiguration::Planar.to_u16());
    if !(1..=4).contains(&channels) || (planar && channels > 1) || bits.iter().any(|bit| *bit != bits[0]) {
        return Err(failed(
            path,
            "does not hold one number a pixel; save labels as an 8- or 16-bit grey PNG or TIFF",
        ));
    }
    let bits = bits.first().copied().unwrap_or(1);
    let values = claimed_values(path, size, channels, usize::from(bits).div_ceil(8))?;
    let orientation = decoder.find_tag_unsigned::<u16>(Tag::Orientation).map_err(unreadable)?.unwrap_or(1);
    let palette = if indexed {
        let map = decoder.get_tag_u16_vec(Tag::ColorMap).map_err(unreadable)?;
        let entries = map.len() / 3;
        // Of 16 bits, the upper ones are the colour.
        let entry = |index: usize| [0, 1, 2].map(|channel| (map[channel * entries + index] >> 8) as u8);
        Some(Palette { colours: (0..entries).map(entry).collect(), opacity: Vec::new() })
    } else {
        None
    };
    limits.decoding_buffer_size = values.saturating_mul(8).max(MOST_OF_A_TAG);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    decoder = decoder.with_limits(limits);
    let (width, height) = (size.0 as usize, size.1 as usize);
    let whole = |value: f64| {
        if value >= 0.0 && value.fract() == 0.0 && value < f64::from(u32::MAX) {
            Ok(value as u32)
        } else {
            Err(failed(
                path,
                format!(
                    "holds the value {value}; labels are whole numbers, 0 and above, so this is no label file"
                ),
            ))
        }
    };
    let samples = match decoder.read_image().map_err(unreadable)? {
        DecodingResult::U8(bytes) if bits < 8 => {
            Samples::Bytes(unpack(&bytes, width * channels, height, bits.into()))
        }
        DecodingResult::U8(bytes) => Samples::Bytes(bytes),
        DecodingResult::U16(values) => Samples::Wide(values.into_iter().map(u32::from).collect()),
        DecodingResult::U32(values) => {
            Samples::Wide(values.into_iter().map(|value| whole(value.into())).collect::<Result<_>>()?)
        }
        DecodingResult::U64(values) => collected(values, |value| whole(value as f64))?,
        DecodingResult::I8(values) => collected(values, |value| whole(value.into()))?,
        DecodingResult::I16(values) => collected(values, |value| whole(value.into()))?,
        DecodingResult::I32(values) => collected(values, |value| whole(value.into()))?,
        DecodingResult::I64(values) => collected(values, |value| whole(value as f64))?,
        DecodingResult::F16(values) => collected(values, |value| whole(value.into()))?,
        DecodingResult::F32(values) => collected(values, |value| whole(value.into()))?,
        DecodingResult::F64(values) => collected(values, whole)?,
    };
    let held = match &samples {
        Samples::Bytes(values) => values.len(),
        Samples::Wide(values) => values.len(),
    };
    if held != values || (indexed && !matches!(samples, Samples::Bytes(_))) {
        return Err(failed(
            path,
            "does not hold one number a pixel; save labels as an 8- or 16-bit grey PNG or TIFF",
        ));
    }
    let most = if bits < 32 { (1u32 << bits) - 1 } else { u32::MAX };
    Ok(Stored {
        width,
        height,
        channels,
        samples,
        most,
        palette,
        transparent: None,
        orientation: Orientation::from_number(orientation),
    })
}

fn collected<T>(values: Vec<T>, number: impl Fn(T) -> Result<u32>) -> Result<Samples> {
    values.into_iter().map(number).collect::<Result<_>>().map(Samples::Wide)
}

fn unreadable(path: &Path, error: &TiffError) -> FileError {
    match error {
        TiffError::UnsupportedError(_) => failed(
            path,
            format!(
                "is a TIFF of a kind that labels cannot have ({error}); save it as an 8- or 16-bit grey PNG, or as a TIFF \
                 without compression, or with LZW or Deflate"
            ),
        ),
        error => {
            failed(path, format!("cannot be read as a label TIFF, it may be damaged or cut short: {error}"))
        }
    }
}

const WHITE_IS_ZERO: u16 = PhotometricInterpretation::WhiteIsZero.to_u16();
const PALETTE: u16 = PhotometricInterpretation::RGBPalette.to_u16();

/// Where the first page says how its samples are to be seen (the lower and the upper byte), and what it says.
fn interpretation(file: &mut (impl Read + Seek)) -> io::Result<Option<([u64; 2], u16)>> {
    let mut start = [0; 8];
    file.read_exact(&mut start)?;
    let little = start[0] == b'I';
    let big = start[if little { 2 } else { 3 }] == 43;
    let number = |file: &mut dyn Read, size: usize| -> io::Result<u64> {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes[..size])?;
        if !little {
            bytes[..size].reverse();
        }
        Ok(u64::from_le_bytes(bytes))
    };
    let directory = if big { number(file, 8)? } else { number(&mut &start[4..], 4)? };
    file.seek(SeekFrom::Start(directory))?;
    let entries = number(file, if big { 8 } else { 2 })?;
    // Tag, type, count and value.
    let (head, value) = if big { (8, 20) } else { (2, 12) };
    let mut found = None;
    for entry in 0..entries.min(u64::from(u16::MAX)) {
        let at = directory.saturating_add(head + entry * value);
        file.seek(SeekFrom::Start(at))?;
        if number(file, 2)? == u64::from(Tag::PhotometricInterpretation.to_u16()) {
            let at = at + if big { 12 } else { 8 };
            file.seek(SeekFrom::Start(at))?;
            let place = if little { [at, at + 1] } else { [at + 1, at] };
            found = Some((place, number(file, 2)? as u16));
            break;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found)
}

/// A file whose samples are to be taken for greys, whatever is said in the two bytes at `patch`.
struct AsGrey<R> {
    file: R,
    patch: Option<[u64; 2]>,
    at: u64,
}

impl<R: Read + Seek> Read for AsGrey<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        let grey = PhotometricInterpretation::BlackIsZero.to_u16().to_le_bytes();
        for (place, byte) in self.patch.iter().flatten().zip(grey) {
            let offset = place.checked_sub(self.at).and_then(|offset| usize::try_from(offset).ok());
            if let Some(value) = offset.and_then(|offset| out[..count].get_mut(offset)) {
                *value = byte;
            }
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Seek> Seek for AsGrey<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}
