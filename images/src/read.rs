//! Reads the pixels of PNG, JPEG, TIFF and BMP files as they are stored.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;

use mdm::image::{ImageView, PixelFormat};

use crate::choice::{Extent, ReadOptions};
use crate::error::{FileError, Result, damaged, failed, unsupported};
use crate::guard::guarded;
use crate::intensity::{DeclaredRange, StoredType};
use crate::jpeg::{Colours, Jpeg};
use crate::memory::{Kind, allocate, too_large};
use crate::orientation::Orientation;
use crate::pixel_size::PixelSize;
use crate::{png_file, tiff};

/// An image in memory as it is meant to be seen, interleaved, rows without gaps.
#[derive(Clone, Debug)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey), 3 (RGB), or as many as were chosen.
    pub channels: usize,
    /// `[height, width, channels]`.
    pub pixels: Pixels,
    /// The type of the values in the file; 1 to 7 bits are scaled to 8 and count as these.
    pub stored: StoredType,
    /// Where the file says so believably.
    pub declared_range: Option<DeclaredRange>,
    /// As [`ReadOptions`] or, believably, the file say.
    pub microns_per_pixel: Option<f64>,
    /// What the file says about the size of its pixels, if that is not understood or not believed.
    pub odd_pixel_size: Option<String>,
    /// In words, what was read of how much where the file holds more and nobody had chosen: "channel 1 (DAPI) of 3, plane 1 of 5".
    pub left_out: Option<String>,
}

/// Values in the units of the file; floating-point ones are finite.
#[derive(Clone, Debug)]
pub enum Pixels {
    /// 0..=255.
    U8(Vec<u8>),
    /// 0..=65535.
    U16(Vec<u16>),
    /// What the other types hold: signed, floating-point, and more than 16 bits.
    F32(Vec<f32>),
}

impl Pixels {
    /// The memory behind the values, 16 and 32 bit in the machine's byte order.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Pixels::U8(values) => values,
            Pixels::U16(values) => bytemuck::cast_slice(values),
            Pixels::F32(values) => bytemuck::cast_slice(values),
        }
    }

    /// Keeps, of pixels of `given` values, those at `picks`, in that order.
    pub(crate) fn pick(&mut self, given: usize, picks: &[usize]) {
        fn picked<T: Copy>(values: &mut Vec<T>, given: usize, picks: &[usize]) {
            if picks.iter().copied().eq(0..given) {
                return;
            }
            let pixels = values.len() / given;
            if picks.len() > given {
                *values = (0..pixels)
                    .flat_map(|at| picks.iter().map(move |pick| at * given + pick))
                    .map(|at| values[at])
                    .collect();
                return;
            }
            let mut pixel = Vec::with_capacity(given);
            for at in 0..pixels {
                pixel.clear();
                pixel.extend_from_slice(&values[at * given..(at + 1) * given]);
                for (place, pick) in picks.iter().enumerate() {
                    values[at * picks.len() + place] = pixel[*pick];
                }
            }
            values.truncate(pixels * picks.len());
        }
        match self {
            Pixels::U8(values) => picked(values, given, picks),
            Pixels::U16(values) => picked(values, given, picks),
            Pixels::F32(values) => picked(values, given, picks),
        }
    }

    /// Puts the values of `part`'s pixels at `places` of these, which have `channels` values.
    pub(crate) fn insert(&mut self, part: &Pixels, places: &[usize], channels: usize) {
        fn inserted<T: Copy>(all: &mut [T], part: &[T], places: &[usize], channels: usize) {
            for (pixel, values) in all.chunks_exact_mut(channels).zip(part.chunks_exact(places.len())) {
                for (place, value) in places.iter().zip(values) {
                    pixel[*place] = *value;
                }
            }
        }
        match (self, part) {
            (Pixels::U8(all), Pixels::U8(part)) => inserted(all, part, places, channels),
            (Pixels::U16(all), Pixels::U16(part)) => inserted(all, part, places, channels),
            (Pixels::F32(all), Pixels::F32(part)) => inserted(all, part, places, channels),
            _ => {}
        }
    }

    /// The higher of each two values; of NaN and a number, NaN.
    pub(crate) fn maximum(&mut self, other: &Pixels) {
        fn higher<T: Copy + PartialOrd>(values: &mut [T], others: &[T]) {
            for (value, other) in values.iter_mut().zip(others) {
                // A NaN is neither, and has to be taken; where there is one already, it stays.
                if matches!((*value).partial_cmp(other), Some(Ordering::Less)) || other != other {
                    *value = *other;
                }
            }
        }
        match (self, other) {
            (Pixels::U8(values), Pixels::U8(others)) => higher(values, others),
            (Pixels::U16(values), Pixels::U16(others)) => higher(values, others),
            (Pixels::F32(values), Pixels::F32(others)) => higher(values, others),
            _ => {}
        }
    }
}

