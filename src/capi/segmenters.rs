//! Segmenters, and images in memory.

use std::sync::{Mutex, MutexGuard, TryLockError};

use super::devices::{OpenDevice, mdm_device};
use super::errors::{
    Failure, MDM_ERROR_INTERNAL, answer, call, deliver, free, mdm_error, mdm_status, wanted,
};
use super::handles::{self, Object};
use super::images::{self, Buffers, mdm_image, mdm_label_type, mdm_result, microns_of};
use super::intensities::{mdm_range, range_of};
use super::models::{OpenModel, mdm_model};
use super::runs::{controlled, mdm_report, mdm_run};
use super::structs::{self, Versioned};
use crate::plan::Combine;
use crate::segment::SegmentOptions;
use crate::{CancelToken, Segmenter};

/// How an ensemble becomes one answer.
pub type mdm_combine = u32;

/// The mean of the heads' probabilities.
pub const MDM_COMBINE_MEAN: mdm_combine = 0;
/// The part of the heads that vote for a class.
pub const MDM_COMBINE_VOTE: mdm_combine = 1;

/// Whether windows are corrupted before the network sees them.
pub type mdm_corrupt = u32;

/// As the model says.
pub const MDM_CORRUPT_AS_MODEL: mdm_corrupt = 0;
/// They are.
pub const MDM_CORRUPT_YES: mdm_corrupt = 1;
/// They are not.
pub const MDM_CORRUPT_NO: mdm_corrupt = 2;

/// What a segmenter makes beside labels; bits that are combined by |.
pub type mdm_outputs = u32;

/// Class probabilities, 4 bytes a pixel and class.
pub const MDM_OUTPUT_PROBABILITIES: mdm_outputs = 1;
/// How much the heads disagree, 4 bytes a pixel.
pub const MDM_OUTPUT_UNCERTAINTY: mdm_outputs = 2;

/// An overlap that says that windows share nothing; 0 stands for the model's own.
pub const MDM_OVERLAP_NONE: f64 = -1.0;

/// Segments images with one model on one device. It keeps the network's memory from image to image.
///
/// One thread at a time may use it, whichever; a call while another runs returns MDM_ERROR_BUSY. Make one for each thread: those
/// made from one model share its weights.
pub struct mdm_segmenter {
    _private: [u8; 0],
}

/// How images are segmented. Zero is every member's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_segment_options {
    /// sizeof(mdm_segment_options)
    pub struct_size: usize,
    /// Size of an image's pixel in micrometres, whatever the image says; 0 believes the image.
    pub microns_per_pixel: f64,
    /// Part of a window shared with its neighbour, in (0, 1); 0 takes the model's, MDM_OVERLAP_NONE none.
    pub overlap: f64,
    /// Decides which patches are hidden, or the noise that is added.
    pub seed: u64,
    /// Windows that go through the network at a time; 0 for a good number. More cost memory and may be faster; results are the same.
    pub batch: u32,
    /// Side of a window in pixels at the model's scale, rounded up to what the network can divide; 0 takes the model's.
    pub window: u32,
    /// How an ensemble becomes one answer: MDM_COMBINE_MEAN or MDM_COMBINE_VOTE.
    pub combine: mdm_combine,
    /// What is made beside labels: MDM_OUTPUT_PROBABILITIES, MDM_OUTPUT_UNCERTAINTY, both or 0.
    pub outputs: mdm_outputs,
    /// One of the MDM_CORRUPT constants.
    pub corrupt: mdm_corrupt,
    /// Class that a class-conditional backbone is told, the same as when its heads were fitted; others ignore it.
    pub backbone_class: u32,
    /// With MDM_RANGE_FIXED the stored value that the network sees as black; with MDM_RANGE_PERCENTILE a percentage, in [0, 100).
    pub range_low: f64,
    /// With MDM_RANGE_FIXED the stored value that the network sees as white; with MDM_RANGE_PERCENTILE a percentage, up to 100.
    pub range_high: f64,
    /// One of the MDM_RANGE constants; 0, as the model says, is best for images like those that it was fitted on.
    pub range: mdm_range,
    /// Must be 0.
    pub reserved: u32,
}

