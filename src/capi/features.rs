//! Features: what a backbone sees, for those who train classifiers of their own.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use super::devices::{OpenDevice, mdm_device};
use super::errors::{
    Failure, MDM_ERROR_BUFFER_TOO_SMALL, MDM_ERROR_CALLBACK, MDM_ERROR_CANCELLED, MDM_OK, answer, call,
    deliver, free, mdm_error, mdm_status, wanted,
};
use super::handles::{self, Object};
use super::images::{mdm_image, microns_of};
use super::intensities::{mdm_range, range_of};
use super::models::{OpenModel, mdm_model};
use super::runs::{controlled, mdm_run};
use super::segmenters::{batch_of, corrupt_of, exclusive, mdm_corrupt, overlap_of};
use super::streams::{Reader, mdm_source};
use super::structs::{self, Versioned};
use crate::image::ImageSource;
use crate::model::FeatureConfig;
use crate::segment::{FeatureOptions, WindowFeatures};
use crate::{CancelToken, Error, Features};

/// Takes features of images with one backbone on one device. It keeps the network's memory from image to image.
///
/// One thread at a time may use it, whichever; a call while another runs returns MDM_ERROR_BUSY.
pub struct mdm_features {
    _private: [u8; 0],
}

/// The features of one window, which exist during a call of an mdm_window_callback.
pub struct mdm_window {
    _private: [u8; 0],
}

/// Whether features are divided by the Frobenius norm of a window's whole feature tensor.
pub type mdm_normalise = u32;

/// As the model says.
pub const MDM_NORMALISE_AS_MODEL: mdm_normalise = 0;
/// They are.
pub const MDM_NORMALISE_YES: mdm_normalise = 1;
/// They are not.
pub const MDM_NORMALISE_NO: mdm_normalise = 2;

/// Which features are taken, and how. Zero is every member's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_feature_options {
    /// sizeof(mdm_feature_options)
    pub struct_size: usize,
    /// Timesteps at which the network is run, 0 to the model's last_timestep; NULL takes the model's.
    pub timesteps: *const u32,
    /// Number of timesteps, at most 64; 0 where timesteps is NULL.
    pub timestep_count: usize,
    /// Decoder blocks, ascending; NULL takes the model's.
    pub blocks: *const u32,
    /// Number of blocks; 0 where blocks is NULL.
    pub block_count: usize,
    /// Size of an image's pixel in micrometres, whatever the image says; 0 believes the image.
    pub microns_per_pixel: f64,
    /// Part of a window shared with its neighbour, in (0, 1); 0 takes the model's, MDM_OVERLAP_NONE none.
    pub overlap: f64,
    /// Decides which patches are hidden, or the noise that is added.
    pub seed: u64,
    /// Windows that go through the network at a time; 0 for a good number.
    pub batch: u32,
    /// Side of a window in pixels at the model's scale, rounded up to what the network can divide; 0 takes the model's.
    pub window: u32,
    /// One of the MDM_CORRUPT constants.
    pub corrupt: mdm_corrupt,
    /// Class that a class-conditional backbone is told; others ignore it.
    pub backbone_class: u32,
    /// One of the MDM_NORMALISE constants.
    pub normalise: mdm_normalise,
    /// Must be 0.
    pub reserved: u32,
    /// With MDM_RANGE_FIXED the stored value that the network sees as black; with MDM_RANGE_PERCENTILE a percentage, in [0, 100).
    pub range_low: f64,
    /// With MDM_RANGE_FIXED the stored value that the network sees as white; with MDM_RANGE_PERCENTILE a percentage, up to 100.
    pub range_high: f64,
    /// One of the MDM_RANGE constants.
    pub range: mdm_range,
    /// Must be 0.
    pub reserved_too: u32,
}

/// What a feature extractor delivers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_features_info {
    /// sizeof(mdm_features_info)
    pub struct_size: usize,
    /// Features of a pixel: channels of all maps.
    pub channels: u32,
    /// Maps of a window: one for each timestep and block, timesteps outermost.
    pub maps: u32,
    /// Side of a window in pixels at the model's scale.
    pub window: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Where a window lies and what it holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_window_info {
    /// sizeof(mdm_window_info)
    pub struct_size: usize,
    /// First row in the image at the model's scale; negative where an image smaller than the window is padded.
    pub top: i32,
    /// First column in the image at the model's scale; likewise.
    pub left: i32,
    /// Rows at the model's scale.
    pub height: u32,
    /// Columns at the model's scale.
    pub width: u32,
    /// Maps.
    pub maps: u32,
    /// Features of a pixel.
    pub channels: u32,
    /// What features are divided by; 1 where they are not normalised. mdm_window_pixel does it, maps hold them undivided.
    pub norm: f32,
    /// Always 0.
    pub reserved: u32,
}