impl Image {
    /// An image about which no more is known than its pixels.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Pixels) -> Self {
        let stored = match pixels {
            Pixels::U8(_) => StoredType::U8,
            Pixels::U16(_) => StoredType::U16,
            Pixels::F32(_) => StoredType::F32,
        };
        Self {
            width,
            height,
            channels,
            pixels,
            stored,
            declared_range: None,
            microns_per_pixel: None,
            odd_pixel_size: None,
            left_out: None,
        }
    }

    /// What the library is given.
    ///
    /// # Errors
    /// [`mdm::Error::Image`] for other numbers of channels than 1 and 3.
    pub fn view(&self) -> mdm::Result<ImageView<'_>> {
        let format = match (&self.pixels, self.channels) {
            (Pixels::U8(_), 1) => PixelFormat::Grey8,
            (Pixels::U8(_), 3) => PixelFormat::Rgb8,
            (Pixels::U16(_), 1) => PixelFormat::Grey16,
            (Pixels::U16(_), 3) => PixelFormat::Rgb16,
            (Pixels::F32(_), 1) => PixelFormat::GreyF32,
            (Pixels::F32(_), 3) => PixelFormat::RgbF32,
            (_, channels) => {
                return Err(mdm::Error::Image(format!(
                    "{channels} channels were chosen, but the network takes 1 or 3: name as many with --channels"
                )));
            }
        };
        let view = ImageView::new(self.pixels.bytes(), self.width, self.height, format)?;
        let view = match self.stored.limits() {
            Some((low, high)) => view.with_full_range(low, high)?,
            None => view,
        };
        let view = match &self.declared_range {
            Some(range) => {
                let limits = |&(low, high): &(f64, f64)| mdm::intensity::Limits { low, high };
                view.with_ranges(&range.channels.iter().map(limits).collect::<Vec<_>>())?
            }
            None => view,
        };
        Ok(match self.microns_per_pixel {
            Some(microns) => view.with_microns_per_pixel(microns),
            None => view,
        })
    }
}

/// What the reader of a format found, before it is turned as it is meant to be seen.
pub(crate) struct Stored {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) channels: usize,
    pub(crate) pixels: Pixels,
    pub(crate) stored: StoredType,
    pub(crate) declared_range: Option<DeclaredRange>,
    pub(crate) orientation: Orientation,
    pub(crate) pixel_size: PixelSize,
    pub(crate) left_out: Option<String>,
}

/// A format, told by how a file begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    Tiff,
    Bmp,
}

/// Reads the image in `path`; which one, if there are several, `options` say. Opacity is dropped; orientations stated by Exif or
/// TIFF are applied.
///
/// # Errors
/// [`FileError`] for files that are damaged, cut short or of a kind that is not read, that do not hold what was chosen, whose pixels
/// are not square (unless `options` state their size), and for values that are not finite.
pub fn read_image(path: &Path, options: &ReadOptions) -> Result<Image> {
    guarded(path, || {
        let stored = match format_of(path)? {
            Format::Tiff => tiff::read(path, options)?,
            Format::Png => choose(path, png_file::read(path, options.limit())?, options)?,
            Format::Jpeg => choose(path, read_jpeg(path, options.limit())?, options)?,
            Format::Bmp => choose(path, read_bmp(path, options.limit())?, options)?,
        };
        upright(path, stored, options)
    })
}