/// How large a result is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_result_size {
    /// sizeof(mdm_result_size)
    pub struct_size: usize,
    /// Bytes of labels in rows without a gap.
    pub labels: usize,
    /// Bytes of probabilities, whether the segmenter makes them or not.
    pub probabilities: usize,
    /// Bytes of uncertainty, whether the segmenter makes it or not.
    pub uncertainty: usize,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Classes.
    pub classes: u32,
    /// Level of a source that would be read; 0 for an image in memory.
    pub level: u32,
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_segment_options {
    const NAME: &'static str = "mdm_segment_options";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_result_size {
    const NAME: &'static str = "mdm_result_size";
    const LEAST: usize = size_of::<usize>();
}

pub(super) struct OpenSegmenter {
    segmenter: Mutex<Segmenter>,
    /// Raised when the segmenter is freed, so that a run ends.
    pub(super) freed: CancelToken,
    pub(super) classes: usize,
    makes: (bool, bool),
    /// Micrometres per pixel: what the options say of images, and what the model was trained on.
    pub(super) microns: (Option<f64>, Option<f64>),
}

impl Object for OpenSegmenter {
    type Handle = mdm_segmenter;
    const NAME: &'static str = "segmenter";
}

/// The object for a run, unless another run has it.
#[doc(hidden)]
pub fn exclusive<'a, T>(object: &'a Mutex<T>, name: &str) -> Result<MutexGuard<'a, T>, Failure> {
    object.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Failure::busy(name),
        TryLockError::Poisoned(_) => Failure::new(
            MDM_ERROR_INTERNAL,
            format!("an earlier call on this {name} met a mistake in the library; free it and make another"),
        ),
    })
}

impl OpenSegmenter {
    pub(super) fn exclusive(&self) -> Result<MutexGuard<'_, Segmenter>, Failure> {
        exclusive(&self.segmenter, "segmenter")
    }
}

/// What settings of segmentation and features have in common.
pub(super) fn overlap_of(overlap: f64) -> Option<f64> {
    if overlap == 0.0 {
        None
    } else if overlap == MDM_OVERLAP_NONE {
        Some(0.0)
    } else {
        Some(overlap)
    }
}

pub(super) fn corrupt_of(corrupt: mdm_corrupt) -> Result<Option<bool>, Failure> {
    match corrupt {
        MDM_CORRUPT_AS_MODEL => Ok(None),
        MDM_CORRUPT_YES => Ok(Some(true)),
        MDM_CORRUPT_NO => Ok(Some(false)),
        other => Err(Failure::argument(format!("corrupt: {other} is none of the MDM_CORRUPT constants"))),
    }
}

/// More windows at a time than any device has use for.
const MOST_BATCH: u32 = 4096;

pub(super) fn batch_of(batch: u32) -> Result<Option<usize>, Failure> {
    match batch {
        0 => Ok(None),
        1..=MOST_BATCH => Ok(Some(batch as usize)),
        _ => Err(Failure::argument(format!("batch: {batch} is more than {MOST_BATCH}"))),
    }
}

fn options_of(options: &mdm_segment_options) -> Result<SegmentOptions, Failure> {
    if options.outputs & !(MDM_OUTPUT_PROBABILITIES | MDM_OUTPUT_UNCERTAINTY) != 0 {
        return Err(Failure::argument(format!("outputs: {:#x} has unknown bits", options.outputs)));
    }
    if options.reserved != 0 {
        return Err(Failure::argument("reserved of the mdm_segment_options must be 0"));
    }
    Ok(SegmentOptions {
        // Told with each image, since a source's levels differ.
        microns_per_pixel: None,
        range: range_of(options.range, options.range_low, options.range_high)?,
        batch: batch_of(options.batch)?,
        window: (options.window > 0).then_some(options.window as usize),
        overlap: overlap_of(options.overlap),
        combine: match options.combine {
            MDM_COMBINE_MEAN => Combine::Mean,
            MDM_COMBINE_VOTE => Combine::Vote,
            other => {
                return Err(Failure::argument(format!(
                    "combine: {other} is none of the MDM_COMBINE constants"
                )));
            }
        },
        probabilities: options.outputs & MDM_OUTPUT_PROBABILITIES != 0,
        uncertainty: options.outputs & MDM_OUTPUT_UNCERTAINTY != 0,
        seed: options.seed,
        corrupt: corrupt_of(options.corrupt)?,
        class: options.backbone_class,
    })
}

/// Sets an options struct of `struct_size` bytes to its defaults; MDM_SEGMENT_OPTIONS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_segment_options_init(options: *mut mdm_segment_options, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(options, struct_size) }
}

