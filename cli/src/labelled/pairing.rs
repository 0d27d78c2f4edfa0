//! Images paired with their label files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::names::{Known, Named, labels_of, stem};
use super::{LabelArguments, Pair};
use crate::error::{CliError, Result, failed, usage, warn};
use crate::files::label_files;
use mdm_images::{expand, same_place};

/// Names that a message lists.
const LISTED: usize = 10;

/// Pairs `images` (a folder, a pattern, a file) with the label files in `labels` that are named like them. One image file and
/// one label file are a pair whatever their names. Where both lie in one folder, files that are labels of others by their name
/// are no images.
pub(crate) fn pairs(images: &[PathBuf], labels: &Path, reading: &LabelArguments) -> Result<Vec<Pair>> {
    let (files, unusable) = expand(images, false, None);
    if let Some(unusable) = unusable.first() {
        let hint = if unusable.subfolders { "; name its subfolders, or give a pattern for them" } else { "" };
        return Err(CliError::Failed(format!("{}: {}{hint}", unusable.input.display(), unusable.reason)));
    }
    let mut files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
    let mut label_files = label_files(labels)?;
    let pair = |image: &Path, labels: &Path| Pair {
        image: image.to_owned(),
        labels: labels.to_owned(),
        reading: reading.clone(),
    };
    if let ([image], [only], true) = (files.as_slice(), label_files.as_slice(), labels.is_file()) {
        if same_place(image, only) {
            return Err(usage(format!(
                "{}: is given as an image and as its labels; --labels names the file with class indices",
                image.display()
            )));
        }
        return Ok(vec![pair(image, only)]);
    }
    let shared = part(&mut files, &mut label_files);
    if files.is_empty() || (label_files.is_empty() && shared > 0) {
        return Err(failed(
            labels,
            "holds images only: images and labels are the same files; name the labels of cells-1.tif cells-1_mask.png, \
             or keep them in a folder of their own",
        ));
    }
    let named = Named::new(&label_files, Known::AsLabels);
    let (mut pairs, mut unlabelled): (Vec<Pair>, Vec<&PathBuf>) = (Vec::new(), Vec::new());
    let mut taken: HashMap<&Path, &Path> = HashMap::new();
    for image in &files {
        let Some(labels) = named.partner(image, Known::AsImage)? else {
            unlabelled.push(image);
            continue;
        };
        if let Some(other) = taken.insert(labels, image) {
            return Err(usage(format!(
                "{} and {}: there are several images called {}, but only one label file of that name, {}",
                other.display(),
                image.display(),
                stem(image),
                labels.display()
            )));
        }
        pairs.push(pair(image, labels));
    }
    if pairs.is_empty() {
        let (image, found) = (&files[0], &label_files[0]);
        return Err(failed(
            labels,
            format!(
                "no label file has the name of an image: there is the image {}, for example, and the label file {}; \
                 the labels of the first would be called {}.png or {}_mask.png",
                image.display(),
                found.display(),
                stem(image),
                stem(image)
            ),
        ));
    }
    if let Some(first) = unlabelled.first() {
        warn(format!(
            "{} images have no label file in {} and are not used, {} for example",
            unlabelled.len(),
            labels.display(),
            first.display()
        ));
    }
    let mut unused: Vec<String> = label_files
        .iter()
        .filter(|file| !taken.contains_key(file.as_path()))
        .map(|file| stem(file))
        .collect();
    if !unused.is_empty() {
        unused.sort();
        let more = unused.len().saturating_sub(LISTED);
        unused.truncate(LISTED);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        warn(format!("{}: no image is called {}{rest}", labels.display(), unused.join(", ")));
    }
    Ok(pairs)
}

/// Decides of files that are found among the images and among the labels which of them they are. Returns how many there were.
///
/// A name with a mark such as `_mask` belongs to labels if there is an image of the name without it; a PNG does if there is
/// an image of its name in another format.
fn part(images: &mut Vec<PathBuf>, labels: &mut Vec<PathBuf>) -> usize {
    let place = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let found: std::collections::HashSet<PathBuf> = images.iter().map(|image| place(image)).collect();
    let shared: Vec<PathBuf> =
        labels.iter().map(|file| place(file)).filter(|file| found.contains(file)).collect();
    if shared.is_empty() {
        return 0;
    }
    let is_png = |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    let names: Vec<(String, bool)> = found.iter().map(|path| (stem(path), is_png(path))).collect();
    let called = |name: &str| names.iter().any(|(known, _)| known == name || known == &format!("{name}.ome"));
    let serves = |path: &Path| {
        let name = stem(path);
        labels_of(path).is_some_and(|image| called(&image))
            || (is_png(path)
                && names
                    .iter()
                    .any(|(known, png)| !png && (*known == name || *known == format!("{name}.ome"))))
    };
    let serving: std::collections::HashSet<&PathBuf> = shared.iter().filter(|path| serves(path)).collect();
    images.retain(|image| !serving.contains(&place(image)));
    labels.retain(|file| {
        let file = place(file);
        serving.contains(&file) || !found.contains(&file)
    });
    shared.len()
}
