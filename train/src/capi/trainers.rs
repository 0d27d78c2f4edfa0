//! Backbones that learn from images without labels.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mdm::capi::devices::{OpenDevice, mdm_device, utf8};
use mdm::capi::errors::{Failure, answer, c_string, call, deliver, free, mdm_error, mdm_status, wanted};
use mdm::capi::handles::{self, Object};
use mdm::capi::images::microns_of;
use mdm::capi::intensities::{mdm_range, range_of};
use mdm::capi::models::{OpenModel, mdm_model};
use mdm::capi::runs::mdm_run;
use mdm::capi::segmenters::exclusive;
use mdm::capi::structs::{self, Versioned};
use mdm::model::{CorruptionKind, Model, NoiseSchedule, UnetConfig};
use mdm::{CancelToken, Control};

use super::arguments::{or_default, real_or_default, switch};
use super::runs::watched;
use super::training_images::{images_of, mdm_training_images};
use crate::loss::Loss;
use crate::pretrain::{Checkpoint, PretrainError, Recipe, Schedule, Start, StepReport, Trainer};

/// The loss is not a number any more. Go on from the last checkpoint with a lower learning rate, a longer warm-up or clipped gradients.
/// mdm_status_name, which knows the codes of mdm.h, calls it "unknown"; the error's message says which step, and why.
pub const MDM_TRAIN_ERROR_DIVERGED: mdm_status = 1000;

/// What is minimised.
pub type mdm_loss = u32;

/// Structural similarity where patches are hidden, the mean of squares where noise is added.
pub const MDM_LOSS_DEFAULT: mdm_loss = 0;
/// Structural similarity as the method's authors train on: mean(clamp(1 - ssim, 0, 1) / 2).
pub const MDM_LOSS_SSIM: mdm_loss = 1;
/// The mean of squared differences.
pub const MDM_LOSS_MEAN_SQUARE: mdm_loss = 2;
/// The mean of absolute differences.
pub const MDM_LOSS_MEAN_ABSOLUTE: mdm_loss = 3;

/// How images are corrupted.
pub type mdm_corruption = u32;

/// Patches are hidden.
pub const MDM_CORRUPTION_MASK: mdm_corruption = 0;
/// Gaussian noise is added, by the linear schedule.
pub const MDM_CORRUPTION_NOISE_LINEAR: mdm_corruption = 1;
/// Gaussian noise is added, by the cosine schedule.
pub const MDM_CORRUPTION_NOISE_COSINE: mdm_corruption = 2;

/// The learning rate between the warm-up and the last step.
pub type mdm_schedule = u32;

/// It stays.
pub const MDM_SCHEDULE_CONSTANT: mdm_schedule = 0;
/// It falls to zero along a line.
pub const MDM_SCHEDULE_LINEAR: mdm_schedule = 1;
/// It falls to zero along half a period of a cosine.
pub const MDM_SCHEDULE_COSINE: mdm_schedule = 2;

/// Trains a backbone on images without labels.
///
/// One thread at a time may use it, whichever; a call while another runs returns MDM_ERROR_BUSY. Its own threads prepare images between
/// and during calls.
pub struct mdm_trainer {
    _private: [u8; 0],
}