/// The output of a decoder block for a window, at its own resolution.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_map {
    /// sizeof(mdm_map)
    pub struct_size: usize,
    /// [height][width][channels]; valid as long as the window.
    pub data: *const f32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// Channels.
    pub channels: u32,
    /// The timestep at which it was taken.
    pub timestep: u32,
    /// The decoder block whose output it is.
    pub block: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Is shown the features of a window, window after window in rows from top to bottom, on the thread that called the
/// library. It must neither throw nor jump out.
///
/// @param user_data as given in the call
/// @param window    to be asked with the mdm_window functions during this call
/// @return MDM_OK to go on; MDM_ERROR_CANCELLED stops the run, which returns the same; with anything else the run returns
///         MDM_ERROR_CALLBACK
pub type mdm_window_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, window: *const mdm_window) -> mdm_status>;

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_feature_options {
    const NAME: &'static str = "mdm_feature_options";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_features_info {
    const NAME: &'static str = "mdm_features_info";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_window_info {
    const NAME: &'static str = "mdm_window_info";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers and a pointer behind a size.
unsafe impl Versioned for mdm_map {
    const NAME: &'static str = "mdm_map";
    const LEAST: usize = size_of::<usize>();
}

struct OpenFeatures {
    features: Mutex<Features>,
    /// Raised when the object is freed, so that a run ends.
    freed: CancelToken,
    config: Arc<FeatureConfig>,
    info: mdm_features_info,
    /// Micrometres per pixel: what the options say of images, and what the model was trained on.
    microns: (Option<f64>, Option<f64>),
}

impl Object for OpenFeatures {
    type Handle = mdm_features;
    const NAME: &'static str = "feature extractor";
}

struct Window {
    features: WindowFeatures,
    config: Arc<FeatureConfig>,
}

impl Object for Window {
    type Handle = mdm_window;
    const NAME: &'static str = "window";
}

/// A list of the caller, or nothing.
///
/// # Safety
/// `values` points to `count` numbers or is NULL.
unsafe fn list(values: *const u32, count: usize, name: &str) -> Result<Option<Vec<u32>>, Failure> {
    const MOST: usize = 1024;
    if values.is_null() != (count == 0) || count > MOST {
        return Err(Failure::argument(format!("{name}: {count} numbers at {values:p}")));
    }
    // SAFETY: as demanded of the caller; no alignment is assumed.
    let read = |index| unsafe { values.wrapping_add(index).read_unaligned() };
    Ok((count > 0).then(|| (0..count).map(read).collect()))
}

/// # Safety
/// The lists are as long as the options say.
#[doc(hidden)]
pub unsafe fn options_of(
    options: &mdm_feature_options,
    model: &OpenModel,
) -> Result<FeatureOptions, Failure> {
    let mut features = model.model.metadata().features.clone();
    // SAFETY: as demanded of the caller.
    let (timesteps, blocks) = unsafe {
        (
            list(options.timesteps, options.timestep_count, "timesteps")?,
            list(options.blocks, options.block_count, "blocks")?,
        )
    };
    if let Some(timesteps) = timesteps {
        features.timesteps = timesteps;
    }
    if let Some(blocks) = blocks {
        features.blocks = blocks.into_iter().map(|block| block as usize).collect();
    }
    match options.normalise {
        MDM_NORMALISE_AS_MODEL => {}
        MDM_NORMALISE_YES => features.normalise = true,
        MDM_NORMALISE_NO => features.normalise = false,
        other => {
            return Err(Failure::argument(format!(
                "normalise: {other} is none of the MDM_NORMALISE constants"
            )));
        }
    }
    if options.reserved != 0 || options.reserved_too != 0 {
        return Err(Failure::argument("reserved members of the mdm_feature_options must be 0"));
    }
    Ok(FeatureOptions {
        // Told with each image, since a source's levels differ.
        microns_per_pixel: None,
        range: range_of(options.range, options.range_low, options.range_high)?,
        batch: batch_of(options.batch)?,
        window: (options.window > 0).then_some(options.window as usize),
        overlap: overlap_of(options.overlap),
        seed: options.seed,
        corrupt: corrupt_of(options.corrupt)?,
        class: options.backbone_class,
        features: Some(features),
    })
}

/// Sets an options struct of `struct_size` bytes to its defaults; MDM_FEATURE_OPTIONS_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_feature_options_init(options: *mut mdm_feature_options, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(options, struct_size) }
}

