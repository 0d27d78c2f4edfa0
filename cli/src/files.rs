//! Which files a command works on, and how it leaves files behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::error::{CliError, Result, failed, usage};

/// The name that pairs an image with its labels: the file name without its ending.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Label PNGs in `folder` (not in its subfolders), or the one file that `path` is, by name.
pub(crate) fn label_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => usage(format!("{}: there is no such file or folder", path.display())),
        _ => failed(path, format!("cannot list the folder: {error}")),
    })?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().and_then(OsStr::to_str).is_some_and(|ending| ending.eq_ignore_ascii_case("png"))
                && path.is_file()
        })
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(failed(path, "the folder has no PNG file; labels are PNG files of class indices"));
    }
    Ok(files)
}

/// Creates the folder if need be and makes sure that files can be left in it.
pub(crate) fn writable_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| {
        failed(folder, format!("cannot create this folder: {error}; choose another one with -o"))
    })?;
    temporary_in(folder).map(drop)
}

/// Makes sure that a file can be left at `path`, whose folder must exist.
pub(crate) fn writable_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(usage(format!("{}: is a folder; -o names the file to write", path.display())));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(usage(format!("{}: there is no such folder; create it first", folder.display())));
    }
    temporary_in(folder).map(drop)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_in(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(".mdm-");
    // As other programs' files, not as private as temporary ones.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|error| {
        failed(folder, format!("cannot write in this folder: {error}; choose another one with -o"))
    })
}

/// A file that is complete but does not have its name yet. It vanishes if dropped.
pub(crate) struct Staged {
    file: NamedTempFile,
    target: PathBuf,
}

/// Writes a file beside `target` under a temporary name.
pub(crate) fn stage<E: std::fmt::Display>(
    target: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<Staged> {
    let file = temporary_in(folder_of(target))?;
    let full = |error: &dyn std::fmt::Display| {
        failed(target, format!("cannot be written: {error}; make room or choose another folder with -o"))
    };
    let mut writer = BufWriter::new(file.as_file());
    write(&mut writer).map_err(|error| full(&error))?;
    writer.flush().map_err(|error| full(&error))?;
    drop(writer);
    Ok(Staged { file, target: target.to_owned() })
}

impl Staged {
    /// Gives the file its name, replacing what had it before.
    pub(crate) fn commit(self) -> Result<()> {
        let target = self.target;
        self.file.persist(&target).map(drop).map_err(|error| {
            failed(&target, format!("cannot be written: {}; choose another folder with -o", error.error))
        })
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write_file(target: &Path, content: &[u8]) -> Result<()> {
    stage(target, |out| out.write_all(content))?.commit()
}

/// Outputs are named after inputs: refuses inputs that would share one.
pub(crate) fn distinct_stems(files: &[PathBuf]) -> Result<()> {
    let mut seen = std::collections::HashMap::new();
    for file in files {
        // Case makes no difference to most file systems of Windows and macOS.
        let name =
            if cfg!(any(windows, target_os = "macos")) { stem(file).to_lowercase() } else { stem(file) };
        if let Some(other) = seen.insert(name, file) {
            return Err(CliError::Usage(format!(
                "{} and {} would have the same output; segment them into different folders",
                other.display(),
                file.display()
            )));
        }
    }
    Ok(())
}
