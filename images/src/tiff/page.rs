//! What a TIFF's directories say about its pages.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, Limits};
use tiff::tags::Tag;
use tiff::{Directory, TiffError, TiffUnsupportedError};

use super::compression::Compression;
use crate::error::{FileError, Result, broken_off, damaged, failed, unsupported};
use crate::intensity::{NumberKind, StoredType};

/// Bytes that a tag's values may take.
const MOST_OF_A_TAG: usize = 256 << 20;

/// An open TIFF file.
pub(super) struct Tiff {
    pub(super) path: PathBuf,
    decoder: Decoder<BufReader<File>>,
    /// Length of the file.
    pub(super) bytes: u64,
    /// In the order of the file.
    directories: Vec<Directory>,
    /// Why there are no more of them, if the reason is not that the file says so.
    pub(super) broken_after: Option<String>,
}

/// What samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Intensities, or several channels of these.
    Grey {
        white_is_zero: bool,
    },
    Rgb,
    Palette,
    Cmyk,
    /// As JPEG has it; decoded, it is RGB.
    YCbCr,
}

/// How a page's pixels are stored.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) stored: StoredType,
    /// Values of a pixel.
    pub(super) samples: usize,
    /// Whether the first sample beyond the colours is opacity.
    pub(super) opacity: bool,
    pub(super) meaning: Meaning,
    /// Each sample is a plane of its own.
    pub(super) planar: bool,
    pub(super) compression: Compression,
    /// 1: none, 2: differences, 3: of floating-point bytes.
    pub(super) predictor: u64,
    /// Bits of a byte begin with the lowest.
    pub(super) low_bits_first: bool,
    /// Tiles are stored whole at the image's borders, strips end with the image.
    pub(super) tiled: bool,
    /// Width and height of tiles or strips.
    pub(super) chunk: (u32, u32),
    pub(super) offsets: Vec<u64>,
    pub(super) byte_counts: Vec<u64>,
    pub(super) jpeg_tables: Vec<u8>,
}

