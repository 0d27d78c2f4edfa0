//! Heads that follow labels while they are drawn.

use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use mdm::CancelToken;
use mdm::capi::devices::{OpenDevice, mdm_device, utf8};
use mdm::capi::errors::{Failure, answer, call, deliver, free, mdm_error, mdm_status, wanted};
use mdm::capi::features::{mdm_feature_options, options_of as feature_options_of};
use mdm::capi::handles::{self, Object};
use mdm::capi::images::{mdm_image, microns_of};
use mdm::capi::log::{self, MDM_LOG_WARNING};
use mdm::capi::models::{OpenModel, mdm_model};
use mdm::capi::runs::mdm_run;
use mdm::capi::segmenters::exclusive;
use mdm::capi::structs::{self, Versioned};

use super::arguments::{classes_of, or_default, real_or_default, switch};
use super::labels::mdm_labels;
use super::runs::watched;
use crate::fit::{FitOptions, FittedHeads, HeadFitter, LabelReport, RefineOptions};
use crate::tune::TuneOptions;

/// Fits heads on labels that come and go, as they do in an application where a person draws them.
///
/// It keeps images by name, with their labels and the features of the pixels that are sampled. New labels cost the features of the
/// windows they are in, once while there is memory for them; to refine the last heads then takes a fraction of a second.
///
/// One thread at a time may use it, whichever; a call while another runs returns MDM_ERROR_BUSY.
pub struct mdm_fitter {
    _private: [u8; 0],
}

/// How heads are fitted. Zero is every member's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_fitter_options {
    /// sizeof(mdm_fitter_options)
    pub struct_size: usize,
    /// Names of the classes (UTF-8), as many as classes says; NULL for "class 0" and so on. They are copied.
    pub class_names: *const *const c_char,
    /// Red, green and blue of each class; NULL for colours that are easily told apart. They are copied.
    pub class_colours: *const u8,
    /// Everything random follows from it.
    pub seed: u64,
    /// Samples (labelled pixels whose features are kept) in all; 0 for 500,000. Each takes 4 bytes a feature.
    pub max_samples: u64,
    /// Bytes that features of whole windows may take, so that new labels in them cost nothing; 0 for 1 GiB, 1 for none.
    pub feature_memory: u64,
    /// Part of each window's labelled pixels that are sampled, in (0, 1]; 0 for 0.25. Where few are labelled, more are taken.
    pub fraction: f64,
    /// Adam's learning rate at the start of a fit, in (0, 1]; 0 for 0.001.
    pub learning_rate: f64,
    /// Adam's learning rate at the start of a refinement, in (0, 1]; 0 for 0.001.
    pub refine_learning_rate: f64,
    /// Classes, 2 to 255.
    pub classes: u32,
    /// Heads in the ensemble; 0 for 5. More are steadier and slower, and their disagreement shows uncertainty.
    pub heads: u32,
    /// 1 to weigh each class by the inverse of its frequency.
    pub balance: u32,
    /// 1 for mdm_fitter_fit to fit one more head without part of the labels, and to score it on them.
    pub held_out: u32,
    /// Times that a fit sees each sample; 0 for 4.
    pub epochs: u32,
    /// Steps that a fit takes at least; 0 for 400.
    pub min_steps: u32,
    /// Samples a step of a fit, at least 2; 0 for 1024.
    pub batch: u32,
    /// Steps of a refinement; 0 for 60.
    pub refine_steps: u32,
    /// Samples a step of a refinement, at least 2; 0 for 512.
    pub refine_batch: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// What became of an image's labels.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_label_report {
    /// sizeof(mdm_label_report)
    pub struct_size: usize,
    /// Labelled pixels at the model's scale.
    pub labelled: u64,
    /// Samples that were drawn from them.
    pub samples: u64,
    /// Samples that the last heads have not seen.
    pub fresh: u64,
    /// Windows whose features had to be taken.
    pub windows: u64,
}

