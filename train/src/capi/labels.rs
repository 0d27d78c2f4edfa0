//! Label images of the caller.

use std::ffi::c_void;

use mdm::capi::errors::Failure;
use mdm::capi::images::{MDM_LABEL_U8, MDM_LABEL_U16, mdm_label_type};
use mdm::capi::structs::{self, Versioned};

use crate::metrics::UNLABELLED;

/// The label of a pixel of which nobody said what it is.
pub const MDM_UNLABELLED: u32 = 255;

/// What the pixels of an image are. It belongs to the caller, must not change during a call, and is not used after it. No pointer need
/// be aligned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_labels {
    /// sizeof(mdm_labels)
    pub struct_size: usize,
    /// [height][width]: the index of each pixel's class, or MDM_UNLABELLED.
    pub labels: *const c_void,
    /// Bytes that may be read from there.
    pub labels_size: usize,
    /// Bytes from one row to the next; 0 for rows without a gap.
    pub row_stride: usize,
    /// Columns, as many as the image has.
    pub width: u32,
    /// Rows, as many as the image has.
    pub height: u32,
    /// MDM_LABEL_U8 or MDM_LABEL_U16.
    pub label_type: mdm_label_type,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: numbers and a pointer behind a size.
unsafe impl Versioned for mdm_labels {
    const NAME: &'static str = "mdm_labels";
    const LEAST: usize = std::mem::offset_of!(mdm_labels, reserved);
}

/// Sets labels of `struct_size` bytes to zeros and their size; MDM_LABELS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_labels_init(labels: *mut mdm_labels, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(labels, struct_size) }
}

impl mdm_labels {
    /// A copy without gaps, and its height and width.
    ///
    /// # Safety
    /// The labels can be read.
    pub(super) unsafe fn copied(&self) -> Result<(Vec<u8>, (usize, usize)), Failure> {
        const MOST: usize = 1 << 30;
        let (width, height) = (self.width as usize, self.height as usize);
        if self.labels.is_null() || self.labels_size > isize::MAX as usize {
            return Err(Failure::argument(format!(
                "labels: {} bytes at {:p}",
                self.labels_size, self.labels
            )));
        }
        if width == 0 || height == 0 || width > MOST || height > MOST {
            return Err(Failure::argument(format!("labels: {width} x {height} pixels")));
        }
        if self.reserved != 0 {
            return Err(Failure::argument("reserved of the mdm_labels must be 0"));
        }
        let size = match self.label_type {
            MDM_LABEL_U8 => 1,
            MDM_LABEL_U16 => 2,
            other => {
                return Err(Failure::argument(format!(
                    "label_type: {other} is none of the MDM_LABEL constants"
                )));
            }
        };
        let row = width * size;
        let stride = if self.row_stride == 0 { row } else { self.row_stride };
        let needed = (height - 1).checked_mul(stride).and_then(|bytes| bytes.checked_add(row));
        if stride < row || needed.is_none_or(|needed| needed > self.labels_size) {
            return Err(Failure::argument(format!(
                "labels: {height} rows of {row} bytes, one every {stride}, are more than the {} given",
                self.labels_size
            )));
        }
        // SAFETY: as demanded of the caller.
        let bytes = unsafe { std::slice::from_raw_parts(self.labels.cast::<u8>(), self.labels_size) };
        let mut labels = Vec::new();
        let room = width.checked_mul(height).is_some_and(|count| labels.try_reserve_exact(count).is_ok());
        if !room {
            return Err(mdm::Error::OutOfMemory("a copy of the labels".into()).into());
        }
        for row in bytes.chunks(stride).take(height).map(|bytes| &bytes[..row]) {
            if size == 1 {
                labels.extend_from_slice(row);
                continue;
            }
            for label in row.chunks_exact(2).map(|label| u16::from_ne_bytes([label[0], label[1]])) {
                let label = u8::try_from(label).map_err(|_| {
                    Failure::argument(format!(
                        "labels: {label} is no class; {UNLABELLED} (MDM_UNLABELLED) means unlabelled"
                    ))
                })?;
                labels.push(label);
            }
        }
        Ok((labels, (height, width)))
    }
}
