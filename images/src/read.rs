//! Reads the pixels of PNG, JPEG, TIFF and BMP files as they are stored.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use mdm::image::{ImageView, PixelFormat};

use super::{resolution, tiff};
use crate::error::{FileError, Result, failed};
use crate::intensity::{DeclaredRange, StoredType};
use crate::orientation::Orientation;

/// Longest side of an image.
const LONGEST_SIDE: u32 = 1 << 20;

/// Decoded bytes that a header may always claim, however short the file is.
const ALWAYS_PLAUSIBLE: u64 = 64 << 20;

/// Most that any of the formats' compressions can shrink: deflate reaches 1032, LZW 1365, JPEG about 1000.
const BEST_COMPRESSION: u64 = 4096;

/// Most that a decoder may take for itself.
const MOST_MEMORY: u64 = 16 << 30;

/// An image in memory as it is meant to be seen, interleaved, rows without gaps.
#[derive(Clone, Debug)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey), 3 (RGB) or 4 (RGB and opacity).
    pub channels: usize,
    /// `[height, width, channels]`.
    pub pixels: Pixels,
    /// The type of the values in the file.
    pub stored: StoredType,
    /// Where the file says so believably.
    pub declared_range: Option<DeclaredRange>,
    /// Where the file says so believably.
    pub microns_per_pixel: Option<f64>,
    /// Pages that the file has beyond the one that was read.
    pub more_pages: bool,
}

/// Values as stored; floating-point ones in 0..=1.
#[derive(Clone, Debug)]
pub enum Pixels {
    /// 0..=255.
    U8(Vec<u8>),
    /// 0..=65535.
    U16(Vec<u16>),
    /// 0.0..=1.0.
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

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Pixels::U8(values) => values,
            Pixels::U16(values) => bytemuck::cast_slice_mut(values),
            Pixels::F32(values) => bytemuck::cast_slice_mut(values),
        }
    }

    fn keep_first_of_each(&mut self, channels: usize, kept: usize) {
        fn keep<T: Copy>(values: &mut Vec<T>, channels: usize, kept: usize) {
            let pixels = values.len() / channels;
            for pixel in 0..pixels {
                values.copy_within(pixel * channels..pixel * channels + kept, pixel * kept);
            }
            values.truncate(pixels * kept);
        }
        match self {
            Pixels::U8(values) => keep(values, channels, kept),
            Pixels::U16(values) => keep(values, channels, kept),
            Pixels::F32(values) => keep(values, channels, kept),
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
            more_pages: false,
        }
    }

    /// The image turned as it is meant to be seen; `None` if there is no memory for it.
    fn turned(mut self, orientation: Orientation) -> Option<Self> {
        let stored = (self.width, self.height);
        self.pixels = match self.pixels {
            Pixels::U8(values) => Pixels::U8(orientation.turned(values, stored, self.channels)?),
            Pixels::U16(values) => Pixels::U16(orientation.turned(values, stored, self.channels)?),
            Pixels::F32(values) => Pixels::F32(orientation.turned(values, stored, self.channels)?),
        };
        (self.width, self.height) = orientation.size(stored);
        Some(self)
    }

    /// What the library is given.
    pub fn view(&self) -> mdm::Result<ImageView<'_>> {
        let format = match (&self.pixels, self.channels) {
            (Pixels::U8(_), 1) => PixelFormat::Grey8,
            (Pixels::U8(_), 4) => PixelFormat::Rgba8,
            (Pixels::U8(_), _) => PixelFormat::Rgb8,
            (Pixels::U16(_), 1) => PixelFormat::Grey16,
            (Pixels::U16(_), 4) => PixelFormat::Rgba16,
            (Pixels::U16(_), _) => PixelFormat::Rgb16,
            (Pixels::F32(_), 1) => PixelFormat::GreyF32,
            (Pixels::F32(_), _) => PixelFormat::RgbF32,
        };
        let view = ImageView::new(self.pixels.bytes(), self.width, self.height, format)?;
        Ok(match self.microns_per_pixel {
            Some(microns) => view.with_microns_per_pixel(microns),
            None => view,
        })
    }
}

/// Reads the image in `path`, of a TIFF its first page. Opacity of grey images is dropped; orientations stated by Exif or TIFF
/// are applied.
pub fn read_image(path: &Path) -> Result<Image> {
    let reader = open(path)?;
    let format = reader.format();
    let (mut image, orientation) = match format {
        Some(ImageFormat::Tiff) => {
            let page = tiff::read(path)?;
            let (image, orientation) = page.image.map_or_else(
                || decode(path, reader),
                |image| Ok((image, Orientation::from_number(page.orientation))),
            )?;
            let declared_range = page.declared_range;
            let image = Image {
                microns_per_pixel: page.microns_per_pixel,
                declared_range,
                more_pages: page.more_pages,
                ..image
            };
            (image, orientation)
        }
        Some(_) => decode(path, reader)?,
        None => {
            return Err(failed(
                path,
                "is not an image that can be read; PNG, JPEG, TIFF and BMP can (convert it to one of these)",
            ));
        }
    };
    if image.channels == 2 {
        image.pixels.keep_first_of_each(2, 1);
        image.channels = 1;
    }
    if let Pixels::F32(values) = &mut image.pixels {
        if let Some(bad) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(failed(
                path,
                format!(
                    "has a floating-point value of {bad}; they must lie in 0 to 1 (rescale it, or save it with 8 or 16 bits)"
                ),
            ));
        }
        if image.channels == 4 {
            image.pixels.keep_first_of_each(4, 3);
            image.channels = 3;
        }
    }
    if format == Some(ImageFormat::Png) {
        let (microns, significant_bits) = resolution::of_png(path);
        image.microns_per_pixel = microns;
        image.declared_range =
            significant_bits.and_then(|bits| DeclaredRange::of_png(&bits, &image.pixels, image.channels));
    }
    image.declared_range =
        image.declared_range.and_then(|range| range.believed(&image.pixels, image.channels));
    let (width, height) = (image.width, image.height);
    image.turned(orientation).ok_or_else(|| too_large(path, width as u32, height as u32))
}

