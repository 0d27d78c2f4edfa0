//! Files as memory, and memory as files.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file mapped into memory, read only, or bytes that take the place of a file.
///
/// The file must not be changed or shortened while it is mapped: its values would change under their readers, and
/// touching a page past the new end kills the process. Replacing it by renaming another over it is fine.
pub(crate) struct Mapping {
    content: Content,
    path: PathBuf,
}

enum Content {
    File(memmap2::Mmap),
    Memory(Vec<u8>),
}

/// Stands in messages where a path would.
const IN_MEMORY: &str = "model in memory";

impl Mapping {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        // Looked at before it is opened: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(io("open"))?.is_file() {
            return Err(Error::ModelFile {
                path: path.to_owned(),
                reason: "is not a regular file; name a model file".to_owned(),
            });
        }
        let file = File::open(path).map_err(io("open"))?;
        // SAFETY: the mapping is private to this object and read only; that nobody else changes the file meanwhile is
        // demanded of the caller, as documented on every function that opens a model.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io("map"))?;
        Ok(Self { content: Content::File(map), path: path.to_owned() })
    }

    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self { content: Content::Memory(bytes), path: IN_MEMORY.into() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::File(map) => map,
            Content::Memory(bytes) => bytes,
        }
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.content {
            Content::File(_) => Some(&self.path),
            Content::Memory(_) => None,
        }
    }

    /// What messages call it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the system drop the pages of `range` from memory; the next access reads them again.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Content::File(map) = &self.content
            && !range.is_empty()
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: pages of a read-only mapping of a file come back with the file's content, so nobody who holds a
            // slice of them can tell the difference. Failing costs memory only.
            #[allow(unsafe_code)]
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// [`Error::ModelFile`] on this file.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::ModelFile { path: self.path.clone(), reason: reason.into() }
    }
}
