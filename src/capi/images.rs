//! Images of the caller, and buffers for results.

use std::ffi::c_void;
use std::ops::Range;

use super::errors::{Failure, MDM_ERROR_BUFFER_TOO_SMALL};
use super::intensities::declared_of;
use super::structs::{self, Versioned};
use crate::segment::Band;
use crate::{ImageView, PixelFormat};

/// What a pixel is made of. Samples of more than 8 bits have the machine's byte order; alpha is ignored. New formats may be appended.
/// The values given are what the network sees as black and white where nobody says otherwise; see mdm_range.
pub type mdm_pixel_format = u32;

/// One channel, 0 to 255.
pub const MDM_PIXEL_GREY8: mdm_pixel_format = 1;
/// One channel, 0 to 65535.
pub const MDM_PIXEL_GREY16: mdm_pixel_format = 2;
/// One channel, 0.0 to 1.0.
pub const MDM_PIXEL_GREY_F32: mdm_pixel_format = 3;
/// Red, green, blue, 0 to 255.
pub const MDM_PIXEL_RGB8: mdm_pixel_format = 4;
/// Red, green, blue, 0 to 65535.
pub const MDM_PIXEL_RGB16: mdm_pixel_format = 5;
/// Red, green, blue, 0.0 to 1.0.
pub const MDM_PIXEL_RGB_F32: mdm_pixel_format = 6;
/// Red, green, blue, alpha, 0 to 255.
pub const MDM_PIXEL_RGBA8: mdm_pixel_format = 7;
/// Blue, green, red, alpha, 0 to 255: what OpenSlide, Cairo and Windows call 32-bit ARGB on little-endian machines.
pub const MDM_PIXEL_BGRA8: mdm_pixel_format = 8;
/// Red, green, blue, alpha, 0 to 65535.
pub const MDM_PIXEL_RGBA16: mdm_pixel_format = 9;
/// One channel, signed, -32768 to 32767.
pub const MDM_PIXEL_GREY_I16: mdm_pixel_format = 10;
/// One channel, 0 to 4294967295; values are taken as floats.
pub const MDM_PIXEL_GREY_U32: mdm_pixel_format = 11;
/// One channel, signed, -2147483648 to 2147483647; likewise.
pub const MDM_PIXEL_GREY_I32: mdm_pixel_format = 12;
/// One channel of half precision (IEEE 754 binary16), 0.0 to 1.0.
pub const MDM_PIXEL_GREY_F16: mdm_pixel_format = 13;
/// One channel of double precision, 0.0 to 1.0; values are taken as floats.
pub const MDM_PIXEL_GREY_F64: mdm_pixel_format = 14;
/// Red, green, blue, signed, -32768 to 32767.
pub const MDM_PIXEL_RGB_I16: mdm_pixel_format = 15;
/// Red, green, blue, 0 to 4294967295; values are taken as floats.
pub const MDM_PIXEL_RGB_U32: mdm_pixel_format = 16;
/// Red, green, blue, signed, -2147483648 to 2147483647; likewise.
pub const MDM_PIXEL_RGB_I32: mdm_pixel_format = 17;
/// Red, green, blue in half precision, 0.0 to 1.0.
pub const MDM_PIXEL_RGB_F16: mdm_pixel_format = 18;
/// Red, green, blue in double precision, 0.0 to 1.0; values are taken as floats.
pub const MDM_PIXEL_RGB_F64: mdm_pixel_format = 19;

/// How a pixel's channels lie.
pub type mdm_layout = u32;

/// One pixel after the other.
pub const MDM_LAYOUT_INTERLEAVED: mdm_layout = 0;
/// One channel after the other, each an image of its own.
pub const MDM_LAYOUT_PLANAR: mdm_layout = 1;

/// How labels are stored.
pub type mdm_label_type = u32;

/// A byte a pixel.
pub const MDM_LABEL_U8: mdm_label_type = 0;
/// Two bytes a pixel, in the machine's byte order.
pub const MDM_LABEL_U16: mdm_label_type = 1;

