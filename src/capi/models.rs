//! Models and what they say about themselves.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;

use super::devices::utf8;
use super::errors::{
    Failure, MDM_ERROR_OUT_OF_MEMORY, answer, c_string, call, deliver, free, mdm_error, mdm_status, wanted,
};
use super::handles::{self, Object};
use super::intensities::{mdm_range, numbers_of};
use super::log::{self, MDM_LOG_INFO, MDM_LOG_WARNING};
use super::structs::{self, Versioned};
use crate::Model;
use crate::model::BackboneOptions;

/// A model: a backbone, heads fitted on one, or both. It never changes; any number of threads may use it, and all segmenters
/// made from it share its weights.
pub struct mdm_model {
    _private: [u8; 0],
}

/// What a model says about itself. Strings are UTF-8, never NULL, and belong to the model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_model_info {
    /// sizeof(mdm_model_info)
    pub struct_size: usize,
    /// The file it was opened from; empty for a model from memory.
    pub path: *const c_char,
    /// Where the weights come from, in free words.
    pub description: *const c_char,
    /// Values of the backbone.
    pub parameters: u64,
    /// Size of a pixel of the images it was trained on, in micrometres; 0 where that is unknown.
    pub microns_per_pixel: f64,
    /// Part of a window shared with its neighbour, 0 to 0.95.
    pub overlap: f64,
    /// Side of a sliding window in pixels at the model's scale.
    pub window: u32,
    /// Classes that it tells apart; 0 for a mere backbone.
    pub classes: u32,
    /// Heads in its ensemble; 0 for a mere backbone, which cannot segment.
    pub heads: u32,
    /// 1 if the backbone's weights are there, 0 for heads alone, which cannot segment.
    pub has_backbone: u32,
    /// Channels of the images that the network sees. Others are converted: grey is repeated, colour becomes luminance.
    pub input_channels: u32,
    /// Decoder blocks, from which features can be taken; see mdm_model_block.
    pub blocks: u32,
    /// The last timestep that features can be taken at.
    pub last_timestep: u32,
    /// What had to be assumed about the backbone; see mdm_model_assumption.
    pub assumptions: u32,
    /// The stored value that the network sees as black, or its percentile, as range says; of the first channel.
    pub range_low: f64,
    /// The stored value that the network sees as white, or its percentile.
    pub range_high: f64,
    /// The least stored value of the images that the heads were fitted on, but for rare ones; 0 and 0 where that is unknown.
    pub seen_low: f64,
    /// The largest stored value of the images that the heads were fitted on.
    pub seen_high: f64,
    /// How stored values become what the network sees: one of the MDM_RANGE constants but MDM_RANGE_AS_MODEL.
    pub range: mdm_range,
    /// Always 0.
    pub reserved: u32,
}

/// A class of a model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_class_info {
    /// sizeof(mdm_class_info)
    pub struct_size: usize,
    /// For people: UTF-8, never NULL. It belongs to the model.
    pub name: *const c_char,
    /// Red of its colour in overlays.
    pub red: u8,
    /// Green of its colour in overlays.
    pub green: u8,
    /// Blue of its colour in overlays.
    pub blue: u8,
    /// Always 0.
    pub reserved: [u8; 5],
}

