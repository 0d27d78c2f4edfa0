//! Models become files.

use std::ffi::c_char;
use std::path::Path;

use mdm::capi::devices::utf8;
use mdm::capi::errors::{Failure, call, mdm_error, mdm_status};
use mdm::capi::handles;
use mdm::capi::models::{OpenModel, mdm_model};
use mdm::model::{Save, StoredType};

/// What of a model is written; bits that are combined by |.
pub type mdm_save_parts = u32;

/// The backbone's weights.
pub const MDM_SAVE_BACKBONE: mdm_save_parts = 1;
/// The heads, always in f32. A file of heads alone is small and opened with mdm_model_open_heads.
pub const MDM_SAVE_HEADS: mdm_save_parts = 2;

/// How a backbone's weights are stored.
pub type mdm_stored_type = u32;

/// Each tensor as it was stored.
pub const MDM_STORED_AS_IS: mdm_stored_type = 0;
/// 4 bytes a value.
pub const MDM_STORED_F32: mdm_stored_type = 1;
/// 2 bytes a value, rounded to 11 bits.
pub const MDM_STORED_F16: mdm_stored_type = 2;
/// 2 bytes a value, rounded to 8 bits; none is too large.
pub const MDM_STORED_BF16: mdm_stored_type = 3;

pub(super) fn stored_of(stored: mdm_stored_type) -> Result<StoredType, Failure> {
    match stored {
        MDM_STORED_AS_IS => Ok(StoredType::AsIs),
        MDM_STORED_F32 => Ok(StoredType::F32),
        MDM_STORED_F16 => Ok(StoredType::F16),
        MDM_STORED_BF16 => Ok(StoredType::Bf16),
        other => Err(Failure::argument(format!("stored: {other} is none of the MDM_STORED constants"))),
    }
}

/// Writes a model file, which mdm_model_open reads. It is written under a temporary name beside the path and renamed, so that
/// the path holds the whole of it or what it held before. Any thread may call this.
///
/// A backbone whose values are rounded is another backbone: heads in files of their own do not fit it.
///
/// @param model  the model
/// @param path   the file, UTF-8 on every system
/// @param parts  MDM_SAVE_BACKBONE, MDM_SAVE_HEADS or both
/// @param stored how the backbone's weights are stored: one of the MDM_STORED constants
/// @param error  receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT (also for parts that the model has not), MDM_ERROR_MODEL,
///         MDM_ERROR_TENSOR or MDM_ERROR_IO
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_model_save(
    model: *const mdm_model,
    path: *const c_char,
    parts: mdm_save_parts,
    stored: mdm_stored_type,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let model = handles::get::<OpenModel>(model)?;
            let path = Path::new(utf8(path, "path")?);
            let stored = stored_of(stored)?;
            if parts == 0 || parts & !(MDM_SAVE_BACKBONE | MDM_SAVE_HEADS) != 0 {
                return Err(Failure::argument(format!(
                    "parts: {parts:#x} is not MDM_SAVE_BACKBONE, MDM_SAVE_HEADS or both"
                )));
            }
            let heads = parts & MDM_SAVE_HEADS != 0;
            if heads && model.model.heads().is_empty() {
                return Err(Failure::argument("parts: the model has no heads"));
            }
            let backbone = (parts & MDM_SAVE_BACKBONE != 0).then_some(stored);
            Ok(model.model.save(path, Save { backbone, heads })?)
        })
    }
}