/// An image in memory, the topmost row first. It belongs to the caller, must not change during a call, and is not used after it.
/// No pointer need be aligned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_image {
    /// sizeof(mdm_image)
    pub struct_size: usize,
    /// The first pixel.
    pub pixels: *const c_void,
    /// Bytes that may be read from there.
    pub pixels_size: usize,
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
    /// Bytes from one row to the next; 0 for rows without a gap.
    pub row_stride: usize,
    /// Bytes from one plane to the next; 0 for planes without a gap, and for interleaved channels.
    pub plane_stride: usize,
    /// One of the MDM_PIXEL constants.
    pub format: mdm_pixel_format,
    /// MDM_LAYOUT_INTERLEAVED or MDM_LAYOUT_PLANAR.
    pub layout: mdm_layout,
    /// Size of a pixel in micrometres; 0 where it is unknown: then the image is used as it is.
    pub microns_per_pixel: f64,
    /// The stored value that stands for black, where the camera or the file says so, as 0 of 12 bits; 0 and 0 where nobody does.
    /// It counts with MDM_RANGE_DECLARED, which new models have.
    pub range_low: f64,
    /// The stored value that stands for white, as 4095 of 12 bits.
    pub range_high: f64,
}

/// Where a result goes. All buffers belong to the caller and may not overlap the image or each other; none need be aligned.
/// Buffers that are NULL are not filled, but one must be there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_result {
    /// sizeof(mdm_result)
    pub struct_size: usize,
    /// [height][width]: for each pixel the index of the most probable class, the first of equals.
    pub labels: *mut c_void,
    /// Bytes that may be written there.
    pub labels_size: usize,
    /// Bytes from one row of labels to the next; 0 for rows without a gap.
    pub labels_row_stride: usize,
    /// [height][width][classes], adding up to 1; the segmenter must have been made with MDM_OUTPUT_PROBABILITIES.
    pub probabilities: *mut f32,
    /// Bytes that may be written there.
    pub probabilities_size: usize,
    /// [height][width]: how much the heads disagree, in nats; the segmenter must have been made with MDM_OUTPUT_UNCERTAINTY.
    pub uncertainty: *mut f32,
    /// Bytes that may be written there.
    pub uncertainty_size: usize,
    /// MDM_LABEL_U8 or MDM_LABEL_U16.
    pub label_type: mdm_label_type,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_image {
    const NAME: &'static str = "mdm_image";
    const LEAST: usize = std::mem::offset_of!(mdm_image, microns_per_pixel);
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_result {
    const NAME: &'static str = "mdm_result";
    const LEAST: usize = std::mem::offset_of!(mdm_result, probabilities);
}

/// Sets an image of `struct_size` bytes to zeros and its size; MDM_IMAGE_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_image_init(image: *mut mdm_image, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(image, struct_size) }
}

/// Sets a result of `struct_size` bytes to zeros and its size; MDM_RESULT_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_result_init(result: *mut mdm_result, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(result, struct_size) }
}

pub(super) fn format_of(format: mdm_pixel_format) -> Result<PixelFormat, Failure> {
    Ok(match format {
        MDM_PIXEL_GREY8 => PixelFormat::Grey8,
        MDM_PIXEL_GREY16 => PixelFormat::Grey16,
        MDM_PIXEL_GREY_F32 => PixelFormat::GreyF32,
        MDM_PIXEL_RGB8 => PixelFormat::Rgb8,
        MDM_PIXEL_RGB16 => PixelFormat::Rgb16,
        MDM_PIXEL_RGB_F32 => PixelFormat::RgbF32,
        MDM_PIXEL_RGBA8 => PixelFormat::Rgba8,
        MDM_PIXEL_BGRA8 => PixelFormat::Bgra8,
        MDM_PIXEL_RGBA16 => PixelFormat::Rgba16,
        MDM_PIXEL_GREY_I16 => PixelFormat::GreyI16,
        MDM_PIXEL_GREY_U32 => PixelFormat::GreyU32,
        MDM_PIXEL_GREY_I32 => PixelFormat::GreyI32,
        MDM_PIXEL_GREY_F16 => PixelFormat::GreyF16,
        MDM_PIXEL_GREY_F64 => PixelFormat::GreyF64,
        MDM_PIXEL_RGB_I16 => PixelFormat::RgbI16,
        MDM_PIXEL_RGB_U32 => PixelFormat::RgbU32,
        MDM_PIXEL_RGB_I32 => PixelFormat::RgbI32,
        MDM_PIXEL_RGB_F16 => PixelFormat::RgbF16,
        MDM_PIXEL_RGB_F64 => PixelFormat::RgbF64,
        other => {
            return Err(Failure::argument(format!("format: {other} is none of the MDM_PIXEL constants")));
        }
    })
}