/// How a backbone is trained. Zero is every member's default, which is the paper's recipe.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_trainer_options {
    /// sizeof(mdm_trainer_options)
    pub struct_size: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Steps of the whole run; 0 for 10,000.
    pub steps: u64,
    /// Steps over which the learning rate rises from nothing.
    pub warmup: u64,
    /// AdamW's learning rate after the warm-up; 0 for 0.0001.
    pub learning_rate: f64,
    /// Share of each parameter that is taken away at every step, times the learning rate.
    pub weight_decay: f64,
    /// Gradients whose norm is larger are scaled down to it; 0 for never.
    pub clip: f64,
    /// Decay rate of the moving average of the parameters that becomes the backbone, in [0, 1); 0 for 0.9999.
    pub average: f64,
    /// Scale that images are brought to, where they say theirs, in micrometres per pixel; 0 for their own.
    pub microns_per_pixel: f64,
    /// Crops are taken elsewhere if more than this share of their pixels is white; 0 for never.
    pub skip_background: f64,
    /// Channels at the finest level, a multiple of 32; 0 for 192. Ignored where training starts from a model.
    pub width: u32,
    /// Side of the crops in pixels, a multiple of 32; 0 for 256.
    pub size: u32,
    /// Samples a step; 0 for 128.
    pub batch: u32,
    /// Samples that are computed at once, which takes memory; divides batch. 0 for the largest of up to 8.
    pub microbatch: u32,
    /// How images are corrupted: one of the MDM_CORRUPTION constants.
    pub corruption: mdm_corruption,
    /// Side of the patches that are hidden, in pixels; 0 for 8.
    pub patch: u32,
    /// The one timestep that is trained; 0 for all alike.
    pub fixed_timestep: u32,
    /// What is minimised: one of the MDM_LOSS constants.
    pub loss: mdm_loss,
    /// What the learning rate does: one of the MDM_SCHEDULE constants.
    pub schedule: mdm_schedule,
    /// 1 to leave out mirror images and quarter turns.
    pub upright: u32,
    /// 1 to compute activations again instead of keeping them: slower, in a fraction of the memory.
    pub recompute: u32,
    /// Must be 0.
    pub reserved: u32,
    /// With MDM_RANGE_FIXED the stored value that the network sees as black; with MDM_RANGE_PERCENTILE a percentage, in [0, 100).
    pub range_low: f64,
    /// With MDM_RANGE_FIXED the stored value that the network sees as white; with MDM_RANGE_PERCENTILE a percentage, up to 100.
    pub range_high: f64,
    /// How stored values become what the network sees: one of the MDM_RANGE constants, of which MDM_RANGE_AS_MODEL takes that of
    /// the model that training starts from, or else MDM_RANGE_DECLARED.
    pub range: mdm_range,
    /// Must be 0.
    pub reserved_too: u32,
}

/// How a step went.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_step_report {
    /// sizeof(mdm_step_report)
    pub struct_size: usize,
    /// Steps that are done with this one.
    pub step: u64,
    /// Mean loss of the batch.
    pub loss: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Wall-clock time.
    pub seconds: f64,
    /// How much of it images were waited for.
    pub waited_seconds: f64,
    /// 0 where the gradient was too large for the device's number format, so that nothing was changed.
    pub applied: u32,
    /// Always 0.
    pub reserved: u32,
}

/// How far a trainer has come.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_trainer_info {
    /// sizeof(mdm_trainer_info)
    pub struct_size: usize,
    /// Steps that are done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Images to learn from.
    pub images: u64,
    /// Images that turned out to be unusable; see mdm_trainer_left_out.
    pub left_out: u64,
    /// Mean loss of about the last hundred steps; 0 before the first.
    pub loss: f64,
    /// Seconds spent in steps, in the runs before this one too.
    pub seconds: f64,
    /// Side of the crops in pixels.
    pub size: u32,
    /// Samples a step.
    pub batch: u32,
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_trainer_options {
    const NAME: &'static str = "mdm_trainer_options";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_step_report {
    const NAME: &'static str = "mdm_step_report";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_trainer_info {
    const NAME: &'static str = "mdm_trainer_info";
    const LEAST: usize = size_of::<usize>();
}