/// How a fit or refinement went. Scores are those of labelled pixels.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_fit_report {
    /// sizeof(mdm_fit_report)
    pub struct_size: usize,
    /// Samples that the heads were fitted on.
    pub samples: u64,
    /// Steps of all heads together.
    pub steps: u64,
    /// Samples that the held-out scores are about; 0 where there are none: they were not asked for, or a class would have been
    /// missing.
    pub held_out_samples: u64,
    /// Wall-clock time.
    pub seconds: f64,
    /// Mean loss of the heads at their end.
    pub loss: f64,
    /// Part of the samples fitted on whose class is right.
    pub accuracy: f64,
    /// Dice on them of all classes but 0.
    pub dice: f64,
    /// Mean intersection over union on them of the classes that occur.
    pub mean_iou: f64,
    /// As accuracy, of a head that was fitted without those samples.
    pub held_out_accuracy: f64,
    /// As dice, of a head that was fitted without those samples.
    pub held_out_dice: f64,
    /// As mean_iou, of a head that was fitted without those samples.
    pub held_out_mean_iou: f64,
    /// 1 where the heads were trained on the fitter's device, a GPU; 0 where they were on the processor. A warning in the log says
    /// why where the device is a GPU.
    pub on_gpu: i32,
    /// 0
    pub reserved: i32,
}

/// What a fitter holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_fitter_info {
    /// sizeof(mdm_fitter_info)
    pub struct_size: usize,
    /// Samples in all.
    pub samples: u64,
    /// Images.
    pub images: u32,
    /// Classes.
    pub classes: u32,
    /// Heads that were fitted; 0 before the first fit, unless the model brought some.
    pub heads: u32,
    /// Always 0.
    pub reserved: u32,
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_fitter_options {
    const NAME: &'static str = "mdm_fitter_options";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_label_report {
    const NAME: &'static str = "mdm_label_report";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_fit_report {
    const NAME: &'static str = "mdm_fit_report";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_fitter_info {
    const NAME: &'static str = "mdm_fitter_info";
    const LEAST: usize = size_of::<usize>();
}

pub(super) struct OpenFitter {
    fitter: Mutex<HeadFitter>,
    refine: RefineOptions,
    /// What networks are tuned with unless someone says otherwise.
    pub(super) tuning: TuneOptions,
    /// What the options say of the pixels' size.
    microns: Option<f64>,
    /// Raised when the object is freed, so that a run ends.
    pub(super) freed: CancelToken,
}

impl Object for OpenFitter {
    type Handle = mdm_fitter;
    const NAME: &'static str = "fitter";
}

impl OpenFitter {
    pub(super) fn exclusive(&self) -> Result<MutexGuard<'_, HeadFitter>, Failure> {
        exclusive(&self.fitter, "fitter")
    }
}

fn fit_options_of(options: &mdm_fitter_options) -> Result<(FitOptions, RefineOptions), Failure> {
    if options.reserved != 0 {
        return Err(Failure::argument("reserved of the mdm_fitter_options must be 0"));
    }
    let (fit, refine) = (FitOptions::default(), RefineOptions::default());
    let fit = FitOptions {
        ensemble: or_default(options.heads, 5),
        seed: options.seed,
        balance: switch(options.balance, "balance")?,
        epochs: or_default(options.epochs, fit.epochs),
        min_steps: or_default(options.min_steps, fit.min_steps),
        batch: or_default(options.batch, fit.batch),
        learning_rate: real_or_default(options.learning_rate, fit.learning_rate),
        fraction: real_or_default(options.fraction, fit.fraction),
        max_samples: or_default(options.max_samples, fit.max_samples),
        held_out: switch(options.held_out, "held_out")?,
        ..fit
    };
    let refine = RefineOptions {
        steps: or_default(options.refine_steps, refine.steps),
        batch: or_default(options.refine_batch, refine.batch),
        learning_rate: real_or_default(options.refine_learning_rate, refine.learning_rate),
    };
    refine.validate()?;
    Ok((fit, refine))
}

