//! What all runs have in common: how they are watched and stopped, and how they went.

use std::ffi::c_void;

use super::cancel::mdm_cancel;
use super::errors::Failure;
use super::handles;
use super::intensities::{self, mdm_intensity_warnings};
use super::log::{self, MDM_LOG_DEBUG, MDM_LOG_WARNING};
use super::structs::{self, Versioned};
use crate::intensity::Limits;
use crate::segment::{RunReport, Scaling};
use crate::{CancelToken, Control, Progress, Result};

/// How far a run has come.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_progress {
    /// sizeof(mdm_progress), as the library knows it.
    pub struct_size: usize,
    /// From 0.0 to 1.0.
    pub fraction: f64,
    /// Windows that went through the network.
    pub windows_done: u64,
    /// Windows in all; constant during a run.
    pub windows: u64,
}

/// Is told how a run gets on: at its beginning, and after every batch of windows, on the thread that called.
///
/// It must neither throw nor jump out. It may free objects and raise tokens, but not use the object that runs.
///
/// @param user_data as given in the mdm_run
/// @param progress  valid during the call
/// @return 0 to go on; anything else stops the run, which returns MDM_ERROR_CANCELLED
pub type mdm_progress_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, progress: *const mdm_progress) -> i32>;

/// How a run is watched and stopped. Zero is every member's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_run {
    /// sizeof(mdm_run)
    pub struct_size: usize,
    /// Stops the run when it is raised; may be NULL.
    pub cancel: *mut mdm_cancel,
    /// Is told how the run gets on; may be NULL.
    pub progress: mdm_progress_callback,
    /// Handed to progress.
    pub user_data: *mut c_void,
}

/// Why an image was, or was not, resampled for the model.
pub type mdm_scaling = u32;

/// It was resampled to the model's micrometres per pixel.
pub const MDM_SCALING_RESCALED: mdm_scaling = 0;
/// Its micrometres per pixel are within 5 % of the model's, so that it was used as it is.
pub const MDM_SCALING_CLOSE: mdm_scaling = 1;
/// Nobody says how large its pixels are, so that it was used as it is.
pub const MDM_SCALING_IMAGE_UNKNOWN: mdm_scaling = 2;
/// Nobody says at what scale the model was trained, so that the image was used as it is.
pub const MDM_SCALING_MODEL_UNKNOWN: mdm_scaling = 3;

/// How a segmentation went.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_report {
    /// sizeof(mdm_report)
    pub struct_size: usize,
    /// Windows that went through the network.
    pub windows: u64,
    /// Pixels that the network saw per pixel of the result, along a side.
    pub scale: f64,
    /// Wall-clock time.
    pub seconds: f64,
    /// Columns that the network saw.
    pub scaled_width: u32,
    /// Rows that the network saw.
    pub scaled_height: u32,
    /// Why that scale: one of the MDM_SCALING constants.
    pub scaling: mdm_scaling,
    /// Level of the source that was read; 0 for an image in memory.
    pub level: u32,
    /// The stored value that the network saw as black, the least of all channels.
    pub range_low: f64,
    /// The stored value that the network saw as white, the largest of all channels.
    pub range_high: f64,
    /// The least stored value, but for a hundredth of a percent.
    pub values_low: f64,
    /// The largest stored value, but for a hundredth of a percent.
    pub values_high: f64,
    /// What looks wrong about the values: bits of the MDM_INTENSITIES constants.
    pub intensity_warnings: mdm_intensity_warnings,
    /// Always 0.
    pub reserved: u32,
}

// SAFETY: numbers, pointers and an optional function pointer behind a size.
unsafe impl Versioned for mdm_run {
    const NAME: &'static str = "mdm_run";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_report {
    const NAME: &'static str = "mdm_report";
    const LEAST: usize = size_of::<usize>();
}

/// Sets a run of `struct_size` bytes to its defaults; MDM_RUN_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_run_init(run: *mut mdm_run, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(run, struct_size) }
}

/// What a callback is handed. The library calls it on the caller's own thread only.
#[derive(Clone, Copy)]
pub(super) struct UserData(*mut c_void);

// SAFETY: `Control` wants it for reports from other threads, which neither segmentation nor features make.
unsafe impl Sync for UserData {}

impl UserData {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Runs `body` so that the caller of `run`, and whoever frees the object that runs, can stop it.
///
/// # Safety
/// The callback can be called with the user data.
pub(super) unsafe fn controlled<T>(
    run: mdm_run,
    freed: &CancelToken,
    body: impl FnOnce(&Control<'_>) -> Result<T>,
) -> Result<T, Failure> {
    let mut control = Control::none().with_cancel(freed);
    if !run.cancel.is_null() {
        control = control.with_cancel(&*handles::get::<CancelToken>(run.cancel)?);
    }
    let Some(progress) = run.progress else { return Ok(body(&control)?) };
    let (stop, user_data) = (CancelToken::new(), UserData(run.user_data));
    let report = |state: Progress| {
        let state = mdm_progress {
            struct_size: size_of::<mdm_progress>(),
            fraction: if state.total == 0 { 1.0 } else { state.done as f64 / state.total as f64 },
            windows_done: state.done,
            windows: state.total,
        };
        // SAFETY: as demanded of the caller.
        if unsafe { progress(user_data.get(), &raw const state) } != 0 {
            stop.cancel();
        }
    };
    let control = control.with_cancel(&stop).with_progress(&report);
    let result = body(&control)?;
    // Whoever wants to stop at the last report does not want the result either.
    control.check()?;
    Ok(result)
}

impl mdm_report {
    pub(super) fn new(report: &RunReport, level: usize) -> Self {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        log::write(MDM_LOG_DEBUG, || {
            format!(
                "segmented: {} windows in {:.3} s, scale {:.4}",
                report.windows, report.seconds, report.scale
            )
        });
        if report.scaling == Scaling::ImageUnknown {
            log::write(MDM_LOG_WARNING, || {
                "nobody says how large the image's pixels are: it was used as it is; set microns_per_pixel"
                    .into()
            });
        }
        let over_channels = |limits: &[Limits]| limits.iter().copied().reduce(Limits::union);
        let nothing = Limits { low: 0.0, high: 0.0 };
        let range = over_channels(&report.intensities.limits).unwrap_or(nothing);
        let values = over_channels(&report.intensities.values).unwrap_or(nothing);
        Self {
            struct_size: 0,
            windows: report.windows as u64,
            scale: report.scale,
            seconds: report.seconds,
            scaled_width: number(report.scaled_width),
            scaled_height: number(report.scaled_height),
            scaling: match report.scaling {
                Scaling::Rescaled => MDM_SCALING_RESCALED,
                Scaling::Close => MDM_SCALING_CLOSE,
                Scaling::ImageUnknown => MDM_SCALING_IMAGE_UNKNOWN,
                Scaling::ModelUnknown => MDM_SCALING_MODEL_UNKNOWN,
            },
            level: number(level),
            range_low: range.low,
            range_high: range.high,
            values_low: values.low,
            values_high: values.high,
            intensity_warnings: intensities::warn(&report.intensities),
            reserved: 0,
        }
    }

    /// Tells the caller, if it wants to know.
    ///
    /// # Safety
    /// `to` is NULL or an `mdm_report` of the caller.
    pub(super) unsafe fn tell(&self, to: *mut Self) -> Result<(), Failure> {
        // SAFETY: as demanded of the caller.
        if to.is_null() { Ok(()) } else { unsafe { structs::write(to, self) } }
    }
}