fn recipe_of(options: &mdm_trainer_options, start: Option<&Model>) -> Result<Recipe, Failure> {
    if options.reserved != 0 || options.reserved_too != 0 {
        return Err(Failure::argument("reserved members of the mdm_trainer_options must be 0"));
    }
    let mut recipe = Recipe::default();
    let unet = match start {
        Some(model) => model.metadata().unet.clone(),
        None => UnetConfig { model_channels: or_default(options.width, 192), ..UnetConfig::mdm_paper() },
    };
    recipe.unet = UnetConfig { image_size: or_default(options.size, 256), ..unet };
    let unknown = |what, value| Failure::argument(format!("{what}: {value} is no constant of it"));
    let masks = options.corruption == MDM_CORRUPTION_MASK;
    match options.corruption {
        MDM_CORRUPTION_MASK => {
            if let CorruptionKind::Mask { patch, .. } = &mut recipe.corruption.kind {
                *patch = or_default(options.patch, *patch);
            }
        }
        MDM_CORRUPTION_NOISE_LINEAR => {
            recipe.corruption.kind = CorruptionKind::Gaussian { schedule: NoiseSchedule::Linear };
        }
        MDM_CORRUPTION_NOISE_COSINE => {
            recipe.corruption.kind = CorruptionKind::Gaussian { schedule: NoiseSchedule::Cosine };
        }
        other => return Err(unknown("corruption", other)),
    }
    recipe.loss = match options.loss {
        MDM_LOSS_DEFAULT if masks => Loss::default(),
        MDM_LOSS_SSIM => Loss::default(),
        MDM_LOSS_DEFAULT | MDM_LOSS_MEAN_SQUARE => Loss::MeanSquare,
        MDM_LOSS_MEAN_ABSOLUTE => Loss::MeanAbsolute,
        other => return Err(unknown("loss", other)),
    };
    recipe.optimiser.schedule = match options.schedule {
        MDM_SCHEDULE_CONSTANT => Schedule::Constant,
        MDM_SCHEDULE_LINEAR => Schedule::Linear,
        MDM_SCHEDULE_COSINE => Schedule::Cosine,
        other => return Err(unknown("schedule", other)),
    };
    recipe.fixed_timestep = (options.fixed_timestep > 0).then_some(options.fixed_timestep);
    recipe.steps = if options.steps == 0 { recipe.steps } else { options.steps };
    recipe.batch = or_default(options.batch, recipe.batch);
    recipe.microbatch = or_default(options.microbatch, Recipe::default_microbatch(recipe.batch));
    let optimiser = &mut recipe.optimiser;
    optimiser.learning_rate = real_or_default(options.learning_rate, optimiser.learning_rate);
    optimiser.warmup = options.warmup;
    optimiser.weight_decay = options.weight_decay;
    optimiser.clip = (options.clip != 0.0).then_some(options.clip);
    recipe.ema_rates = vec![real_or_default(options.average, 0.9999)];
    recipe.crops.microns_per_pixel = microns_of(options.microns_per_pixel)?;
    recipe.crops.skip_background = (options.skip_background != 0.0).then_some(options.skip_background);
    let range = range_of(options.range, options.range_low, options.range_high)?;
    let of_start = start.map(|model| model.metadata().intensity_range.inherited());
    recipe.crops.range = range.or(of_start).unwrap_or_default();
    let upright = switch(options.upright, "upright")?;
    (recipe.crops.flip, recipe.crops.turn) = (!upright, !upright);
    recipe.recompute = switch(options.recompute, "recompute")?;
    recipe.seed = options.seed;
    recipe.validate()?;
    Ok(recipe)
}

struct OpenTrainer {
    trainer: Mutex<Trainer>,
    /// Raised when the object is freed, so that a run ends.
    freed: CancelToken,
    /// One line for each image that was left out. Lines stay where they are, so that callers may keep their pointers.
    left_out: Mutex<Vec<CString>>,
    images: u64,
}

impl Object for OpenTrainer {
    type Handle = mdm_trainer;
    const NAME: &'static str = "trainer";
}

impl OpenTrainer {
    fn new(trainer: Trainer, images: usize) -> Self {
        Self {
            trainer: Mutex::new(trainer),
            freed: CancelToken::new(),
            left_out: Mutex::default(),
            images: images as u64,
        }
    }

    fn exclusive(&self) -> Result<MutexGuard<'_, Trainer>, Failure> {
        exclusive(&self.trainer, "trainer")
    }

    /// Takes note of images that were left out, so that they can be asked for.
    fn note(&self, trainer: &Trainer) -> usize {
        let mut lines = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend(
            trainer.left_out().into_iter().map(|(name, reason)| c_string(format!("{name}: {reason}"))),
        );
        lines.len()
    }
}

fn failure_of(error: PretrainError) -> Failure {
    match error {
        PretrainError::Library(error) => error.into(),
        diverged @ PretrainError::Diverged { .. } => {
            Failure::new(MDM_TRAIN_ERROR_DIVERGED, diverged.to_string())
        }
    }
}

/// Sets an options struct of `struct_size` bytes to its defaults; MDM_TRAINER_OPTIONS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_options_init(options: *mut mdm_trainer_options, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(options, struct_size) }
}

