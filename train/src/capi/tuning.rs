//! Whole networks that learn the labels of a fitter.

use std::time::Duration;

use mdm::Control;
use mdm::capi::errors::{Failure, call, deliver, mdm_error, mdm_status, wanted};
use mdm::capi::handles;
use mdm::capi::models::{OpenModel, mdm_model};
use mdm::capi::runs::mdm_run;
use mdm::capi::structs::{self, Versioned};

use super::arguments::{or_default, real_or_default, switch};
use super::fitters::{OpenFitter, mdm_fitter};
use super::runs::watched;
use crate::tune::{Augmentation, Length, PixelLoss, TuneOptions, TuneProgress, TuneReport};

/// What tuning minimises over labelled pixels.
pub type mdm_tune_loss = u32;

/// Cross entropy and soft Dice.
pub const MDM_TUNE_LOSS_DEFAULT: mdm_tune_loss = 0;
/// Mean cross entropy.
pub const MDM_TUNE_LOSS_CROSS_ENTROPY: mdm_tune_loss = 1;
/// Mean cross entropy, and 1 - soft Dice, the mean over a crop's classes.
pub const MDM_TUNE_LOSS_CROSS_ENTROPY_AND_DICE: mdm_tune_loss = 2;
/// Mean cross entropy in which pixels within two of another class count three times.
pub const MDM_TUNE_LOSS_BOUNDARY_WEIGHTED: mdm_tune_loss = 3;

/// How a network is tuned. Zero is every member's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_tune_options {
    /// sizeof(mdm_tune_options)
    pub struct_size: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Steps; 0 for 1,000, or for as many as the time allows where seconds is set.
    pub steps: u64,
    /// Tunes for so long instead of a number of steps, which must be 0; 0 for a number of steps. How many steps there is time for depends on
    /// the machine, and so does the result.
    pub seconds: f64,
    /// AdamW's largest learning rate for the backbone, in (0, 0.2]; 0 for 0.0002. That of the head is five times as large.
    pub learning_rate: f64,
    /// Crops are magnified or reduced by up to exp of this, in (0, 1]; 0 for 0.25, -1 for not at all.
    pub scale: f64,
    /// Brightness and contrast are changed by up to this part of the intensity range, in (0, 1]; 0 for 0.3, -1 for not at all.
    pub intensity: f64,
    /// The amounts of the stains that colours are made up of are changed by up to this part of each, in (0, 1]; 0 for 0.3, -1 for not at all.
    pub stain: f64,
    /// Largest standard deviation of noise that is added, as a part of half the intensity range, in (0, 1]; 0 or -1 for none.
    pub noise: f64,
    /// Crops a step; 0 for 8.
    pub batch: u32,
    /// Side of the crops in pixels at the model's scale, a multiple of the network's deepest downsampling up to 8192; 0 for that of the
    /// backbone's windows. The windows of the resulting model are twice as large.
    pub size: u32,
    /// What is minimised: one of the MDM_TUNE_LOSS constants.
    pub loss: mdm_tune_loss,
    /// 1 to weigh each class by the inverse of its frequency.
    pub balance: u32,
    /// 1 to tune another network first without every fourth labelled image, and to score it on these, which takes as long again. Nothing is
    /// held out of less than four images.
    pub held_out: u32,
    /// 1 to turn crops by quarter turns only.
    pub quarter_turns: u32,
    /// 1 to leave out mirror images.
    pub unmirrored: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// How tuning went.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_tune_report {
    /// sizeof(mdm_tune_report)
    pub struct_size: usize,
    /// Steps.
    pub steps: u64,
    /// Images that were held out; 0 where they were not asked for, or are too few.
    pub held_out_images: u64,
    /// Wall-clock time, without the trial that left them out.
    pub seconds: f64,
    /// Mean loss of about the last fifty steps.
    pub loss: f64,
    /// Part of the labelled pixels of about the last fifty steps whose class was right.
    pub accuracy: f64,
    /// Dice of all classes but 0 on the images that were held out, of the network that was tuned without them; 0 where there are none.
    pub held_out_dice: f64,
    /// As held_out_dice: mean intersection over union of the classes that occur.
    pub held_out_mean_iou: f64,
    /// As held_out_dice: Dice of objects, which are connected pixels of all classes but 0.
    pub held_out_object_dice: f64,
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_tune_options {
    const NAME: &'static str = "mdm_tune_options";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_tune_report {
    const NAME: &'static str = "mdm_tune_report";
    const LEAST: usize = size_of::<usize>();
}

/// An amplitude, its default for 0, or none for -1.
fn amplitude(value: f64, default: f64) -> f64 {
    if value == -1.0 { 0.0 } else { real_or_default(value, default) }
}

fn length_of(options: &mdm_tune_options, default: Length) -> Result<Length, Failure> {
    match (options.seconds, options.steps) {
        (0.0, 0) => Ok(default),
        (0.0, steps) => Ok(Length::Steps(steps)),
        (seconds, 0) => match Duration::try_from_secs_f64(seconds) {
            Ok(time) => Ok(Length::Time(time)),
            Err(_) => Err(Failure::argument(format!("seconds: {seconds} is no length of time"))),
        },
        (seconds, steps) => Err(Failure::argument(format!(
            "seconds is {seconds} and steps is {steps}; one of them has to be 0"
        ))),
    }
}

