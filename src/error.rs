//! The one error type of the library.

use std::path::PathBuf;

/// Shorthand used throughout.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Messages say what was wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, written or renamed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: "open", "read", "write", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A model file is damaged, hostile, or not a model.
    #[error("{}: {reason}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A tensor is missing, has the wrong shape, or holds values that are not finite.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Name as in the file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration, setting or argument makes no sense.
    #[error("{what}: {reason}")]
    Invalid {
        /// The setting or argument, by its public name.
        what: &'static str,
        /// Why it cannot be, and what can.
        reason: String,
    },
    /// An image cannot be processed.
    #[error("image: {0}")]
    Image(String),
    /// More memory than can be had, or than sizes can express.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A device does not exist or could not be initialised.
    #[error("device: {0}")]
    Device(String),
    /// A device stopped working while it was used: it was unplugged, reset by its driver, or did not answer. The next
    /// call opens it anew.
    #[error("the device was lost: {0}; try again, or use \"cpu\"")]
    DeviceLost(String),
    /// The caller raised the [`CancelToken`](crate::CancelToken).
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// [`Error::Invalid`] with a formatted reason.
    pub fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { what, reason: reason.into() }
    }

    /// [`Error::Tensor`] with a formatted reason.
    pub fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Tensor { name: name.into(), reason: reason.into() }
    }
}
