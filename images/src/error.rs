//! What can be wrong with a file.

use std::path::{Path, PathBuf};

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub reason: String,
}

/// Shorthand used throughout.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

/// A [`FileError`].
pub(crate) fn failed(path: &Path, reason: impl std::fmt::Display) -> FileError {
    FileError { path: path.to_owned(), reason: reason.to_string() }
}

/// A file that promises more than it holds.
pub(crate) fn damaged(path: &Path, reason: impl std::fmt::Display) -> FileError {
    failed(path, format!("is damaged or cut short: {reason}"))
}

/// A sound file that holds something that is not read, and how to save it instead.
pub(crate) fn unsupported(
    path: &Path,
    what: impl std::fmt::Display,
    instead: impl std::fmt::Display,
) -> FileError {
    failed(path, format!("{what} cannot be read; {instead}"))
}