/// The output of a decoder block.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_block_info {
    /// sizeof(mdm_block_info)
    pub struct_size: usize,
    /// Channels.
    pub channels: u32,
    /// How many times smaller than the window it is, along a side.
    pub downsampling: u32,
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_model_info {
    const NAME: &'static str = "mdm_model_info";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers and pointers behind a size.
unsafe impl Versioned for mdm_class_info {
    const NAME: &'static str = "mdm_class_info";
    const LEAST: usize = size_of::<usize>();
}

// SAFETY: numbers behind a size.
unsafe impl Versioned for mdm_block_info {
    const NAME: &'static str = "mdm_block_info";
    const LEAST: usize = size_of::<usize>();
}

#[doc(hidden)]
pub struct OpenModel {
    #[doc(hidden)]
    pub model: Model,
    path: CString,
    description: CString,
    classes: Vec<CString>,
    assumptions: Vec<CString>,
}

impl Object for OpenModel {
    type Handle = mdm_model;
    const NAME: &'static str = "model";
}

impl OpenModel {
    #[doc(hidden)]
    pub fn new(model: Model) -> Self {
        let path = model.path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let metadata = model.metadata();
        log::write(MDM_LOG_INFO, || {
            let from = if path.is_empty() { "memory" } else { &path };
            format!("model from {from}: {} classes, {} heads", metadata.classes.len(), metadata.heads)
        });
        for assumption in model.assumptions() {
            log::write(MDM_LOG_WARNING, || format!("assumed of the model: {assumption}"));
        }
        Self {
            path: c_string(path),
            description: c_string(&metadata.description),
            classes: metadata.classes.iter().map(|class| c_string(&class.name)).collect(),
            assumptions: model.assumptions().iter().map(c_string).collect(),
            model,
        }
    }

    fn info(&self) -> mdm_model_info {
        let metadata = self.model.metadata();
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let (range, range_low, range_high) = numbers_of(&metadata.intensity_range);
        let seen = metadata.intensities_seen.map(|seen| seen.stored);
        mdm_model_info {
            struct_size: 0,
            path: self.path.as_ptr(),
            description: self.description.as_ptr(),
            parameters: metadata.unet.parameter_count(),
            microns_per_pixel: metadata.microns_per_pixel.unwrap_or(0.0),
            overlap: metadata.overlap,
            window: number(metadata.window),
            classes: number(metadata.classes.len()),
            heads: number(self.model.heads().len()),
            has_backbone: self.model.has_backbone().into(),
            input_channels: number(metadata.unet.in_channels),
            blocks: number(metadata.unet.decoder_blocks()),
            last_timestep: metadata.corruption.last_timestep(),
            assumptions: number(self.assumptions.len()),
            range_low,
            range_high,
            seen_low: seen.map_or(0.0, |seen| seen.low),
            seen_high: seen.map_or(0.0, |seen| seen.high),
            range,
            reserved: 0,
        }
    }
}

/// Opens a model file. Any thread may call this.
///
/// The file is read when its values are needed: it should be left as it is while the model or a segmenter made from it lives, and
/// what is missing or changed then is an error or other values. Replacing it by renaming another file over it is fine.
///
/// @param path  the file, UTF-8 on every system
/// @param model receives the model; free it with mdm_model_free
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_IO, MDM_ERROR_MODEL or MDM_ERROR_TENSOR
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_open(
    path: *const c_char,
    model: *mut *mut mdm_model,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(model, "model")?;
            let opened = OpenModel::new(Model::open(Path::new(utf8(path, "path")?))?);
            deliver(model, handles::insert(opened)?);
            Ok(())
        })
    }
}

/// Opens a file of heads and the file of the backbone that they were fitted on, which is read once to make sure. Any
/// thread may call this. See mdm_model_open for what both files demand.
///
/// @param heads    the file of heads, UTF-8
/// @param backbone the file of the backbone, UTF-8
/// @param model    receives the model; free it with mdm_model_free
/// @param error    receives an error object on failure; may be NULL
/// @return as mdm_model_open; MDM_ERROR_MODEL also where the two do not belong together
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_open_heads(
    heads: *const c_char,
    backbone: *const c_char,
    model: *mut *mut mdm_model,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(model, "model")?;
            let backbone = Path::new(utf8(backbone, "backbone")?);
            let options = BackboneOptions::default();
            let opened = Model::open_with(Path::new(utf8(heads, "heads")?), Some(backbone), &options)?;
            deliver(model, handles::insert(OpenModel::new(opened))?);
            Ok(())
        })
    }
}

