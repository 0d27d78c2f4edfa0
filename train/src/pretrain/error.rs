//! What ends a run.

/// Why pre-training stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PretrainError {
    /// As the library puts it.
    #[error(transparent)]
    Library(#[from] mdm::Error),
    /// The loss or its gradient is no longer a number: parameters of this step must not be kept.
    #[error(
        "training diverged at step {step}: {reason}; go on from the last checkpoint with a lower learning rate, a longer \
         warm-up or clipped gradients"
    )]
    Diverged {
        /// The step that failed, from 1 on.
        step: u64,
        /// What was seen.
        reason: String,
    },
}

/// Shorthand used throughout.
pub type Result<T, E = PretrainError> = std::result::Result<T, E>;