impl Tiff {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| failed(path, format!("cannot be opened: {error}")))?;
        let bytes = file.metadata().map_err(|error| failed(path, format!("cannot be read: {error}")))?.len();
        let mut limits = Limits::unlimited();
        limits.ifd_value_size = MOST_OF_A_TAG;
        limits.decoding_buffer_size = MOST_OF_A_TAG;
        let mut decoder =
            Decoder::new(BufReader::new(file)).map_err(|error| unreadable(path, &error))?.with_limits(limits);
        let (mut directories, mut seen, mut broken_after) = (Vec::new(), HashSet::new(), None);
        let mut next = decoder.ifd_pointer();
        while let Some(pointer) = next {
            if !seen.insert(pointer.0) {
                broken_after = Some("its list of pages runs in a circle".to_owned());
                break;
            }
            match decoder.read_directory(pointer) {
                Ok(directory) => {
                    next = directory.next();
                    directories.push(directory);
                }
                Err(error) if directories.is_empty() => return Err(unreadable(path, &error)),
                Err(error) => {
                    broken_after = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(Self { path: path.to_owned(), decoder, bytes, directories, broken_after })
    }

    /// Number of directories.
    pub(super) fn len(&self) -> usize {
        self.directories.len()
    }

    pub(super) fn reader(&mut self) -> &mut BufReader<File> {
        self.decoder.inner()
    }

    pub(super) fn big_endian(&self) -> bool {
        self.decoder.byte_order() == tiff::tags::ByteOrder::BigEndian
    }

    fn value(&mut self, index: usize, tag: Tag) -> Result<Option<Value>> {
        let directory = self
            .directories
            .get(index)
            .ok_or_else(|| damaged(&self.path, format!("it has no page {}", index + 1)))?;
        if directory.get(tag).is_some_and(|entry| entry.count() > self.bytes) {
            return Err(damaged(&self.path, "a tag claims more values than the file has bytes"));
        }
        self.decoder
            .read_directory_tags(directory)
            .find_tag(tag)
            .map_err(|error| unreadable(&self.path, &error))
    }

    /// The whole numbers in a tag of directory `index`; none if the tag is missing.
    pub(super) fn numbers(&mut self, index: usize, tag: Tag) -> Result<Vec<u64>> {
        match self.value(index, tag)? {
            Some(value) => value.into_u64_vec().map_err(|error| unreadable(&self.path, &error)),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn number(&mut self, index: usize, tag: Tag) -> Result<Option<u64>> {
        Ok(self.numbers(index, tag)?.first().copied())
    }

    /// The numbers in a tag, of whatever type they are; fractions as what they are.
    pub(super) fn real_numbers(&mut self, index: usize, tag: Tag) -> Vec<f64> {
        let mut numbers = Vec::new();
        let value = self.value(index, tag).ok().flatten();
        value.and_then(|value| append(&value, &mut numbers)).map_or_else(Vec::new, |()| numbers)
    }

    /// A tag's bytes as they are.
    pub(super) fn bytes(&mut self, index: usize, tag: Tag) -> Result<Vec<u8>> {
        let directory = self.directories.get(index);
        let Some(entry) = directory.and_then(|directory| directory.get(tag)) else { return Ok(Vec::new()) };
        if entry.count() > self.bytes.min(MOST_OF_A_TAG as u64) {
            return Err(damaged(&self.path, "a tag claims more bytes than the file has"));
        }
        let mut bytes = vec![0; entry.count() as usize];
        if let Some(directory) = directory {
            let mut tags = self.decoder.read_directory_tags(directory);
            tags.find_tag_bytes(tag, &mut bytes, 0).map_err(|error| unreadable(&self.path, &error))?;
        }
        Ok(bytes)
    }

    /// Width, height, and whether this is a page, not a preview, a level of a pyramid or a mask.
    pub(super) fn outline(&mut self, index: usize) -> Result<((u32, u32), bool)> {
        const REDUCED: u64 = 1;
        const MASK: u64 = 4;
        let (width, height) = (self.side(index, Tag::ImageWidth)?, self.side(index, Tag::ImageLength)?);
        let kind = self.number(index, Tag::NewSubfileType)?.unwrap_or(0);
        Ok(((width, height), kind & (REDUCED | MASK) == 0))
    }

    fn side(&mut self, index: usize, tag: Tag) -> Result<u32> {
        let side =
            self.number(index, tag)?.ok_or_else(|| damaged(&self.path, "it does not state its size"))?;
        u32::try_from(side).map_err(|_| failed(&self.path, format!("claims a side of {side} pixels")))
    }

    /// What directory `index` says about its pixels.
    pub(super) fn page(&mut self, index: usize) -> Result<Page> {
        let path = self.path.clone();
        let (width, height) = (self.side(index, Tag::ImageWidth)?, self.side(index, Tag::ImageLength)?);
        if width == 0 || height == 0 {
            return Err(failed(&path, format!("has no pixels ({width} x {height})")));
        }
        let compression =
            Compression::of(self.number(index, Tag::Compression)?.unwrap_or(1)).map_err(|what| {
                let what = format!("its {what} compression");
                unsupported(&path, what, "save it without compression, or with LZW, Deflate or Zstandard")
            })?;
        let stored = self.stored_type(index)?;
        let samples = self.number(index, Tag::SamplesPerPixel)?.unwrap_or(1);
        let samples = usize::try_from(samples)
            .ok()
            .filter(|samples| (1..=usize::from(u16::MAX)).contains(samples))
            .ok_or_else(|| damaged(&path, format!("it claims {samples} values a pixel")))?;
        let meaning = self.meaning(index, compression)?;
        let least = match meaning {
            Meaning::Grey { .. } | Meaning::Palette => 1,
            Meaning::Rgb | Meaning::YCbCr => 3,
            Meaning::Cmyk => 4,
        };
        if samples < least {
            return Err(damaged(&path, format!("its colours need {least} values a pixel, it has {samples}")));
        }
        let extra = self.numbers(index, Tag::ExtraSamples)?;
        let opacity = samples > least
            && match extra.first() {
                Some(kind) => matches!(kind, 1 | 2) && extra.len() == samples - least,
                None => meaning == Meaning::Rgb && samples == 4,
            };
        let planar = samples > 1 && self.number(index, Tag::PlanarConfiguration)? == Some(2);
        let tiled = self.number(index, Tag::TileWidth)?.is_some();
        let (chunk, offsets, byte_counts) = if tiled {
            let chunk = (self.side(index, Tag::TileWidth)?, self.side(index, Tag::TileLength)?);
            (chunk, self.numbers(index, Tag::TileOffsets)?, self.numbers(index, Tag::TileByteCounts)?)
        } else {
            let rows = self.number(index, Tag::RowsPerStrip)?.unwrap_or(height.into());
            let rows = u32::try_from(rows).unwrap_or(u32::MAX).min(height);
            let chunk = (width, rows);
            (chunk, self.numbers(index, Tag::StripOffsets)?, self.numbers(index, Tag::StripByteCounts)?)
        };
        if chunk.0 == 0 || chunk.1 == 0 {
            return Err(damaged(&path, "its tiles or strips have no pixels"));
        }
        let needed = u64::from(width.div_ceil(chunk.0))
            * u64::from(height.div_ceil(chunk.1))
            * if planar { samples as u64 } else { 1 };
        if (offsets.len() as u64) < needed || byte_counts.len() < offsets.len() {
            return Err(damaged(
                &path,
                format!(
                    "it needs {needed} tiles or strips, but lists {}",
                    offsets.len().min(byte_counts.len())
                ),
            ));
        }
        let jpeg_tables = match compression {
            Compression::Jpeg => self.bytes(index, Tag::JPEGTables)?,
            _ => Vec::new(),
        };
        Ok(Page {
            width,
            height,
            stored,
            samples,
            opacity,
            meaning,
            planar,
            compression,
            predictor: self.number(index, Tag::Predictor)?.unwrap_or(1),
            tiled,
            low_bits_first: self.number(index, Tag::FillOrder)? == Some(2),
            chunk,
            offsets,
            byte_counts,
            jpeg_tables,
        })
    }

    fn stored_type(&mut self, index: usize) -> Result<StoredType> {
        let bits = self.numbers(index, Tag::BitsPerSample)?;
        let formats = self.numbers(index, Tag::SampleFormat)?;
        if bits.windows(2).any(|pair| pair[0] != pair[1]) || formats.windows(2).any(|pair| pair[0] != pair[1])
        {
            return Err(mixture(&self.path));
        }
        let bits = bits.first().copied().unwrap_or(1);
        // Undefined data are taken for what they mostly are.
        let kind = match formats.first().copied().unwrap_or(1) {
            1 | 4 => NumberKind::Unsigned,
            2 => NumberKind::Signed,
            3 => NumberKind::Float,
            _ => return Err(self.type_unsupported("complex numbers")),
        };
        let possible = match kind {
            NumberKind::Unsigned => matches!(bits, 1..=16 | 32 | 64),
            NumberKind::Signed => matches!(bits, 8 | 16 | 32 | 64),
            NumberKind::Float => matches!(bits, 16 | 32 | 64),
        };
        let stored = StoredType { kind, bits: u8::try_from(bits).unwrap_or(u8::MAX) };
        if possible { Ok(stored) } else { Err(self.type_unsupported(format!("{stored} values"))) }
    }

    fn type_unsupported(&self, what: impl std::fmt::Display) -> FileError {
        unsupported(&self.path, what, "save it with 8, 16 or 32 bits")
    }

    fn meaning(&mut self, index: usize, compression: Compression) -> Result<Meaning> {
        let kind = self.number(index, Tag::PhotometricInterpretation)?;
        let what = match kind {
            Some(0) => return Ok(Meaning::Grey { white_is_zero: true }),
            Some(1) => return Ok(Meaning::Grey { white_is_zero: false }),
            Some(2) => return Ok(Meaning::Rgb),
            Some(3) => return Ok(Meaning::Palette),
            Some(5) => return Ok(Meaning::Cmyk),
            Some(6) if compression == Compression::Jpeg => return Ok(Meaning::YCbCr),
            Some(4) => "a transparency mask",
            Some(6) => "YCbCr colours without JPEG compression",
            Some(8..=10) => "L*a*b* colours",
            Some(32803 | 34892) => "a camera's raw data",
            _ => "colours of an unknown kind",
        };
        Err(unsupported(&self.path, what, "save it as grey or RGB"))
    }
}

/// The numbers in a value, of whatever type they are.
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
        Value::Rational(above, below) => f64::from(*above) / f64::from(*below),
        Value::SRational(above, below) => f64::from(*above) / f64::from(*below),
        _ => return None,
    });
    Some(())
}

fn unreadable(path: &Path, error: &TiffError) -> FileError {
    match error {
        TiffError::IoError(error) => broken_off(path, error),
        TiffError::UnsupportedError(TiffUnsupportedError::UnknownInterpretation) => {
            unsupported(path, "colours of an unknown kind", "save it as grey or RGB")
        }
        TiffError::UnsupportedError(
            TiffUnsupportedError::InconsistentBitsPerSample(_)
            | TiffUnsupportedError::UnsupportedSampleFormat(_),
        ) => mixture(path),
        error => damaged(path, error),
    }
}

fn mixture(path: &Path) -> FileError {
    unsupported(
        path,
        "a mixture of channels of different types",
        "save it with the same type in all channels",
    )
}
