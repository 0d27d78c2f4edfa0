//! The bytes of model files.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rawzip::{FileReader, ReaderAt};

use crate::{Error, Result};

/// A model file, or bytes that take the place of one.
///
/// Files are read piece by piece when something is asked for, so that one that is shortened or changed meanwhile is an error or
/// gives other values, and nothing worse.
pub(crate) struct Content {
    source: Source,
    length: usize,
    path: PathBuf,
}

enum Source {
    File(FileReader),
    Memory(Vec<u8>),
}

/// Stands in messages where a path would.
const IN_MEMORY: &str = "model in memory";

/// Bytes that are read at once where they are converted on the way.
const PIECE: usize = 1 << 20;

impl Content {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { action: "open", path: path.to_owned(), source };
        let no_file = || Error::ModelFile {
            path: path.to_owned(),
            reason: "is not a regular file; name a model file".to_owned(),
        };
        // Looked at before it is opened, because opening a pipe would wait for its other end, and after, because it may have
        // been replaced.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(no_file());
        }
        let file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(no_file());
        }
        let length = usize::try_from(about.len()).map_err(|_| Error::ModelFile {
            path: path.to_owned(),
            reason: format!("has {} bytes, more than this machine can address", about.len()),
        })?;
        Ok(Self { source: Source::File(file.into()), length, path: path.to_owned() })
    }

    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self { length: bytes.len(), source: Source::Memory(bytes), path: IN_MEMORY.into() }
    }

    /// Number of bytes when it was opened.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The bytes in `range`.
    ///
    /// # Errors
    /// [`Error::Io`] where they are not or no longer there.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        match &self.source {
            Source::Memory(bytes) => bytes.get(range).map(Cow::Borrowed).ok_or_else(|| self.ends()),
            Source::File(_) => {
                if range.start > range.end || range.end > self.length {
                    return Err(self.ends());
                }
                let mut bytes = vec![0; range.len()];
                self.read(range.start, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// At most `most` bytes from the start.
    pub(crate) fn start(&self, most: usize) -> Result<Cow<'_, [u8]>> {
        self.bytes(0..most.min(self.length))
    }

    /// Fills `bytes` with what begins at `at`.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.read_exact_at(bytes, at as u64).map_err(|source| self.unread(source))
    }

    /// Hands the bytes in `range` to `take`, in pieces whose lengths are multiples of 16 but for the last.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub(crate) fn pieces(&self, range: Range<usize>, mut take: impl FnMut(&[u8])) -> Result<()> {
        if let Source::Memory(bytes) = &self.source {
            take(bytes.get(range).ok_or_else(|| self.ends())?);
            return Ok(());
        }
        let mut piece = vec![0; PIECE.min(range.len())];
        for start in range.clone().step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(range.end - start)];
            self.read(start, piece)?;
            take(piece);
        }
        Ok(())
    }

    /// The bytes, if they are in memory.
    pub(crate) fn in_memory(&self) -> Option<&[u8]> {
        match &self.source {
            Source::File(_) => None,
            Source::Memory(bytes) => Some(bytes),
        }
    }

    fn ends(&self) -> Error {
        self.unread(io::ErrorKind::UnexpectedEof.into())
    }

    fn unread(&self, source: io::Error) -> Error {
        Error::Io { action: "read", path: self.path.clone(), source }
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(_) => Some(&self.path),
            Source::Memory(_) => None,
        }
    }

    /// What messages call it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// [`Error::ModelFile`] on this file.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::ModelFile { path: self.path.clone(), reason: reason.into() }
    }
}

impl ReaderAt for Content {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.source {
            Source::File(file) => loop {
                match file.read_at(buffer, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    done => return done,
                }
            },
            Source::Memory(bytes) => bytes[..].read_at(buffer, offset),
        }
    }
}
