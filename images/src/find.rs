//! Which image files are meant.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Endings of the files that are taken from a folder.
const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "tif", "tiff", "bmp"];

/// Whether a file of this name is taken from a folder of images.
pub fn is_image_name(path: &Path) -> bool {
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// A part of the input that yields no file, and why.
#[derive(Debug)]
pub struct Unusable {
    /// As it was given.
    pub input: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Files, folders and patterns as the files they stand for: folders and matches in alphabetical order, none twice.
///
/// `skip` is left out of folders that are searched with their subfolders.
pub fn expand(inputs: &[PathBuf], recursive: bool, skip: Option<&Path>) -> (Vec<PathBuf>, Vec<Unusable>) {
    let (mut files, mut unusable) = (Vec::new(), Vec::new());
    for input in inputs {
        match files_of(input, recursive, skip) {
            Ok(found) => files.extend(found),
            Err(reason) => unusable.push(Unusable { input: input.clone(), reason }),
        }
    }
    let mut seen = HashSet::new();
    files.retain(|file| seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    (files, unusable)
}

fn files_of(input: &Path, recursive: bool, skip: Option<&Path>) -> Result<Vec<PathBuf>, String> {
    if input.is_dir() {
        let mut files = Vec::new();
        images_in(input, recursive, skip, &mut files)
            .map_err(|error| format!("cannot list the folder: {error}"))?;
        if files.is_empty() {
            let hint = if recursive { "" } else { "; --recursive searches its subfolders too" };
            return Err(format!("the folder has no PNG, JPEG, TIFF or BMP file{hint}"));
        }
        return Ok(files);
    }
    if input.exists() {
        return Ok(vec![input.to_owned()]);
    }
    match input.to_str().filter(|text| text.contains(['*', '?', '['])) {
        Some(pattern) => {
            let matches = glob::glob(pattern).map_err(|error| format!("is not a valid pattern: {error}"))?;
            let files: Vec<PathBuf> = matches.flatten().filter(|path| path.is_file()).collect();
            if files.is_empty() { Err("no file matches this pattern".to_owned()) } else { Ok(files) }
        }
        None => Err("there is no such file or folder".to_owned()),
    }
}

fn images_in(
    folder: &Path,
    recursive: bool,
    skip: Option<&Path>,
    files: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden {
            continue;
        }
        // Links to folders are not followed: they could lead back here.
        if entry.file_type()?.is_dir() {
            if recursive && !skip.is_some_and(|skip| same_place(&path, skip)) {
                images_in(&path, recursive, skip, files)?;
            }
        } else if is_image_name(&path) && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// Whether two paths lead to the same existing file or folder.
pub fn same_place(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}
