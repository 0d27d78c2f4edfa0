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

/// Whether an operating system leaves files of this name beside a user's, hidden ones included.
pub fn is_system_name(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    let known = ["thumbs.db", "ehthumbs.db", "desktop.ini"];
    name.as_encoded_bytes().starts_with(b".") || known.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// An image file that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// The subfolder in which it was found, below the folder that was given; empty where it was not searched for.
    pub subfolder: PathBuf,
}

/// A part of the input that yields no file, and why.
#[derive(Debug)]
pub struct Unusable {
    /// As it was given, or as it was found.
    pub input: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Whether it is a folder without images that has subfolders, which were not searched.
    pub subfolders: bool,
}

/// Files, folders and patterns as the files they stand for: folders and matches in alphabetical order, none twice.
///
/// Folders and patterns yield no hidden files, none that the operating system left there, and only names of images; a pattern
/// that matches no such name yields what it matches. `skip` is left out of folders that are searched with their subfolders.
pub fn expand(inputs: &[PathBuf], recursive: bool, skip: Option<&Path>) -> (Vec<ImageFile>, Vec<Unusable>) {
    let mut found = Found { recursive, skip, files: Vec::new(), unusable: Vec::new() };
    for input in inputs {
        if let Err(unusable) = found.add(input) {
            found.unusable.push(unusable);
        }
    }
    let mut seen = HashSet::new();
    let Found { mut files, unusable, .. } = found;
    files.retain(|file| seen.insert(fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone())));
    (files, unusable)
}

struct Found<'a> {
    recursive: bool,
    skip: Option<&'a Path>,
    files: Vec<ImageFile>,
    unusable: Vec<Unusable>,
}

impl Found<'_> {
    fn add(&mut self, input: &Path) -> Result<(), Unusable> {
        let unusable = |reason: String| Unusable { input: input.to_owned(), reason, subfolders: false };
        let alone = |path: PathBuf| ImageFile { path, subfolder: PathBuf::new() };
        if input.is_dir() {
            let before = (self.files.len(), self.unusable.len());
            let subfolders = self
                .folder(input, Path::new(""))
                .map_err(|error| unusable(format!("cannot list the folder: {error}")))?;
            if before == (self.files.len(), self.unusable.len()) {
                let reason = "the folder has no PNG, JPEG, TIFF or BMP file".to_owned();
                return Err(Unusable { subfolders: subfolders && !self.recursive, ..unusable(reason) });
            }
            return Ok(());
        }
        if input.exists() {
            self.files.push(alone(input.to_owned()));
            return Ok(());
        }
        if let Some(reason) = broken_link(input) {
            return Err(unusable(reason));
        }
        let pattern = input
            .to_str()
            .filter(|text| text.contains(['*', '?', '[']))
            .ok_or_else(|| unusable("there is no such file or folder".to_owned()))?;
        let options =
            glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::default() };
        let matches = glob::glob_with(pattern, options)
            .map_err(|error| unusable(format!("is not a valid pattern: {error}")))?;
        let mut matches: Vec<PathBuf> =
            matches.flatten().filter(|path| path.is_file() && !is_system_name(path)).collect();
        if matches.iter().any(|path| is_image_name(path)) {
            matches.retain(|path| is_image_name(path));
        }
        if matches.is_empty() {
            return Err(unusable("no file matches this pattern".to_owned()));
        }
        self.files.extend(matches.into_iter().map(alone));
        Ok(())
    }

    /// Takes the images in a folder, and says whether it has subfolders.
    fn folder(&mut self, folder: &Path, subfolder: &Path) -> io::Result<bool> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut subfolders = false;
        for entry in entries {
            let path = entry.path();
            if is_system_name(&path) {
                continue;
            }
            // Links to folders are not followed: they could lead back here.
            if entry.file_type()?.is_dir() {
                subfolders = true;
                if self.recursive && !self.skip.is_some_and(|skip| same_place(&path, skip)) {
                    self.folder(&path, &subfolder.join(entry.file_name()))?;
                }
            } else if is_image_name(&path) {
                if path.is_file() {
                    self.files.push(ImageFile { path, subfolder: subfolder.to_owned() });
                } else if let Some(reason) = broken_link(&path) {
                    self.unusable.push(Unusable { input: path, reason, subfolders: false });
                }
            }
        }
        Ok(subfolders)
    }
}

/// What is wrong with a link that leads nowhere.
fn broken_link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    (!path.exists()).then(|| format!("is a link to {}, which is not there", target.display()))
}

/// Whether two paths lead to the same existing file or folder.
pub fn same_place(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "content").unwrap();
        }
        folder
    }

    fn names(folder: &Path, input: &str, recursive: bool) -> Result<Vec<String>, Unusable> {
        let (files, mut unusable) = expand(&[folder.join(input)], recursive, None);
        let below = |file: ImageFile| {
            let name = file.path.file_name().unwrap();
            file.subfolder.join(name).to_str().unwrap().replace('\\', "/")
        };
        unusable.pop().map_or_else(|| Ok(files.into_iter().map(below).collect()), Err)
    }

    #[test]
    fn folders_and_patterns_leave_out_what_systems_left_there() {
        let folder =
            folder(&["a.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "b.TIF"]);
        for input in ["", "*"] {
            assert_eq!(names(folder.path(), input, false).unwrap(), ["a.png", "b.TIF"], "{input:?}");
        }
        assert_eq!(names(folder.path(), "*.png", false).unwrap(), ["a.png"]);
        // Nobody writes such a pattern by mistake.
        assert_eq!(names(folder.path(), "*.txt", false).unwrap(), ["notes.txt"]);
        assert!(names(folder.path(), "*.db", false).is_err());
    }

    #[test]
    fn subfolders_are_remembered_and_only_hinted_at_where_there_are_some() {
        let folder = folder(&["plates/p1/a.tif", "plates/p2/a.tif", "text/notes.txt"]);
        let plates = names(folder.path(), "plates", true).unwrap();
        assert_eq!(plates, ["p1/a.tif", "p2/a.tif"]);
        assert!(names(folder.path(), "plates", false).unwrap_err().subfolders);
        assert!(!names(folder.path(), "text", false).unwrap_err().subfolders);
    }

    #[test]
    #[cfg(unix)]
    fn broken_links_are_told() {
        let folder = folder(&["a.png"]);
        std::os::unix::fs::symlink("gone.png", folder.path().join("b.png")).unwrap();
        let (files, unusable) = expand(&[folder.path().to_owned()], false, None);
        assert_eq!(files.len(), 1);
        assert!(unusable[0].input.ends_with("b.png") && unusable[0].reason.contains("gone.png"));
        assert!(names(folder.path(), "b.png", false).unwrap_err().reason.contains("gone.png"));
    }
}