/// Sets an options struct of `struct_size` bytes to its defaults; MDM_FITTER_OPTIONS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_options_init(options: *mut mdm_fitter_options, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(options, struct_size) }
}

/// Makes a fitter for heads on the backbone of a model. Where the model has heads for the same features and number of classes,
/// they are the first that are refined. Any thread may call this.
///
/// @param model    the model; the fitter keeps it alive
/// @param device   where features are taken; the fitter keeps it alive
/// @param features which features heads are fitted on, and how they are taken; NULL for the model's own
/// @param options  how heads are fitted; classes must be set
/// @param fitter   receives the fitter; free it with mdm_fitter_free
/// @param error    receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI, or MDM_ERROR_MODEL for heads
///         without a backbone
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_new(
    model: *const mdm_model,
    device: *const mdm_device,
    features: *const mdm_feature_options,
    options: *const mdm_fitter_options,
    fitter: *mut *mut mdm_fitter,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(fitter, "fitter")?;
            let model = handles::get::<OpenModel>(model)?;
            let device = handles::get::<OpenDevice>(device)?;
            let options = structs::read(options)?;
            let (fit, refine) = fit_options_of(&options)?;
            let classes = classes_of(options.class_names, options.class_colours, options.classes)?;
            let features = structs::read_or_default(features)?;
            let microns = microns_of(features.microns_per_pixel)?;
            let mut features = feature_options_of(&features, &model)?;
            features.microns_per_pixel = microns;
            let mut made = HeadFitter::new(&model.model, &device.device, classes, features, fit)?;
            match options.feature_memory {
                0 => {}
                bytes => made.set_feature_memory(usize::try_from(bytes).unwrap_or(usize::MAX)),
            }
            let tuning = TuneOptions::for_model(&model.model);
            let freed = CancelToken::new();
            let made = OpenFitter { fitter: Mutex::new(made), refine, tuning, microns, freed };
            deliver(fitter, handles::insert(made));
            Ok(())
        })
    }
}

/// Keeps a copy of an image under a name. An image that had the name goes, with its labels, unless its pixels are the same. Any
/// thread may call this.
///
/// @param fitter not in use by another thread
/// @param name   a name of the caller's choice, UTF-8
/// @param image  the image
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI, MDM_ERROR_IMAGE, MDM_ERROR_BUSY,
///         MDM_ERROR_OUT_OF_MEMORY or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_set_image(
    fitter: *mut mdm_fitter,
    name: *const c_char,
    image: *const mdm_image,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers, and that buffers are as large as it says.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFitter>(fitter)?;
            let name = utf8(name, "name")?;
            let view = structs::read(image)?.view(object.microns)?;
            object.exclusive()?.set_image(name, &view)?;
            Ok(())
        })
    }
}

/// Says what the pixels of an image are, instead of what was said before: labels that are not there any more are forgotten. Takes the
/// features of windows with new labels, unless they are there. Nothing is changed by a call that fails.
///
/// Progress is in windows. Callbacks run on the calling thread.
///
/// @param fitter not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param name   the name that the image was given
/// @param labels its labels
/// @param run    how to watch and stop it; NULL for neither
/// @param report filled in where not NULL; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT (also for an unknown name, labels of another size than the image,
///         and labels that are no class), MDM_ERROR_ABI, MDM_ERROR_BUSY, MDM_ERROR_CANCELLED, MDM_ERROR_OUT_OF_MEMORY, MDM_ERROR_TENSOR,
///         MDM_ERROR_DEVICE_LOST or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_set_labels(
    fitter: *mut mdm_fitter,
    name: *const c_char,
    labels: *const mdm_labels,
    run: *const mdm_run,
    report: *mut mdm_label_report,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers, and that buffers are as large as it says.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFitter>(fitter)?;
            let name = utf8(name, "name")?;
            let run = structs::read_or_default(run)?;
            if !report.is_null() {
                structs::check(report)?;
            }
            let (labels, size) = structs::read(labels)?.copied()?;
            let mut fitter = object.exclusive()?;
            let fitter = &mut *fitter;
            let done: LabelReport =
                watched(run, &object.freed, |control| fitter.set_labels(name, &labels, size, control))?;
            if report.is_null() {
                return Ok(());
            }
            let known = mdm_label_report {
                struct_size: 0,
                labelled: done.labelled,
                samples: done.samples as u64,
                fresh: done.fresh as u64,
                windows: done.windows as u64,
            };
            structs::write(report, &known)
        })
    }
}

