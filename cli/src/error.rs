//! What ends a command.

use std::path::Path;

/// Why a command did not succeed, and with which exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line asks for something that cannot be: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Something went wrong while working: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// As the library puts it.
    #[error(transparent)]
    Library(#[from] mdm::Error),
    /// A file cannot be used: exit code 1.
    #[error(transparent)]
    File(#[from] mdm_images::FileError),
    /// Training stopped: exit code 1, or as the library's errors.
    #[error(transparent)]
    Pretrain(mdm_train::pretrain::PretrainError),
    /// Ctrl-C: exit code 130.
    #[error("{0}")]
    Interrupted(String),
    /// Everything worth saying was said: exit code 1.
    #[error("")]
    Reported,
}

/// Shorthand used throughout.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage(_) | CliError::Library(mdm::Error::Invalid { .. } | mdm::Error::Device(_)) => 2,
            CliError::Interrupted(_) | CliError::Library(mdm::Error::Cancelled) => 130,
            CliError::Failed(_)
            | CliError::File(_)
            | CliError::Pretrain(_)
            | CliError::Library(_)
            | CliError::Reported => 1,
        }
    }
}

impl From<mdm_train::pretrain::PretrainError> for CliError {
    fn from(error: mdm_train::pretrain::PretrainError) -> Self {
        match error {
            mdm_train::pretrain::PretrainError::Library(error) => CliError::Library(error),
            other => CliError::Pretrain(other),
        }
    }
}

/// A [`CliError::Failed`] that names a file.
pub(crate) fn failed(path: &Path, reason: impl std::fmt::Display) -> CliError {
    CliError::Failed(format!("{}: {reason}", path.display()))
}

/// A [`CliError::Usage`].
pub(crate) fn usage(reason: impl Into<String>) -> CliError {
    CliError::Usage(reason.into())
}

/// Says something that deserves attention but stops nothing.
pub(crate) fn warn(message: impl std::fmt::Display) {
    eprintln!("warning: {message}");
}
