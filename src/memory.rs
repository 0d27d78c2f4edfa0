//! Allocations whose size depends on an image or a file: errors, not aborts.

use crate::{Error, Result};

/// Makes room for `additional` values, or says what there was no room for.
pub(crate) fn reserve<T>(values: &mut Vec<T>, additional: usize, what: &str) -> Result<()> {
    values.try_reserve(additional).map_err(|_| Error::OutOfMemory(format!("{additional} {what}")))
}

/// The product of sizes, or an error saying what is too large.
pub(crate) fn product(sizes: &[usize], what: &str) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size))
        .ok_or_else(|| Error::OutOfMemory(format!("{what}: {sizes:?} values")))
}

/// `len` zeros.
pub(crate) fn zeros<T: Clone + Default>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Error::OutOfMemory(format!("{what}: {len} values")))?;
    values.resize(len, T::default());
    Ok(values)
}
