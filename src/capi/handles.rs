//! Handles: opaque pointers that point nowhere.
//!
//! A handle is a number that is given out once. Looking it up yields a counted reference, so that an object which is
//! freed while another thread uses it lives until that use ends.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use super::errors::{Failure, MDM_ERROR_INTERNAL};

/// What is behind a handle.
pub trait Object: Send + Sync + 'static {
    /// The type that the header declares for it.
    type Handle;

    /// For messages.
    const NAME: &'static str;
}

struct Entry {
    name: &'static str,
    object: Arc<dyn Any + Send + Sync>,
}

static TABLE: LazyLock<RwLock<HashMap<usize, Entry>>> = LazyLock::new(RwLock::default);

/// Handles are odd, which no pointer to an object of C is.
static NEXT: AtomicUsize = AtomicUsize::new(0x101);

/// A number that was never given out before; none where there are no more, which takes 2^31 objects where an address has 32 bits.
fn fresh(next: &AtomicUsize) -> Option<usize> {
    next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |handle| handle.checked_add(2)).ok()
}

/// Gives an object a handle.
pub fn insert<T: Object>(object: T) -> Result<*mut T::Handle, Failure> {
    let handle = fresh(&NEXT).ok_or_else(|| {
        Failure::new(
            MDM_ERROR_INTERNAL,
            "this process made as many objects as it has numbers for; start it anew, or build it for 64 bits",
        )
    })?;
    let entry = Entry { name: T::NAME, object: Arc::new(object) };
    TABLE.write().unwrap_or_else(PoisonError::into_inner).insert(handle, entry);
    Ok(std::ptr::without_provenance_mut(handle))
}

/// The object behind a handle.
pub fn get<T: Object>(handle: *const T::Handle) -> Result<Arc<T>, Failure> {
    let address = handle.addr();
    if address == 0 {
        return Err(Failure::handle(format!("the {} is NULL", T::NAME)));
    }
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let Some(entry) = table.get(&address) else {
        return Err(Failure::handle(format!("{address:#x} is no {}: it was freed, or never made", T::NAME)));
    };
    let object = entry.object.clone().downcast();
    object.map_err(|_| Failure::handle(format!("{address:#x} is a {}, not a {}", entry.name, T::NAME)))
}

/// Takes a handle back; the object goes when nobody uses it any more. NULL and what is no such handle are ignored.
pub fn remove<T: Object>(handle: *const T::Handle) -> Option<Arc<T>> {
    let object = get::<T>(handle).ok()?;
    let entry = TABLE.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.addr());
    // Dropped only here, where the table is not locked.
    entry.map(|_| object)
}

/// Objects that were not freed.
pub fn count() -> usize {
    TABLE.read().unwrap_or_else(PoisonError::into_inner).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_given_out_twice() {
        let next = AtomicUsize::new(usize::MAX - 4);
        assert_eq!([fresh(&next), fresh(&next)], [Some(usize::MAX - 4), Some(usize::MAX - 2)]);
        assert_eq!([fresh(&next), fresh(&next)], [None, None]);
    }
}