/// Makes a segmenter. Model and options are checked; memory for the network is taken with the first image. Any thread may
/// call this.
///
/// @param model     the model; the segmenter keeps it alive
/// @param device    where to run; the segmenter keeps it alive
/// @param options   settings; NULL for defaults
/// @param segmenter receives the segmenter; free it with mdm_segmenter_free
/// @param error     receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT (also for a model without heads), MDM_ERROR_ABI,
///         MDM_ERROR_MODEL (for heads without a backbone) or MDM_ERROR_TENSOR
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_segmenter_new(
    model: *const mdm_model,
    device: *const mdm_device,
    options: *const mdm_segment_options,
    segmenter: *mut *mut mdm_segmenter,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(segmenter, "segmenter")?;
            let model = handles::get::<OpenModel>(model)?;
            let device = handles::get::<OpenDevice>(device)?;
            let options = structs::read_or_default(options)?;
            let microns = microns_of(options.microns_per_pixel)?;
            let options = options_of(&options)?;
            let made = OpenSegmenter {
                makes: (options.probabilities, options.uncertainty),
                microns: (microns, model.model.metadata().microns_per_pixel),
                classes: model.model.metadata().classes.len(),
                segmenter: Mutex::new(Segmenter::new(&model.model, &device.device, options)?),
                freed: CancelToken::new(),
            };
            deliver(segmenter, handles::insert(made));
            Ok(())
        })
    }
}

/// Tells how large the result of an image is. Any thread may call this.
///
/// @param segmenter  the segmenter
/// @param width      columns of the image
/// @param height     rows of the image
/// @param label_type MDM_LABEL_U8 or MDM_LABEL_U16
/// @param size       filled in; its struct_size must be set
/// @param error      receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_segmenter_result_size(
    segmenter: *const mdm_segmenter,
    width: u32,
    height: u32,
    label_type: mdm_label_type,
    size: *mut mdm_result_size,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let classes = handles::get::<OpenSegmenter>(segmenter)?.classes;
            structs::write(size, &result_size(width, height, classes, label_type, 0)?)
        })
    }
}

pub(super) fn result_size(
    width: u32,
    height: u32,
    classes: usize,
    label_type: mdm_label_type,
    level: u32,
) -> Result<mdm_result_size, Failure> {
    let [labels, probabilities, uncertainty] =
        images::sizes(width as usize, height as usize, classes, label_type)?;
    let classes = u32::try_from(classes).unwrap_or(u32::MAX);
    Ok(mdm_result_size { struct_size: 0, labels, probabilities, uncertainty, width, height, classes, level })
}

/// Segments an image in memory. Beside image and result it takes the network's memory and a band of rows. Callbacks run
/// on the calling thread.
///
/// @param segmenter not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param image     the image
/// @param result    buffers for the result; their content is unspecified unless the call succeeds
/// @param run       how to watch and stop it; NULL for neither
/// @param report    filled in where not NULL; its struct_size must be set
/// @param error     receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI, MDM_ERROR_IMAGE,
///         MDM_ERROR_BUFFER_TOO_SMALL, MDM_ERROR_BUSY, MDM_ERROR_CANCELLED, MDM_ERROR_OUT_OF_MEMORY, MDM_ERROR_TENSOR,
///         MDM_ERROR_DEVICE_LOST or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_segmenter_run(
    segmenter: *mut mdm_segmenter,
    image: *const mdm_image,
    result: *const mdm_result,
    run: *const mdm_run,
    report: *mut mdm_report,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers, and that buffers are as large as it says.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenSegmenter>(segmenter)?;
            let (image, run) = (structs::read(image)?, structs::read_or_default(run)?);
            if !report.is_null() {
                structs::check(report)?;
            }
            let mut view = image.view(object.microns.0)?;
            let mut buffers = Buffers::new(structs::read(result)?, &image, object.classes, object.makes)?;
            let mut segmenter = object.exclusive()?;
            let done = controlled(run, &object.freed, |control| {
                let mut sink = |band: crate::segment::Band<'_>| {
                    buffers.put(&band);
                    Ok(())
                };
                segmenter.segment_bands(&mut view, &mut sink, control)
            })?;
            mdm_report::new(&done, 0).tell(report)
        })
    }
}

/// Frees a segmenter; NULL is allowed. A run of another thread is cancelled, and its memory freed when it has stopped; this
/// does not wait for it. Any thread may call this, also a callback of the run.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_segmenter_free(segmenter: *mut mdm_segmenter) {
    answer((), || {
        handles::get::<OpenSegmenter>(segmenter)?.freed.cancel();
        Ok(())
    });
    free::<OpenSegmenter>(segmenter);
}