/// Makes a feature extractor; the model need not have heads. Memory for the network is taken with the first image. Any
/// thread may call this.
///
/// @param model    the model; the extractor keeps it alive
/// @param device   where to run; the extractor keeps it alive
/// @param options  settings; NULL for the model's own
/// @param features receives the extractor; free it with mdm_features_free
/// @param error    receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI, or MDM_ERROR_MODEL for heads
///         without a backbone
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_features_new(
    model: *const mdm_model,
    device: *const mdm_device,
    options: *const mdm_feature_options,
    features: *mut *mut mdm_features,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(features, "features")?;
            let model = handles::get::<OpenModel>(model)?;
            let device = handles::get::<OpenDevice>(device)?;
            let options = structs::read_or_default(options)?;
            let microns = (microns_of(options.microns_per_pixel)?, model.model.metadata().microns_per_pixel);
            let options = options_of(&options, &model)?;
            let made = Features::new(&model.model, &device.device, options)?;
            let config = made.config();
            let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let info = mdm_features_info {
                struct_size: 0,
                channels: number(made.channels()),
                maps: number(config.timesteps.len() * config.blocks.len()),
                window: number(made.window()),
                reserved: 0,
            };
            let made = OpenFeatures {
                config: Arc::new(config.clone()),
                features: Mutex::new(made),
                freed: CancelToken::new(),
                info,
                microns,
            };
            deliver(features, handles::insert(made));
            Ok(())
        })
    }
}

/// Tells what an extractor delivers. Any thread may call this.
///
/// @param features the extractor
/// @param info     filled in; its struct_size must be set
/// @param error    receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_features_get_info(
    features: *const mdm_features,
    info: *mut mdm_features_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe { call(error, || structs::write(info, &handles::get::<OpenFeatures>(features)?.info)) }
}

/// Shows the features of all windows of an image. Callbacks run on the calling thread.
///
/// @param features  not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param image     the image; for a single window give one of a window's size
/// @param visit     is shown the windows
/// @param user_data handed to visit
/// @param run       how to watch and stop it; NULL for neither
/// @param error     receives an error object on failure; may be NULL
/// @return as mdm_segmenter_run, and MDM_ERROR_CALLBACK where visit failed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_features_run(
    features: *mut mdm_features,
    image: *const mdm_image,
    visit: mdm_window_callback,
    user_data: *mut c_void,
    run: *const mdm_run,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFeatures>(features)?;
            let mut view = structs::read(image)?.view(object.microns.0)?;
            extract(&object, &mut view, &std::cell::RefCell::default(), visit, user_data, run)
        })
    }
}

/// As mdm_features_run, for an image that is read as it is needed; see mdm_source.
///
/// @param features  not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param source    the image
/// @param visit     is shown the windows
/// @param user_data handed to visit
/// @param run       how to watch and stop it; NULL for neither
/// @param error     receives an error object on failure; may be NULL
/// @return as mdm_segmenter_run, and MDM_ERROR_CALLBACK where a callback failed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_features_run_source(
    features: *mut mdm_features,
    source: *const mdm_source,
    visit: mdm_window_callback,
    user_data: *mut c_void,
    run: *const mdm_run,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenFeatures>(features)?;
            let stopped = std::cell::RefCell::default();
            let mut reader = Reader::new(structs::read(source)?, object.microns, &stopped)?;
            extract(&object, &mut reader, &stopped, visit, user_data, run)
        })
    }
}

