//! Memory for arenas, packed weights and scratch.

#![allow(unsafe_code)]

use memmap2::MmapMut;

use crate::{Error, Result};

/// f32 values straight from the operating system: aligned to pages, zero at first, in huge pages where there are any
/// (the kernels walk many megabytes with large strides, which small pages make them pay for).
pub struct Buffer {
    map: MmapMut,
    len: usize,
}

impl Buffer {
    pub fn zeroed(len: usize) -> Result<Self> {
        let failed = || {
            Error::OutOfMemory(format!("{} MiB are not to be had; use smaller windows or batches", len >> 18))
        };
        let bytes = len.max(1).checked_mul(size_of::<f32>()).ok_or_else(failed)?;
        let map = MmapMut::map_anon(bytes).map_err(|_| failed())?;
        #[cfg(target_os = "linux")]
        if bytes >= 1 << 21 {
            // A hint: without huge pages everything works, slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, len })
    }

    /// The same memory for `len` values, whatever it holds.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn resized(self, len: usize) -> Self {
        assert!(len <= self.capacity(), "{len} values in memory for {}", self.capacity());
        Self { len, ..self }
    }

    /// Values that there is room for.
    pub fn capacity(&self) -> usize {
        self.map.len() / size_of::<f32>()
    }

    pub fn slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.map)[..self.len]
    }

    pub fn slice_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.map)[..self.len]
    }
}

/// A pointer that tasks of one operation share, each writing its own part.
#[derive(Clone, Copy)]
pub struct SharedMut(*mut f32);

// SAFETY: whoever dereferences it promises that no two threads touch the same values.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub fn get(self) -> *mut f32 {
        self.0
    }

    /// The pointer `offset` values further.
    ///
    /// # Safety
    /// Stays inside the slice it was made from.
    pub unsafe fn add(self, offset: usize) -> Self {
        // SAFETY: promised by the caller.
        Self(unsafe { self.0.add(offset) })
    }
}