/// Forgets an image and its labels. Any thread may call this.
///
/// @param fitter not in use by another thread
/// @param name   the name that the image was given
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT (also for an unknown name), MDM_ERROR_BUSY or
///         MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_remove(
    fitter: *mut mdm_fitter,
    name: *const c_char,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFitter>(fitter)?;
            let name = utf8(name, "name")?;
            if object.exclusive()?.remove(name) {
                Ok(())
            } else {
                Err(Failure::argument(format!("name: there is no image {name:?}")))
            }
        })
    }
}

/// Changes names, colours or number of the classes. If their number changes, there are no heads any more until the next fit. Any thread may
/// call this.
///
/// @param fitter        not in use by another thread
/// @param class_names   as in the options
/// @param class_colours as in the options
/// @param classes       2 to 255, more than any label that was given
/// @param error         receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_BUSY or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_set_classes(
    fitter: *mut mdm_fitter,
    class_names: *const *const c_char,
    class_colours: *const u8,
    classes: u32,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFitter>(fitter)?;
            let classes = classes_of(class_names, class_colours, classes)?;
            Ok(object.exclusive()?.set_classes(classes)?)
        })
    }
}

/// Tells what a fitter holds. Any thread may call this.
///
/// @param fitter not in use by another thread
/// @param info   filled in; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_BUSY or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_get_info(
    fitter: *const mdm_fitter,
    info: *mut mdm_fitter_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFitter>(fitter)?;
            let fitter = object.exclusive()?;
            let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let known = mdm_fitter_info {
                struct_size: 0,
                samples: fitter.samples() as u64,
                images: number(fitter.images().count()),
                classes: number(fitter.classes().len()),
                heads: number(fitter.heads().len()),
                reserved: 0,
            };
            structs::write(info, &known)
        })
    }
}

/// Tells how many pixels are labelled as a class at the model's scale, over all images. Any thread may call this.
///
/// @param fitter not in use by another thread
/// @param index  0 to classes - 1
/// @param pixels receives their number
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_BUSY or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_class_pixels(
    fitter: *const mdm_fitter,
    index: u32,
    pixels: *mut u64,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(pixels, "pixels")?;
            let object = handles::get::<OpenFitter>(fitter)?;
            let counts = object.exclusive()?.class_pixels();
            let Some(&count) = counts.get(index as usize) else {
                return Err(Failure::argument(format!(
                    "there is no class {index}; the fitter has {}",
                    counts.len()
                )));
            };
            deliver(pixels, count);
            Ok(())
        })
    }
}

/// Fits heads anew on all labels. Progress is in optimiser steps of all heads. Callbacks run on the calling thread.
///
/// @param fitter not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param run    how to watch and stop it; NULL for neither
/// @param report filled in where not NULL; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT (also where fewer than two classes are labelled),
///         MDM_ERROR_ABI, MDM_ERROR_BUSY, MDM_ERROR_CANCELLED, MDM_ERROR_DEVICE_LOST or MDM_ERROR_INTERNAL; the last heads stay
///         where it fails
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_fit(
    fitter: *mut mdm_fitter,
    run: *const mdm_run,
    report: *mut mdm_fit_report,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe { call(error, || fit(fitter, run, report, HeadFitter::fit)) }
}