/// The width and height of the image as it will be read, from the file's header.
pub fn image_size(path: &Path) -> Result<(usize, usize)> {
    let unreadable = |error| unreadable(path, &error);
    let mut decoder = open(path)?.into_decoder().map_err(unreadable)?;
    let orientation = Orientation::from_number(decoder.orientation().map_err(unreadable)?.to_exif().into());
    let (width, height) = orientation.size(decoder.dimensions());
    Ok((width as usize, height as usize))
}

fn open(path: &Path) -> Result<ImageReader<BufReader<File>>> {
    let cannot = |error: std::io::Error| failed(path, format!("cannot be opened: {error}"));
    if path.is_dir() {
        return Err(failed(path, "is a folder, not an image"));
    }
    let mut reader = ImageReader::open(path).map_err(cannot)?.with_guessed_format().map_err(cannot)?;
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    let stored = std::fs::metadata(path).map_err(cannot)?.len();
    limits.max_alloc = Some(stored.saturating_mul(BEST_COMPRESSION).min(MOST_MEMORY) + ALWAYS_PLAUSIBLE);
    reader.limits(limits);
    Ok(reader)
}

fn unreadable(path: &Path, error: &ImageError) -> FileError {
    match error {
        ImageError::Unsupported(kind) => unsupported(path, kind),
        error => failed(path, format!("cannot be read as an image, it may be damaged or cut short: {error}")),
    }
}

/// A sound file of a kind that is not understood.
pub(super) fn unsupported(path: &Path, kind: &dyn std::fmt::Display) -> FileError {
    failed(
        path,
        format!("has pixels of a kind that cannot be read ({kind}); save it as 8- or 16-bit grey or RGB"),
    )
}

fn decode(path: &Path, reader: ImageReader<BufReader<File>>) -> Result<(Image, Orientation)> {
    let mut decoder = reader.into_decoder().map_err(|error| unreadable(path, &error))?;
    let orientation = decoder.orientation().map_err(|error| unreadable(path, &error))?;
    let orientation = Orientation::from_number(orientation.to_exif().into());
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let mut pixels = allocate(
        path,
        (width, height),
        color.channel_count().into(),
        match color {
            ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => Kind::U8,
            ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => Kind::U16,
            ColorType::Rgb32F | ColorType::Rgba32F => Kind::F32,
            other => return Err(unsupported(path, &format!("{other:?}"))),
        },
    )?;
    decoder.read_image(pixels.bytes_mut()).map_err(|error| unreadable(path, &error))?;
    let image = Image::new(width as usize, height as usize, color.channel_count().into(), pixels);
    Ok((image, orientation))
}

/// Type of the values.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    U8,
    U16,
    F32,
}

/// The number of values in an image whose header claims this size, if the claim can be true.
pub(super) fn claimed_values(
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
    let bytes = values * bytes_per_value as u64;
    if bytes > ALWAYS_PLAUSIBLE && bytes / BEST_COMPRESSION > stored {
        return Err(failed(
            path,
            format!(
                "claims to be {width} x {height} pixels, which its {stored} bytes cannot hold: it is damaged"
            ),
        ));
    }
    usize::try_from(values).map_err(|_| too_large(path, width, height))
}

/// Memory for such an image.
pub(super) fn allocate(path: &Path, size: (u32, u32), channels: usize, kind: Kind) -> Result<Pixels> {
    fn zeros<T: Clone + Default>(len: usize) -> Option<Vec<T>> {
        let mut values = Vec::new();
        values.try_reserve_exact(len).ok()?;
        values.resize(len, T::default());
        Some(values)
    }
    let bytes_per_value = match kind {
        Kind::U8 => 1,
        Kind::U16 => 2,
        Kind::F32 => 4,
    };
    let len = claimed_values(path, size, channels, bytes_per_value)?;
    match kind {
        Kind::U8 => zeros(len).map(Pixels::U8),
        Kind::U16 => zeros(len).map(Pixels::U16),
        Kind::F32 => zeros(len).map(Pixels::F32),
    }
    .ok_or_else(|| too_large(path, size.0, size.1))
}

fn too_large(path: &Path, width: u32, height: u32) -> FileError {
    failed(path, format!("{width} x {height} pixels do not fit into memory; cut the image into parts"))
}
