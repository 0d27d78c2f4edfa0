//! Where crops are taken from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mdm::intensity::{IntensityRange, IntensityWarning};
use mdm::{Error, ImageView, Result};
use mdm_images::{Image, ReadOptions, read_image};

/// Images to learn from, by number. Several threads ask at once.
pub trait Images: Send + Sync {
    /// How many there are, at least one and below 2^32.
    fn count(&self) -> usize;

    /// What image `index` is called in messages.
    fn name(&self, index: usize) -> String;

    /// Hands image `index` to `take`, once.
    ///
    /// # Errors
    /// An image that cannot be had is left out of the run. What `take` says is passed on.
    fn read(&self, index: usize, take: &mut dyn FnMut(&ImageView<'_>) -> Result<()>) -> Result<()>;

    /// Something that changes where the images or their order do, so that it can be told whether a run goes on exactly.
    fn identity(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for index in 0..self.count() {
            hash.update(self.name(index).as_bytes());
            hash.update(&[0]);
        }
        hash.finalize().to_hex()[..16].to_owned()
    }
}

/// Images that are looked at before a run.
const EXAMINED: usize = 32;

/// What looks wrong about the values of some images, evenly spread, with their names, where `range` is how they are scaled. Images
/// that cannot be read are left to the run.
pub fn examine(images: &dyn Images, range: &IntensityRange) -> Vec<(String, IntensityWarning)> {
    let count = images.count();
    let mut warnings = Vec::new();
    for index in (0..count).step_by(count.div_ceil(EXAMINED).max(1)) {
        let mut look = |image: &ImageView<'_>| {
            let (_, report) = range.measure(&mut { *image }, None)?;
            warnings.extend(report.warnings.into_iter().map(|warning| (images.name(index), warning)));
            Ok(())
        };
        // It will be said by the run that such an image is left out.
        let _ = images.read(index, &mut look);
    }
    warnings
}

type Observer = Box<dyn Fn(&Path, &Image) + Send + Sync>;

/// Image files: PNG, JPEG, TIFF or BMP. Those that were used last are kept decoded.
pub struct FileImages {
    paths: Vec<PathBuf>,
    options: ReadOptions,
    observer: Option<Observer>,
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    images: HashMap<usize, (Arc<Image>, u64)>,
    bytes: usize,
    clock: u64,
}

impl FileImages {
    /// Bytes of decoded images that are kept, if nothing else is said.
    pub const DEFAULT_CAPACITY: usize = 1 << 30;

    /// Images in these files.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            options: ReadOptions::default(),
            observer: None,
            capacity: Self::DEFAULT_CAPACITY,
            kept: Mutex::default(),
        }
    }

    /// Says how large pixels are, in micrometres, whatever the files say.
    pub fn with_microns_per_pixel(mut self, microns: Option<f64>) -> Self {
        self.options.microns_per_pixel = microns;
        self
    }

    /// Says what is read of files that hold more than one plane, and how.
    pub fn with_options(self, options: ReadOptions) -> Self {
        Self { options, ..self }
    }

    /// Shows `observer` each image when it has been read, which may be several times and from several threads.
    pub fn with_observer(self, observer: impl Fn(&Path, &Image) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Box::new(observer)), ..self }
    }

    /// Keeps up to so many bytes of decoded images.
    pub fn with_capacity(self, bytes: usize) -> Self {
        Self { capacity: bytes, ..self }
    }

    fn image(&self, index: usize) -> Result<Arc<Image>> {
        let path = self
            .paths
            .get(index)
            .ok_or_else(|| Error::invalid("image", format!("{index} is not one of {}", self.paths.len())))?;
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = lock();
            kept.clock += 1;
            let clock = kept.clock;
            if let Some((image, used)) = kept.images.get_mut(&index) {
                *used = clock;
                return Ok(image.clone());
            }
        }
        let image =
            Arc::new(read_image(path, &self.options).map_err(|error| Error::Image(error.to_string()))?);
        if let Some(observer) = &self.observer {
            observer(path, &image);
        }
        let bytes = image.pixels.bytes().len();
        if bytes <= self.capacity {
            let mut kept = lock();
            while kept.bytes + bytes > self.capacity {
                let oldest = kept.images.iter().min_by_key(|(_, (_, used))| *used).map(|(index, _)| *index);
                let Some((old, _)) = oldest.and_then(|oldest| kept.images.remove(&oldest)) else { break };
                kept.bytes -= old.pixels.bytes().len();
            }
            let clock = kept.clock;
            if kept.images.insert(index, (image.clone(), clock)).is_none() {
                kept.bytes += bytes;
            }
        }
        Ok(image)
    }
}

impl Images for FileImages {
    fn count(&self) -> usize {
        self.paths.len()
    }

    fn name(&self, index: usize) -> String {
        self.paths.get(index).map_or_else(String::new, |path| path.display().to_string())
    }

    fn read(&self, index: usize, take: &mut dyn FnMut(&ImageView<'_>) -> Result<()>) -> Result<()> {
        take(&self.image(index)?.view()?)
    }
}
