//! One run at a time writes in a folder.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::CHECKPOINT;
use crate::error::{Result, failed, usage};
use crate::files::writable_folder;

/// A run's folder, locked.
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Released when the process ends, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Creates the folder if need be, and removes what a run that was killed while it wrote a checkpoint left in it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        writable_folder(path)?;
        let name = path.join(".lock");
        let cannot = |error: std::io::Error| failed(&name, format!("cannot be opened: {error}"));
        let lock = File::options().create(true).write(true).truncate(false).open(&name).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(usage(format!(
                    "{}: another `mdm pretrain` is writing in this folder",
                    path.display()
                )));
            }
            // Some network file systems have no locks: two runs are the user's to avoid there.
            Err(TryLockError::Error(_)) => {}
        }
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(".mdm-") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.path.join(CHECKPOINT)
    }
}
