//! Structs across versions: each starts with its size, as its owner's header knew it.

use super::errors::Failure;
use super::versions::MDM_ABI_VERSION;

/// Larger sizes were never initialised.
const LARGEST: usize = 4096;

/// A struct of the header whose first member is `struct_size`.
///
/// # Safety
/// It is `repr(C)`, its first member is a `usize`, and all bits zero are a value of it. The same holds for any bits that a caller
/// may write: members are numbers, pointers and optional function pointers.
pub unsafe trait Versioned: Copy {
    /// For messages.
    const NAME: &'static str;

    /// Bytes that even the oldest header has.
    const LEAST: usize;
}

/// Its size, as the caller has it.
///
/// # Safety
/// `from` is NULL or points to at least a `usize`.
unsafe fn stated_size<T: Versioned>(from: *const T) -> Result<usize, Failure> {
    if from.is_null() {
        return Err(Failure::argument(format!("the {} is NULL", T::NAME)));
    }
    // SAFETY: the caller vouches for it; no alignment is assumed.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    if size < T::LEAST {
        return Err(Failure::argument(format!(
            "struct_size of the {} is {size}, less than its first {} bytes; initialise it with its macro or function",
            T::NAME,
            T::LEAST
        )));
    }
    // No struct ends inside a member: half a pointer would be followed.
    if size > LARGEST || !size.is_multiple_of(align_of::<T>()) {
        return Err(Failure::argument(format!(
            "struct_size of the {} is {size}; initialise it with its macro or function",
            T::NAME
        )));
    }
    Ok(size)
}

/// Copies a caller's struct. Members that its header did not have yet are zero, which is every member's default.
///
/// # Safety
/// `from` is NULL or points to as many bytes as its first member says.
pub unsafe fn read<T: Versioned>(from: *const T) -> Result<T, Failure> {
    // SAFETY: as demanded of the caller.
    let size = unsafe { stated_size(from) }?;
    let known = size_of::<T>();
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: `from` has `size` bytes and `value` as many as are known.
    let extra = unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), value.as_mut_ptr().cast(), size.min(known));
        std::slice::from_raw_parts(
            from.cast::<u8>().wrapping_add(size.min(known)),
            size.saturating_sub(known),
        )
    };
    if extra.iter().any(|&byte| byte != 0) {
        return Err(Failure::abi(format!(
            "the {} has {size} bytes and uses some beyond the {known} that this library (ABI {MDM_ABI_VERSION}) knows; \
             install a newer libmdm",
            T::NAME
        )));
    }
    // SAFETY: `Versioned` says that any such bits are a value.
    Ok(unsafe { value.assume_init() })
}

/// As [`read`], or the default where there is none.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_or_default<T: Versioned>(from: *const T) -> Result<T, Failure> {
    if from.is_null() {
        // SAFETY: `Versioned` says that zeros are a value.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: as demanded of the caller.
    unsafe { read(from) }
}

/// Checks a struct that is to be written later, so that a wrong one is found before the work.
///
/// # Safety
/// As [`read`].
pub unsafe fn check<T: Versioned>(to: *mut T) -> Result<(), Failure> {
    // SAFETY: as demanded of the caller.
    unsafe { stated_size(to) }.map(|_| ())
}

/// Writes what the caller's header knows of `value`; members that only the caller knows become zero. `struct_size` stays.
///
/// # Safety
/// `to` is NULL or points to as many bytes as its first member says.
pub unsafe fn write<T: Versioned>(to: *mut T, value: &T) -> Result<(), Failure> {
    // SAFETY: as demanded of the caller.
    let size = unsafe { stated_size(to) }?;
    let known = size_of::<T>().min(size);
    let first = size_of::<usize>();
    // SAFETY: `to` has `size` bytes, `value` at least as many as are copied.
    unsafe {
        let (to, from) = (to.cast::<u8>(), std::ptr::from_ref(value).cast::<u8>());
        std::ptr::copy_nonoverlapping(from.wrapping_add(first), to.wrapping_add(first), known - first);
        std::ptr::write_bytes(to.wrapping_add(known), 0, size - known);
    }
    Ok(())
}

/// Sets `size` bytes to the default and the first member to `size`.
///
/// # Safety
/// `to` is NULL or points to `size` bytes.
pub unsafe fn initialise<T: Versioned>(to: *mut T, size: usize) {
    if to.is_null() || !(T::LEAST..=LARGEST).contains(&size) || !size.is_multiple_of(align_of::<T>()) {
        return;
    }
    // SAFETY: as demanded of the caller.
    unsafe {
        std::ptr::write_bytes(to.cast::<u8>(), 0, size);
        to.cast::<usize>().write_unaligned(size);
    }
}
