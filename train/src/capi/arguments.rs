//! What several functions take.

use std::ffi::c_char;

use mdm::capi::devices::utf8;
use mdm::capi::errors::Failure;
use mdm::model::Class;

/// Classes of a caller: names, and red, green and blue of each; both may be NULL.
///
/// # Safety
/// `names` has `count` strings and `colours` 3 x `count` bytes, unless they are NULL.
pub(super) unsafe fn classes_of(
    names: *const *const c_char,
    colours: *const u8,
    count: u32,
) -> Result<Vec<Class>, Failure> {
    if !(2..=255).contains(&count) {
        return Err(Failure::argument(format!("classes: {count}; 2 to 255 can be told apart")));
    }
    let mut classes = Class::numbered(count as usize);
    for (index, class) in classes.iter_mut().enumerate() {
        // SAFETY: as demanded of the caller; no alignment is assumed.
        unsafe {
            if !names.is_null() {
                let name = names.wrapping_add(index).read_unaligned();
                utf8(name, "a name of class_names")?.clone_into(&mut class.name);
            }
            if !colours.is_null() {
                class.colour = colours.wrapping_add(3 * index).cast::<[u8; 3]>().read_unaligned();
            }
        }
    }
    Ok(classes)
}

/// A switch of an options struct.
pub(super) fn switch(value: u32, name: &str) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::argument(format!("{name}: {other} is neither 0 nor 1"))),
    }
}

/// A setting, or its default for 0.
pub(super) fn or_default(value: impl TryInto<usize> + PartialEq + Default + Copy, default: usize) -> usize {
    if value == Default::default() { default } else { value.try_into().unwrap_or(usize::MAX) }
}

/// As [`or_default`].
pub(super) fn real_or_default(value: f64, default: f64) -> f64 {
    if value == 0.0 { default } else { value }
}