/// Takes a model from memory: the content of a model file. It is copied, so that the caller may free it afterwards; a
/// large model takes less memory from a file, of which a part at a time is read. Any thread may call this.
///
/// @param data  the bytes
/// @param size  their number
/// @param model receives the model; free it with mdm_model_free
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_MODEL, MDM_ERROR_TENSOR or MDM_ERROR_OUT_OF_MEMORY
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_from_memory(
    data: *const c_void,
    size: usize,
    model: *mut *mut mdm_model,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            wanted(model, "model")?;
            if data.is_null() || size > isize::MAX as usize {
                return Err(Failure::argument(format!("data: {size} bytes at {data:p}")));
            }
            let mut bytes = Vec::new();
            if bytes.try_reserve_exact(size).is_err() {
                let message = format!("{size} bytes for a copy of the model; open it from a file");
                return Err(Failure::new(MDM_ERROR_OUT_OF_MEMORY, message));
            }
            bytes.extend_from_slice(std::slice::from_raw_parts(data.cast::<u8>(), size));
            deliver(model, handles::insert(OpenModel::new(Model::from_bytes(bytes)?))?);
            Ok(())
        })
    }
}

/// Tells what is known of a model. The strings belong to the model. Any thread may call this.
///
/// @param model the model
/// @param info  filled in; its struct_size must be set
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_get_info(
    model: *const mdm_model,
    info: *mut mdm_model_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe { call(error, || structs::write(info, &handles::get::<OpenModel>(model)?.info())) }
}

/// Tells name and colour of a class. The name belongs to the model. Any thread may call this.
///
/// @param model the model
/// @param index 0 to classes - 1: the value of its pixels in a label image
/// @param info  filled in; its struct_size must be set
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_class(
    model: *const mdm_model,
    index: u32,
    info: *mut mdm_class_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let model = handles::get::<OpenModel>(model)?;
            let classes = &model.model.metadata().classes;
            let (Some(class), Some(name)) = (classes.get(index as usize), model.classes.get(index as usize))
            else {
                return Err(Failure::argument(format!(
                    "there is no class {index}; the model has {}",
                    classes.len()
                )));
            };
            let [red, green, blue] = class.colour;
            let class =
                mdm_class_info { struct_size: 0, name: name.as_ptr(), red, green, blue, reserved: [0; 5] };
            structs::write(info, &class)
        })
    }
}

/// Tells the shape of a decoder block's output. Any thread may call this.
///
/// @param model the model
/// @param index 0, the coarsest, to blocks - 1
/// @param info  filled in; its struct_size must be set
/// @param error receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE or MDM_ERROR_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_block(
    model: *const mdm_model,
    index: u32,
    info: *mut mdm_block_info,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let model = handles::get::<OpenModel>(model)?;
            let unet = &model.model.metadata().unet;
            let blocks = unet.decoder_blocks();
            if index as usize >= blocks {
                return Err(Failure::argument(format!("there is no block {index}; the model has {blocks}")));
            }
            let (channels, downsampling) = unet.block_shape(index as usize);
            let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let block = mdm_block_info {
                struct_size: 0,
                channels: number(channels),
                downsampling: number(downsampling),
            };
            structs::write(info, &block)
        })
    }
}

/// What had to be assumed about the backbone because nobody said it and its shapes do not show it. The string belongs to
/// the model; NULL where there is no such assumption or model. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_model_assumption(model: *const mdm_model, index: u32) -> *const c_char {
    answer(std::ptr::null(), || {
        let model = handles::get::<OpenModel>(model)?;
        Ok(model.assumptions.get(index as usize).map_or(std::ptr::null(), |text| text.as_ptr()))
    })
}

/// Frees a model; NULL is allowed. Segmenters made from it keep its weights alive. Any thread may call this.
#[unsafe(no_mangle)]
pub extern "C" fn mdm_model_free(model: *mut mdm_model) {
    free::<OpenModel>(model);
}
