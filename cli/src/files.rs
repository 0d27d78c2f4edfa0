//! Which files a command works on, and how it leaves files behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::error::{Result, failed, usage};
use mdm_images::{Unusable, is_system_name};

/// What is wrong with an input, for commands that search subfolders if asked to.
pub(crate) fn unusable_input(unusable: &Unusable) -> String {
    let hint = if unusable.subfolders { "; --recursive searches its subfolders too" } else { "" };
    format!("{}: {}{hint}", unusable.input.display(), unusable.reason)
}

/// Label files in `folder` (not in its subfolders), or the one file that `path` is, by name.
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
            let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
            !is_system_name(path)
                && ["png", "tif", "tiff"].iter().any(|known| ending.eq_ignore_ascii_case(known))
                && !path.is_dir()
        })
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(failed(
            path,
            "the folder has no PNG or TIFF file; labels are such files of class indices",
        ));
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
        let cannot = |error: &dyn std::fmt::Display| {
            failed(&target, format!("cannot be written: {error}; make room or choose another folder with -o"))
        };
        // The content is safe before the name says that it is: a full disk or a lost one may only show here.
        self.file.as_file().sync_all().map_err(|error| cannot(&error))?;
        self.file.persist(&target).map(drop).map_err(|error| {
            failed(&target, format!("cannot be written: {}; choose another folder with -o", error.error))
        })?;
        // The new name outlives a power failure, too. Not every file system can do this to folders.
        #[cfg(unix)]
        let _ = File::open(folder_of(&target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write_file(target: &Path, content: &[u8]) -> Result<()> {
    stage(target, |out| out.write_all(content))?.commit()
}