/// Goes on with the last heads for a few steps on all labels, mostly on those that are new to them; where there are no heads, fits
/// them. Otherwise as mdm_fitter_fit.
///
/// @param fitter not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param run    how to watch and stop it; NULL for neither
/// @param report filled in where not NULL; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return as mdm_fitter_fit
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_refine(
    fitter: *mut mdm_fitter,
    run: *const mdm_run,
    report: *mut mdm_fit_report,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            let options = handles::get::<OpenFitter>(fitter)?.refine.clone();
            fit(fitter, run, report, |fitter, control| fitter.refine(&options, control))
        })
    }
}

/// # Safety
/// Pointers and callbacks are as the caller of the library says.
unsafe fn fit(
    fitter: *mut mdm_fitter,
    run: *const mdm_run,
    report: *mut mdm_fit_report,
    how: impl FnOnce(&mut HeadFitter, &mdm::Control<'_>) -> mdm::Result<FittedHeads> + Send,
) -> Result<(), Failure> {
    let object = handles::get::<OpenFitter>(fitter)?;
    // SAFETY: as demanded of the caller.
    let run = unsafe { structs::read_or_default(run) }?;
    if !report.is_null() {
        // SAFETY: as demanded of the caller.
        unsafe { structs::check(report) }?;
    }
    let mut fitter = object.exclusive()?;
    let fitter = &mut *fitter;
    let began = Instant::now();
    // SAFETY: as demanded of the caller.
    let fitted = unsafe { watched(run, &object.freed, |control| how(fitter, control)) }?;
    if let Some(reason) = &fitted.device.fallback {
        log::write(MDM_LOG_WARNING, || format!("heads were trained on the processor: {reason}"));
    }
    if report.is_null() {
        return Ok(());
    }
    let held_out = fitted.held_out;
    let known = mdm_fit_report {
        struct_size: 0,
        samples: fitter.samples() as u64,
        steps: fitted.steps.iter().map(|&steps| steps as u64).sum(),
        held_out_samples: held_out.map_or(0, |scores| scores.pixels as u64),
        seconds: began.elapsed().as_secs_f64(),
        loss: fitted.losses.iter().sum::<f64>() / fitted.losses.len().max(1) as f64,
        accuracy: fitted.training.accuracy,
        dice: fitted.training.dice,
        mean_iou: fitted.training.mean_iou,
        held_out_accuracy: held_out.map_or(0.0, |scores| scores.accuracy),
        held_out_dice: held_out.map_or(0.0, |scores| scores.dice),
        held_out_mean_iou: held_out.map_or(0.0, |scores| scores.mean_iou),
        on_gpu: fitted.device.gpu.is_some().into(),
        reserved: 0,
    };
    // SAFETY: as demanded of the caller.
    unsafe { structs::write(report, &known) }
}

/// Makes a model of the backbone and the last heads, to segment with or to save. It shares the backbone's weights and is as
/// good as any other: later fits do not change it. Any thread may call this.
///
/// @param fitter not in use by another thread
/// @param model  receives the model; free it with mdm_model_free
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT before a fit, MDM_ERROR_BUSY or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_fitter_model(
    fitter: *const mdm_fitter,
    model: *mut *mut mdm_model,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(model, "model")?;
            let object = handles::get::<OpenFitter>(fitter)?;
            let made = object.exclusive()?.model()?;
            deliver(model, handles::insert(OpenModel::new(made)));
            Ok(())
        })
    }
}

/// Frees a fitter; NULL is allowed. A run of another thread is cancelled, and its memory freed when it has stopped; this does not
/// wait for it. Any thread may call this, also a callback of the run.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_fitter_free(fitter: *mut mdm_fitter) {
    answer((), || {
        handles::get::<OpenFitter>(fitter)?.freed.cancel();
        Ok(())
    });
    free::<OpenFitter>(fitter);
}