fn tune_options_of(options: &mdm_tune_options, defaults: TuneOptions) -> Result<TuneOptions, Failure> {
    if options.reserved != 0 {
        return Err(Failure::argument("reserved of the mdm_tune_options must be 0"));
    }
    let loss = match options.loss {
        MDM_TUNE_LOSS_DEFAULT => defaults.loss,
        MDM_TUNE_LOSS_CROSS_ENTROPY => PixelLoss::CrossEntropy,
        MDM_TUNE_LOSS_CROSS_ENTROPY_AND_DICE => PixelLoss::CrossEntropyAndDice,
        MDM_TUNE_LOSS_BOUNDARY_WEIGHTED => PixelLoss::BoundaryWeighted,
        other => {
            return Err(Failure::argument(format!("loss: {other} is none of the MDM_TUNE_LOSS constants")));
        }
    };
    let defaults = match options.learning_rate {
        0.0 => defaults,
        rate => defaults.with_learning_rate(rate),
    };
    let varied = defaults.augmentation;
    Ok(TuneOptions {
        length: length_of(options, defaults.length)?,
        batch: or_default(options.batch, defaults.batch),
        size: or_default(options.size, defaults.size),
        loss,
        balance: switch(options.balance, "balance")?,
        augmentation: Augmentation {
            flip: varied.flip && !switch(options.unmirrored, "unmirrored")?,
            rotate: varied.rotate && !switch(options.quarter_turns, "quarter_turns")?,
            scale: amplitude(options.scale, varied.scale),
            intensity: amplitude(options.intensity, varied.intensity),
            stain: amplitude(options.stain, varied.stain),
            noise: amplitude(options.noise, varied.noise),
        },
        seed: options.seed,
        held_out: switch(options.held_out, "held_out")?,
        ..defaults
    })
}

/// Tells whoever watches how far all of it is: steps or milliseconds, those of a trial and those that follow.
struct Whole {
    length: Length,
    /// There is a trial.
    trial: bool,
}

impl Whole {
    fn report(&mut self, now: TuneProgress, control: &Control<'_>) {
        self.trial |= now.trial;
        let (done, total) = match self.length {
            Length::Steps(steps) => (now.step, steps),
            Length::Time(time) => {
                let total = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                let passed = (now.done * total as f64) as u64;
                (if now.done < 1.0 { passed.min(total - 1) } else { total }, total)
            }
        };
        let before = if self.trial && !now.trial { total } else { 0 };
        let parts = if self.trial { 2 } else { 1 };
        control.report(done.saturating_add(before), total.saturating_mul(parts));
    }
}

/// Sets an options struct of `struct_size` bytes to its defaults; MDM_TUNE_OPTIONS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_tune_options_init(options: *mut mdm_tune_options, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(options, struct_size) }
}

/// Tunes a copy of the backbone together with a head of its own on all labels that a fitter holds, which takes minutes instead of
/// seconds and is more accurate than heads alone. The fitter stays as it is, with its backbone, its labels and its heads.
///
/// Classes, features (at their first timestep), scale and intensity range are the fitter's. Progress is in steps, or in milliseconds where
/// seconds is set; those of the trial that leaves images out count too. Callbacks run on the calling thread.
///
/// @param fitter  not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param options how the network is tuned; NULL for the defaults
/// @param run     how to watch and stop it; NULL for neither
/// @param report  filled in where not NULL; its struct_size must be set
/// @param model   receives the model, which has weights of its own: to segment with, or to save with its backbone. Free it with
///                mdm_model_free
/// @param error   receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT (also where fewer than two classes are labelled, and where the
///         learning rate is too large for the loss to stay a number), MDM_ERROR_ABI, MDM_ERROR_BUSY, MDM_ERROR_CANCELLED,
///         MDM_ERROR_OUT_OF_MEMORY, MDM_ERROR_TENSOR, MDM_ERROR_DEVICE, MDM_ERROR_DEVICE_LOST or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_tune(
    fitter: *mut mdm_fitter,
    options: *const mdm_tune_options,
    run: *const mdm_run,
    report: *mut mdm_tune_report,
    model: *mut *mut mdm_model,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            wanted(model, "model")?;
            let object = handles::get::<OpenFitter>(fitter)?;
            let options = structs::read_or_default(options)?;
            let options = tune_options_of(&options, object.tuning.clone())?;
            let run = structs::read_or_default(run)?;
            if !report.is_null() {
                structs::check(report)?;
            }
            let mut fitter = object.exclusive()?;
            let fitter = &mut *fitter;
            let tuned = watched(run, &object.freed, move |control| {
                let mut whole = Whole { length: options.length, trial: false };
                fitter.tune(&options, &mut |now| whole.report(now, control), control)
            })?;
            if !report.is_null() {
                structs::write(report, &report_of(&tuned))?;
            }
            deliver(model, handles::insert(OpenModel::new(tuned.model))?);
            Ok(())
        })
    }
}

fn report_of(tuned: &TuneReport) -> mdm_tune_report {
    let held_out = tuned.held_out.as_ref();
    let scores = held_out.map(|(scores, _)| scores);
    mdm_tune_report {
        struct_size: 0,
        steps: tuned.last.step,
        held_out_images: held_out.map_or(0, |(_, names)| names.len() as u64),
        seconds: tuned.seconds,
        loss: tuned.last.loss,
        accuracy: tuned.last.accuracy,
        held_out_dice: scores.map_or(0.0, |scores| scores.dice),
        held_out_mean_iou: scores.map_or(0.0, |scores| scores.mean_iou),
        held_out_object_dice: scores.map_or(0.0, |scores| scores.object_dice),
    }
}