pub(super) fn planar_of(layout: mdm_layout) -> Result<bool, Failure> {
    match layout {
        MDM_LAYOUT_INTERLEAVED => Ok(false),
        MDM_LAYOUT_PLANAR => Ok(true),
        other => Err(Failure::argument(format!("layout: {other} is none of the MDM_LAYOUT constants"))),
    }
}

/// 0 says that nobody knows.
#[doc(hidden)]
pub fn microns_of(microns: f64) -> Result<Option<f64>, Failure> {
    if microns == 0.0 {
        Ok(None)
    } else if microns > 0.0 && microns.is_finite() {
        Ok(Some(microns))
    } else {
        Err(Failure::argument(format!(
            "microns_per_pixel: {microns} is not a size; 0 says that it is unknown"
        )))
    }
}

fn range_of(start: *const c_void, size: usize) -> Result<Range<usize>, Failure> {
    let end = start.addr().checked_add(size).filter(|_| size <= isize::MAX as usize);
    let end =
        end.ok_or_else(|| Failure::argument(format!("{size} bytes at {start:p} are more than memory has")))?;
    Ok(start.addr()..end)
}

impl mdm_image {
    /// `asked` goes before the image's own micrometres.
    ///
    /// # Safety
    /// The pixels stay and do not change for as long as the view is used.
    #[doc(hidden)]
    pub unsafe fn view<'a>(&self, asked: Option<f64>) -> Result<ImageView<'a>, Failure> {
        if self.pixels.is_null() {
            return Err(Failure::argument("the image's pixels are NULL"));
        }
        range_of(self.pixels, self.pixels_size)?;
        // SAFETY: as demanded of the caller.
        let data = unsafe { std::slice::from_raw_parts(self.pixels.cast::<u8>(), self.pixels_size) };
        let format = format_of(self.format)?;
        let (width, height) = (self.width as usize, self.height as usize);
        let planar = planar_of(self.layout)?;
        if !planar && self.plane_stride != 0 {
            return Err(Failure::argument("plane_stride must be 0 where channels are interleaved"));
        }
        let mut view = if planar {
            ImageView::planar(data, width, height, format)?
        } else {
            ImageView::new(data, width, height, format)?
        };
        if self.row_stride != 0 {
            view = view.with_row_stride(self.row_stride)?;
        }
        if self.plane_stride != 0 {
            view = view.with_plane_stride(self.plane_stride)?;
        }
        if let Some(limits) = declared_of(self.range_low, self.range_high)? {
            view = view.with_range(limits.low, limits.high)?;
        }
        let own = microns_of(self.microns_per_pixel)?;
        Ok(match asked.or(own) {
            Some(microns) => view.with_microns_per_pixel(microns),
            None => view,
        })
    }
}

/// A caller's buffers, checked to hold a result.
pub(super) struct Buffers {
    result: mdm_result,
    label_size: usize,
    labels_row_stride: usize,
    classes: usize,
}

/// Bytes of labels, probabilities and uncertainty, one row after the other.
pub(super) fn sizes(
    width: usize,
    height: usize,
    classes: usize,
    label_type: mdm_label_type,
) -> Result<[usize; 3], Failure> {
    let bytes = |values: usize, size: usize| {
        let pixels = width.checked_mul(height)?;
        pixels.checked_mul(values)?.checked_mul(size)
    };
    let all = [bytes(1, label_size(label_type)?), bytes(classes, 4), bytes(1, 4)];
    let [Some(labels), Some(probabilities), Some(uncertainty)] = all else {
        return Err(Failure::argument(format!(
            "{width} x {height} pixels: a result is more than memory has"
        )));
    };
    Ok([labels, probabilities, uncertainty])
}