/// The width and height of the image as it will be read, from the file's header.
///
/// # Errors
/// [`FileError`] for files whose header cannot be read.
pub fn image_size(path: &Path) -> Result<(usize, usize)> {
    guarded(path, || match format_of(path)? {
        Format::Tiff => tiff::size(path),
        Format::Png => png_file::size(path),
        Format::Jpeg => {
            let bytes = whole_file(path)?;
            let jpeg = Jpeg::new(&bytes).map_err(|error| damaged(path, error))?;
            Ok(jpeg.orientation().size((jpeg.width, jpeg.height)))
        }
        Format::Bmp => {
            let (width, height) = bmp(path)?.dimensions();
            Ok((width as usize, height as usize))
        }
    })
}

/// Applies choices to an image that has all its channels in one plane.
fn choose(path: &Path, stored: Stored, options: &ReadOptions) -> Result<Stored> {
    let names = vec![None; stored.channels];
    let extent = Extent { channels: &names, colours: stored.channels, z: 1, times: 1 };
    let chosen = extent.choose(options).map_err(|reason| failed(path, reason))?;
    let mut stored = stored;
    stored.pixels.pick(stored.channels, &chosen.channels);
    stored.channels = chosen.channels.len();
    if let Some(range) = &mut stored.declared_range {
        range.channels = chosen.channels.iter().filter_map(|at| range.channels.get(*at).copied()).collect();
    }
    Ok(stored)
}

/// The image as it is meant to be seen, if its values and its pixels' size can be used.
fn upright(path: &Path, stored: Stored, options: &ReadOptions) -> Result<Image> {
    let Stored { width, height, channels, pixels, orientation, .. } = stored;
    let declared_range = stored.declared_range.and_then(|range| range.believed(&pixels, channels));
    let no_memory = || too_large(path, width, height);
    let size = (width, height);
    let pixels = match pixels {
        Pixels::U8(values) => Pixels::U8(orientation.turned(values, size, channels).ok_or_else(no_memory)?),
        Pixels::U16(values) => Pixels::U16(orientation.turned(values, size, channels).ok_or_else(no_memory)?),
        Pixels::F32(values) => Pixels::F32(orientation.turned(values, size, channels).ok_or_else(no_memory)?),
    };
    let (width, height) = orientation.size(size);
    if let Pixels::F32(values) = &pixels
        && let Some(at) = values.iter().position(|value| !value.is_finite())
    {
        let (row, column) = (at / channels / width, at / channels % width);
        return Err(failed(
            path,
            format!(
                "has the value {} at row {row}, column {column}, which is no intensity; replace such values, or save the image \
                 with 8 or 16 bits",
                values[at]
            ),
        ));
    }
    let pixel_size = if orientation.transposed { stored.pixel_size.transposed() } else { stored.pixel_size };
    let (microns_per_pixel, odd_pixel_size) = match (options.microns_per_pixel, pixel_size) {
        (Some(microns), _) => (Some(microns), None),
        (None, PixelSize::Known { x, y }) if !(PixelSize::Known { x, y }).is_square() => {
            return Err(failed(
                path,
                format!(
                    "says that its pixels are {x} um wide and {y} um high; only square pixels are possible: resample it, or give a \
                     size with --mpp to take them for squares"
                ),
            ));
        }
        (None, PixelSize::Known { x, .. }) => (Some(x), None),
        (None, PixelSize::Absent) => (None, None),
        (None, PixelSize::NotUnderstood(text)) => (None, Some(text)),
    };
    Ok(Image {
        width,
        height,
        channels,
        pixels,
        stored: stored.stored,
        declared_range,
        microns_per_pixel,
        odd_pixel_size,
        left_out: stored.left_out,
    })
}