/// # Safety
/// The callbacks can be called with their user data.
unsafe fn extract(
    object: &OpenFeatures,
    source: &mut dyn ImageSource,
    stopped: &std::cell::RefCell<Option<Failure>>,
    visit: mdm_window_callback,
    user_data: *mut c_void,
    run: *const mdm_run,
) -> Result<(), Failure> {
    let Some(visit) = visit else { return Err(Failure::argument("visit is NULL")) };
    let mut features = exclusive(&object.features, "feature extractor")?;
    let mut show = |features: WindowFeatures| {
        let window = handles::insert(Window { features, config: object.config.clone() });
        // SAFETY: as demanded of the caller.
        let status = unsafe { visit(user_data, window) };
        drop(handles::remove::<Window>(window));
        match status {
            MDM_OK => return Ok(()),
            MDM_ERROR_CANCELLED => {}
            other => {
                let message = format!("the visit callback returned {other}");
                *stopped.borrow_mut() = Some(Failure::new(MDM_ERROR_CALLBACK, message));
            }
        }
        Err(Error::Cancelled)
    };
    // SAFETY: as demanded of the caller.
    let result = unsafe {
        controlled(structs::read_or_default(run)?, &object.freed, |control| {
            features.extract_from(source, control, &mut show)
        })
    };
    result.map_err(|failure| stopped.take().unwrap_or(failure))
}

/// Tells where a window lies and what it holds.
///
/// @param window the window; only within the callback that was given it, on any thread
/// @param info   filled in; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_window_get_info(
    window: *const mdm_window,
    info: *mut mdm_window_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let Window { features, .. } = &*handles::get::<Window>(window)?;
            // Sides of images are at most 2^30.
            let known = mdm_window_info {
                struct_size: 0,
                top: features.top as i32,
                left: features.left as i32,
                height: features.height as u32,
                width: features.width as u32,
                maps: features.maps.len() as u32,
                channels: features.channels() as u32,
                norm: features.norm,
                reserved: 0,
            };
            structs::write(info, &known)
        })
    }
}

/// Tells a map of a window.
///
/// @param window the window; only within the callback that was given it, on any thread
/// @param index  0 to maps - 1
/// @param map    filled in; its struct_size must be set
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_window_map(
    window: *const mdm_window,
    index: u32,
    map: *mut mdm_map,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let Window { features, config } = &*handles::get::<Window>(window)?;
            let index = index as usize;
            let found = features.maps.get(index).ok_or_else(|| {
                Failure::argument(format!("there is no map {index}; the window has {}", features.maps.len()))
            })?;
            let blocks = config.blocks.len();
            let known = mdm_map {
                struct_size: 0,
                data: found.data.as_ptr(),
                height: found.height as u32,
                width: found.width as u32,
                channels: found.channels as u32,
                timestep: config.timesteps[index / blocks],
                block: config.blocks[index % blocks] as u32,
                reserved: 0,
            };
            structs::write(map, &known)
        })
    }
}

/// Writes the features of one pixel of a window: all maps interpolated bilinearly (align_corners = false), concatenated and
/// divided by the norm.
///
/// @param window the window; only within the callback that was given it, on any thread
/// @param y      row in the window
/// @param x      column in the window
/// @param out    receives as many values as there are channels
/// @param size   bytes that may be written there
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT or MDM_ERROR_BUFFER_TOO_SMALL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_window_pixel(
    window: *const mdm_window,
    y: u32,
    x: u32,
    out: *mut f32,
    size: usize,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(out, "out")?;
            let Window { features, .. } = &*handles::get::<Window>(window)?;
            let (y, x) = (y as usize, x as usize);
            if y >= features.height || x >= features.width {
                return Err(Failure::argument(format!(
                    "pixel {y}, {x} is not in the {} x {} window",
                    features.height, features.width
                )));
            }
            let needed = 4 * features.channels();
            if size < needed {
                let message = format!("out: {needed} bytes are needed, the buffer has {size}");
                return Err(Failure::new(MDM_ERROR_BUFFER_TOO_SMALL, message));
            }
            let mut values = vec![0.0; features.channels()];
            features.pixel(y, x, &mut values);
            std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), out.cast(), needed);
            Ok(())
        })
    }
}

/// Frees an extractor; NULL is allowed. A run of another thread is cancelled, and its memory freed when it has stopped. Any
/// thread may call this, also a callback of the run.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_features_free(features: *mut mdm_features) {
    answer((), || {
        handles::get::<OpenFeatures>(features)?.freed.cancel();
        Ok(())
    });
    free::<OpenFeatures>(features);
}