pub(super) fn label_size(label_type: mdm_label_type) -> Result<usize, Failure> {
    match label_type {
        MDM_LABEL_U8 => Ok(1),
        MDM_LABEL_U16 => Ok(2),
        other => Err(Failure::argument(format!("label_type: {other} is none of the MDM_LABEL constants"))),
    }
}

impl Buffers {
    /// For an image and a segmenter that makes `classes` classes and, where true, probabilities and uncertainty.
    pub(super) fn new(
        result: mdm_result,
        image: &mdm_image,
        classes: usize,
        makes: (bool, bool),
    ) -> Result<Self, Failure> {
        let (width, height) = (image.width as usize, image.height as usize);
        let [labels, probabilities, uncertainty] = sizes(width, height, classes, result.label_type)?;
        let label_size = label_size(result.label_type)?;
        if result.reserved != 0 {
            return Err(Failure::argument("reserved of the mdm_result must be 0"));
        }
        let mut labels_needed = labels;
        let row = width * label_size;
        let stride = if result.labels_row_stride == 0 { row } else { result.labels_row_stride };
        if stride < row {
            return Err(Failure::argument(format!(
                "labels_row_stride: {stride} bytes are less than the {row} of a row"
            )));
        }
        if stride > row {
            let all = (height.max(1) - 1).checked_mul(stride).and_then(|bytes| bytes.checked_add(row));
            labels_needed =
                all.ok_or_else(|| Failure::argument("labels_row_stride: more than memory has"))?;
        }
        let mut used = vec![("the image", range_of(image.pixels, image.pixels_size)?)];
        let buffers = [
            ("labels", result.labels.cast_const(), result.labels_size, labels_needed, true),
            (
                "probabilities",
                result.probabilities.cast_const().cast(),
                result.probabilities_size,
                probabilities,
                makes.0,
            ),
            (
                "uncertainty",
                result.uncertainty.cast_const().cast(),
                result.uncertainty_size,
                uncertainty,
                makes.1,
            ),
        ];
        for (name, start, size, needed, made) in buffers {
            if start.is_null() {
                continue;
            }
            if !made {
                return Err(Failure::argument(format!(
                    "{name}: the segmenter was made without them; set outputs in its options"
                )));
            }
            if size < needed {
                let message = format!("{name}: the result has {needed} bytes, the buffer {size}");
                return Err(Failure::new(MDM_ERROR_BUFFER_TOO_SMALL, message));
            }
            let range = range_of(start, needed)?;
            if let Some((other, _)) =
                used.iter().find(|(_, used)| used.start < range.end && range.start < used.end)
            {
                return Err(Failure::argument(format!("the buffer for {name} overlaps {other}")));
            }
            used.push((name, range));
        }
        if used.len() == 1 {
            return Err(Failure::argument(
                "all buffers of the mdm_result are NULL: there is no place for the result",
            ));
        }
        Ok(Self { result, label_size, labels_row_stride: stride, classes })
    }

    /// Writes a band to its place.
    ///
    /// # Safety
    /// The buffers are as the caller said, and nobody else uses them.
    pub(super) unsafe fn put(&mut self, band: &Band<'_>) {
        let pixels = band.top * band.width;
        if !self.result.labels.is_null() {
            for (y, row) in band.labels.chunks_exact(band.width).enumerate() {
                let start = (band.top + y) * self.labels_row_stride;
                let out = self.result.labels.cast::<u8>().wrapping_add(start);
                // SAFETY: `new` checked that the buffer has room for all rows, and that no other buffer is there.
                unsafe {
                    if self.label_size == 1 {
                        std::ptr::copy_nonoverlapping(row.as_ptr(), out, row.len());
                    } else {
                        for (x, &label) in row.iter().enumerate() {
                            out.cast::<u16>().wrapping_add(x).write_unaligned(label.into());
                        }
                    }
                }
            }
        }
        let values = [
            (self.result.probabilities, band.probabilities, pixels * self.classes),
            (self.result.uncertainty, band.uncertainty, pixels),
        ];
        for (out, values, start) in values {
            if let (false, Some(values)) = (out.is_null(), values) {
                let out = out.cast::<u8>().wrapping_add(4 * start);
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), out, size_of_val(values)) };
            }
        }
    }
}
