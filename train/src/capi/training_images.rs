//! Images that trainers learn from.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mdm::capi::devices::utf8;
use mdm::capi::errors::{Failure, MDM_OK, call_back, mdm_status};
use mdm::capi::images::{mdm_image, microns_of};
use mdm::capi::structs::{self, Versioned};
use mdm::{Error, ImageView};

use super::arguments::switch;
use crate::pretrain::{FileImages, Images};

/// Reads an image for a trainer, on a thread of the library.
///
/// It must neither throw nor jump out, nor call functions on the trainer. A failure leaves the image out of the run.
///
/// @param user_data as given in the mdm_training_images
/// @param index     0 to count - 1
/// @param image     to be filled in; zeros and its size at first. What it points to must stay until it is released
/// @return MDM_OK, or anything else where the image cannot be had
pub type mdm_read_image_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, index: u64, image: *mut mdm_image) -> mdm_status>;

/// Is told that an image that was read is not used any more, on the thread that read it.
///
/// @param user_data as given in the mdm_training_images
/// @param index     as it was asked for
/// @param image     as it was filled in
pub type mdm_release_image_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, index: u64, image: *const mdm_image)>;

/// Images to learn from: files, or what callbacks hand over. Set paths or read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_training_images {
    /// sizeof(mdm_training_images)
    pub struct_size: usize,
    /// Files (PNG, JPEG, TIFF or BMP) and folders of such, UTF-8, as many as count says; NULL where images are read by callbacks.
    pub paths: *const *const c_char,
    /// Number of paths, or of images that read knows.
    pub count: u64,
    /// Reads an image; NULL where paths are given.
    pub read: mdm_read_image_callback,
    /// Is told that an image is not used any more; may be NULL.
    pub release: mdm_release_image_callback,
    /// Handed to the callbacks.
    pub user_data: *mut c_void,
    /// Size of the pixels of all images in micrometres, whatever they say; 0 believes them.
    pub microns_per_pixel: f64,
    /// 1 if several threads may be in the callbacks at once; 0 for one at a time.
    pub concurrent: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: numbers, pointers and optional function pointers behind a size.
unsafe impl Versioned for mdm_training_images {
    const NAME: &'static str = "mdm_training_images";
    const LEAST: usize = size_of::<usize>();
}

/// Images that callbacks of the caller hand over.
struct CallbackImages {
    given: mdm_training_images,
    microns: Option<f64>,
    one_at_a_time: Option<Mutex<()>>,
}

// SAFETY: the caller is told that threads of the library call back with its user data, and says whether several may.
unsafe impl Send for CallbackImages {}
// SAFETY: as above.
unsafe impl Sync for CallbackImages {}

impl Images for CallbackImages {
    fn count(&self) -> usize {
        usize::try_from(self.given.count).unwrap_or(usize::MAX)
    }

    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    fn read(&self, index: usize, take: &mut dyn FnMut(&ImageView<'_>) -> mdm::Result<()>) -> mdm::Result<()> {
        let Some(read) = self.given.read else { return Err(Error::invalid("read", "is NULL")) };
        let _alone =
            self.one_at_a_time.as_ref().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: `Versioned` says that zeros are a value.
        let mut image: mdm_image = unsafe { std::mem::zeroed() };
        image.struct_size = size_of::<mdm_image>();
        let (user_data, number) = (self.given.user_data, index as u64);
        // SAFETY: the callback can be called with its user data until the trainer is freed.
        let status = call_back(|| unsafe { read(user_data, number, &raw mut image) });
        if status != MDM_OK {
            return Err(Error::Image(format!("image {index}: the read callback returned {status}")));
        }
        // SAFETY: the caller promises that the pixels stay until they are released.
        let view = unsafe { image.view(self.microns) };
        let taken = view.map_err(|failure| Error::Image(failure.message())).and_then(|view| take(&view));
        if let Some(release) = self.given.release {
            // SAFETY: as above.
            call_back(|| unsafe { release(user_data, number, &raw const image) });
        }
        taken
    }
}

/// # Safety
/// The struct and what it points to are as the header demands.
pub(super) unsafe fn images_of(images: *const mdm_training_images) -> Result<Arc<dyn Images>, Failure> {
    // SAFETY: as demanded of the caller.
    let given = unsafe { structs::read(images) }?;
    let microns = microns_of(given.microns_per_pixel)?;
    let concurrent = switch(given.concurrent, "concurrent")?;
    if given.reserved != 0 {
        return Err(Failure::argument("reserved of the mdm_training_images must be 0"));
    }
    if given.paths.is_null() == given.read.is_none() {
        return Err(Failure::argument("mdm_training_images: set either paths or read"));
    }
    if given.count == 0 || given.count >= 1 << 32 {
        return Err(Failure::argument(format!("count: {} images", given.count)));
    }
    if given.read.is_some() {
        let one_at_a_time = (!concurrent).then(Mutex::default);
        return Ok(Arc::new(CallbackImages { given, microns, one_at_a_time }));
    }
    let mut inputs = Vec::new();
    for index in 0..given.count as usize {
        // SAFETY: as demanded of the caller; no alignment is assumed.
        let path = unsafe { utf8(given.paths.wrapping_add(index).read_unaligned(), "a path") }?;
        inputs.push(PathBuf::from(path));
    }
    let (files, unusable) = mdm_images::expand(&inputs, true, None);
    if let Some(unusable) = unusable.first() {
        let (input, reason) = (unusable.input.display(), &unusable.reason);
        return Err(Failure::argument(format!("paths: {input}: {reason}")));
    }
    if files.is_empty() {
        return Err(Failure::argument("paths: there is no image in them"));
    }
    let paths = files.into_iter().map(|file| file.path).collect();
    Ok(Arc::new(FileImages::new(paths).with_microns_per_pixel(microns)))
}

/// Sets images of `struct_size` bytes to zeros and their size; MDM_TRAINING_IMAGES_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_training_images_init(images: *mut mdm_training_images, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(images, struct_size) }
}