fn format_of(path: &Path) -> Result<Format> {
    if path.is_dir() {
        return Err(failed(path, "is a folder, not an image"));
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| cannot_open(path, &error))?;
    file.take(132).read_to_end(&mut start).map_err(|error| cannot_open(path, &error))?;
    let other = match start.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => return Ok(Format::Png),
        [0xFF, 0xD8, 0xFF, ..] => return Ok(Format::Jpeg),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => return Ok(Format::Tiff),
        [b'B', b'M', ..] => return Ok(Format::Bmp),
        [b'Z', b'I', b'S', b'R', b'A', b'W', ..] => "a CZI file; export it as OME-TIFF",
        [0xDA, 0xCE, 0xBE, 0x0A, ..] => "an ND2 file; export it as OME-TIFF",
        [0x70, 0, 0, 0, ..] => "a LIF file; export it as OME-TIFF",
        [0xD0, 0xCF, 0x11, 0xE0, ..] => "an OIB, ZVI or other compound file; export it as OME-TIFF",
        [0x89, b'H', b'D', b'F', ..] => "an HDF5 file (Imaris, ilastik); export it as OME-TIFF",
        [b'G', b'I', b'F', b'8', ..] => "a GIF; convert it to PNG",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "a WebP; convert it to PNG",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an AVIF, HEIC or video file; convert it to PNG",
        [0, 0, 0, 12, b'j', b'P', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => "a JPEG 2000; convert it to TIFF",
        start if start.get(128..132) == Some(b"DICM") => "a DICOM file; convert it to TIFF",
        start if start.starts_with(b"version https://git-lfs") => {
            "a pointer to a file in Git LFS; fetch the file itself with git lfs pull"
        }
        _ => {
            return Err(failed(
                path,
                "is not an image that can be read; PNG, JPEG, TIFF and BMP can (convert it to one of these)",
            ));
        }
    };
    Err(failed(path, format!("is {other}; PNG, JPEG, TIFF and BMP files can be read")))
}

pub(crate) fn cannot_open(path: &Path, error: &std::io::Error) -> FileError {
    failed(path, format!("cannot be opened: {error}"))
}

fn whole_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| cannot_open(path, &error))
}

fn read_jpeg(path: &Path, limit: u64) -> Result<Stored> {
    let bytes = whole_file(path)?;
    let jpeg = Jpeg::new(&bytes).map_err(|error| damaged(path, error))?;
    let (width, height, channels) = (jpeg.width, jpeg.height, jpeg.channels(Colours::Seen));
    let orientation = jpeg.orientation();
    let mut pixels = allocate(path, (width as u32, height as u32), channels, Kind::U8, limit)?;
    if let Pixels::U8(values) = &mut pixels {
        jpeg.decode(Colours::Seen, values).map_err(|error| damaged(path, error))?;
    }
    Ok(Stored {
        width,
        height,
        channels,
        pixels,
        stored: StoredType::U8,
        declared_range: None,
        orientation,
        pixel_size: PixelSize::Absent,
        left_out: None,
    })
}

fn bmp(path: &Path) -> Result<BmpDecoder<BufReader<File>>> {
    let file = File::open(path).map_err(|error| cannot_open(path, &error))?;
    BmpDecoder::new(BufReader::new(file)).map_err(|error| match error {
        image::ImageError::Unsupported(_) => unsupported(path, "this kind of BMP", "save it as PNG"),
        error => damaged(path, error),
    })
}

fn read_bmp(path: &Path, limit: u64) -> Result<Stored> {
    let decoder = bmp(path)?;
    let (width, height) = decoder.dimensions();
    let channels = usize::from(decoder.color_type().channel_count());
    let mut pixels = allocate(path, (width, height), channels, Kind::U8, limit)?;
    if let Pixels::U8(values) = &mut pixels {
        if decoder.total_bytes() != values.len() as u64 {
            return Err(unsupported(path, "this kind of BMP", "save it as PNG"));
        }
        decoder.read_image(values).map_err(|error| damaged(path, error))?;
    }
    let colours = if channels < 3 { 1 } else { 3 };
    pixels.pick(channels, &[0, 1, 2][..colours]);
    Ok(Stored {
        width: width as usize,
        height: height as usize,
        channels: colours,
        pixels,
        stored: StoredType::U8,
        declared_range: None,
        orientation: Orientation::default(),
        pixel_size: PixelSize::Absent,
        left_out: None,
    })
}