/// Prepares a run and starts to read images: callbacks may be called from now on. Any thread may call this.
///
/// @param device  where to train; the trainer keeps it alive
/// @param options the recipe; NULL for the paper's
/// @param start   a model whose backbone is trained further, or NULL to start with random parameters
/// @param images  what to learn from
/// @param trainer receives the trainer; free it with mdm_trainer_free
/// @param error   receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI, MDM_ERROR_MODEL, MDM_ERROR_TENSOR,
///         MDM_ERROR_OUT_OF_MEMORY or MDM_ERROR_DEVICE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_new(
    device: *const mdm_device,
    options: *const mdm_trainer_options,
    start: *const mdm_model,
    images: *const mdm_training_images,
    trainer: *mut *mut mdm_trainer,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            wanted(trainer, "trainer")?;
            let device = handles::get::<OpenDevice>(device)?;
            let start = if start.is_null() { None } else { Some(handles::get::<OpenModel>(start)?) };
            let start = start.as_ref().map(|model| &model.model);
            let recipe = recipe_of(&structs::read_or_default(options)?, start)?;
            let images = images_of(images)?;
            let count = images.count();
            let start = match start {
                Some(model) => Start::From(recipe, model),
                None => Start::New(recipe),
            };
            let made = Trainer::new(&device.device, start, images).map_err(failure_of)?;
            deliver(trainer, handles::insert(OpenTrainer::new(made, count))?);
            Ok(())
        })
    }
}

/// Goes on with a run from a checkpoint. With the images that it had it goes on exactly where it was left. Any thread may
/// call this.
///
/// @param device     where to train; the trainer keeps it alive
/// @param checkpoint the file, UTF-8 on every system
/// @param images     what to learn from
/// @param trainer    receives the trainer; free it with mdm_trainer_free
/// @param error      receives an error object on failure; may be NULL
/// @return as mdm_trainer_new, and MDM_ERROR_IO
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_resume(
    device: *const mdm_device,
    checkpoint: *const c_char,
    images: *const mdm_training_images,
    trainer: *mut *mut mdm_trainer,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            wanted(trainer, "trainer")?;
            let device = handles::get::<OpenDevice>(device)?;
            let checkpoint = Checkpoint::open(Path::new(utf8(checkpoint, "checkpoint")?))?;
            let images = images_of(images)?;
            let count = images.count();
            let made =
                Trainer::new(&device.device, Start::Resume(&checkpoint), images).map_err(failure_of)?;
            deliver(trainer, handles::insert(OpenTrainer::new(made, count))?);
            Ok(())
        })
    }
}

/// Runs steps, not beyond the last of the run. Progress is in steps. Callbacks of the mdm_run are called on the calling thread, those
/// that read images on threads of the library.
///
/// Where it fails or is cancelled, the steps that were finished stay; only after MDM_TRAIN_ERROR_DIVERGED the trainer should not be
/// used further.
///
/// @param trainer not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param steps   how many at most; 0 for all that are left
/// @param run     how to watch and stop it; NULL for neither
/// @param report  filled in with the last step where not NULL; its struct_size must be set. Zeros where there was none to do
/// @param error   receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI, MDM_ERROR_IMAGE where no image can be used,
///         MDM_ERROR_BUSY, MDM_ERROR_CANCELLED, MDM_ERROR_OUT_OF_MEMORY, MDM_ERROR_DEVICE_LOST, MDM_ERROR_INTERNAL or
///         MDM_TRAIN_ERROR_DIVERGED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_run(
    trainer: *mut mdm_trainer,
    steps: u64,
    run: *const mdm_run,
    report: *mut mdm_step_report,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenTrainer>(trainer)?;
            let run = structs::read_or_default(run)?;
            if !report.is_null() {
                structs::check(report)?;
            }
            let mut trainer = object.exclusive()?;
            let trainer = &mut *trainer;
            let most = if steps == 0 { u64::MAX } else { steps };
            let done = watched(run, &object.freed, |control| Ok(run_steps(trainer, most, control)))?;
            let last = done.map_err(failure_of)?;
            if report.is_null() {
                return Ok(());
            }
            let known = mdm_step_report {
                struct_size: 0,
                step: trainer.steps_done(),
                loss: last.map_or(0.0, |last| last.loss),
                gradient_norm: last.map_or(0.0, |last| last.gradient_norm),
                learning_rate: last.map_or(0.0, |last| last.learning_rate),
                seconds: last.map_or(0.0, |last| last.time.as_secs_f64()),
                waited_seconds: last.map_or(0.0, |last| last.waited.as_secs_f64()),
                applied: last.is_some_and(|last| last.applied).into(),
                reserved: 0,
            };
            structs::write(report, &known)
        })
    }
}

/// The last step's report, if there was one.
fn run_steps(
    trainer: &mut Trainer,
    most: u64,
    control: &Control<'_>,
) -> Result<Option<StepReport>, PretrainError> {
    let total = most.min(trainer.recipe().steps.saturating_sub(trainer.steps_done()));
    let mut last = None;
    control.report(0, total);
    for done in 0..total {
        control.check()?;
        last = Some(trainer.step(control)?);
        control.report(done + 1, total);
    }
    control.check()?;
    Ok(last)
}

/// Tells how far a trainer has come. Any thread may call this.
///
/// @param trainer not in use by another thread
/// @param info    filled in; its struct_size must be set
/// @param error   receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_BUSY or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_get_info(
    trainer: *const mdm_trainer,
    info: *mut mdm_trainer_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenTrainer>(trainer)?;
            let trainer = &*object.exclusive()?;
            let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let known = mdm_trainer_info {
                struct_size: 0,
                step: trainer.steps_done(),
                steps: trainer.recipe().steps,
                images: object.images,
                left_out: object.note(trainer) as u64,
                loss: trainer.mean_loss().unwrap_or(0.0),
                seconds: trainer.seconds(),
                size: number(trainer.recipe().size()),
                batch: number(trainer.recipe().batch),
            };
            structs::write(info, &known)
        })
    }
}

/// Which image turned out to be unusable, and why: one line of UTF-8, which belongs to the trainer; NULL where there is no such image
/// or trainer. mdm_trainer_get_info tells their number, as far as it was called. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_trainer_left_out(trainer: *const mdm_trainer, index: u64) -> *const c_char {
    answer(std::ptr::null(), || {
        let object = handles::get::<OpenTrainer>(trainer)?;
        let lines = object.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        Ok(lines.get(index).map_or(std::ptr::null(), |line| line.as_ptr()))
    })
}

/// Writes a checkpoint, from which mdm_trainer_resume goes on. It is written under a temporary name beside the path and
/// renamed, so that the path holds the whole of it or what it held before. Any thread may call this.
///
/// @param trainer not in use by another thread
/// @param path    the file, UTF-8 on every system
/// @param error   receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_BUSY, MDM_ERROR_IO, MDM_ERROR_OUT_OF_MEMORY,
///         MDM_ERROR_DEVICE_LOST or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_save(
    trainer: *mut mdm_trainer,
    path: *const c_char,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenTrainer>(trainer)?;
            let path = Path::new(utf8(path, "path")?);
            object.exclusive()?.save(path).map_err(failure_of)
        })
    }
}

/// Makes a model of the backbone as it is now, the moving average of its parameters: to fit heads on, or to export with mdm_model_save.
/// Training further does not change it. Any thread may call this.
///
/// @param trainer     not in use by another thread
/// @param description where the weights come from, in free words, UTF-8; NULL for none
/// @param model       receives the model; free it with mdm_model_free
/// @param error       receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_BUSY, MDM_ERROR_OUT_OF_MEMORY, MDM_ERROR_DEVICE_LOST
///         or MDM_ERROR_INTERNAL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_trainer_model(
    trainer: *mut mdm_trainer,
    description: *const c_char,
    model: *mut *mut mdm_model,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(model, "model")?;
            let object = handles::get::<OpenTrainer>(trainer)?;
            let description = if description.is_null() { "" } else { utf8(description, "description")? };
            let made = object.exclusive()?.backbone(Some(0), description).map_err(failure_of)?;
            deliver(model, handles::insert(OpenModel::new(made))?);
            Ok(())
        })
    }
}

/// Frees a trainer; NULL is allowed. A run of another thread is cancelled, and its memory freed when it has stopped; this does not wait
/// for it, but otherwise for callbacks that read images. Once it returned and no run is left, none is called any more. Any thread may
/// call this, also a callback of the run, but none that reads images.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_trainer_free(trainer: *mut mdm_trainer) {
    answer((), || {
        handles::get::<OpenTrainer>(trainer)?.freed.cancel();
        Ok(())
    });
    free::<OpenTrainer>(trainer);
}
