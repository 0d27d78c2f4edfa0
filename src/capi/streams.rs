//! Images that are read, and results that are written, as they are needed.

use std::ffi::c_void;
use std::ops::Range;

use super::errors::{Failure, MDM_ERROR_CALLBACK, MDM_ERROR_CANCELLED, MDM_OK, call, mdm_error, mdm_status};
use super::handles;
use super::images::{
    MDM_LABEL_U16, format_of, label_size, mdm_label_type, mdm_layout, mdm_pixel_format, microns_of, planar_of,
};
use super::intensities::declared_of;
use super::runs::{controlled, mdm_report, mdm_run};
use super::segmenters::{OpenSegmenter, mdm_result_size, mdm_segmenter, result_size};
use super::structs::{self, Versioned};
use crate::image::{ImageSource, StoredValues, check_size};
use crate::intensity::{IntensityRange, IntensitySample, Limits};
use crate::segment::Band;
use crate::{Error, ImageView, PixelFormat, Result};

/// A region of an image that is to be read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_region {
    /// sizeof(mdm_region), as the library knows it.
    pub struct_size: usize,
    /// Where the region's first pixel goes. All bytes are zero.
    pub pixels: *mut c_void,
    /// Bytes from one row to the next.
    pub row_stride: usize,
    /// Bytes from one plane to the next; 0 where channels are interleaved.
    pub plane_stride: usize,
    /// Pixels of the source's level 0 per pixel of this level, along a side.
    pub downsample: f64,
    /// Level to read from.
    pub level: u32,
    /// First column, in pixels of this level.
    pub x: u32,
    /// First row, in pixels of this level.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Reads a region in the source's format. It is called on the thread that called the library, tile by tile in rows of tiles,
/// from top to bottom and no tile twice; where percentiles are needed, those of a level are read before. It must neither throw nor jump out.
///
/// @param user_data as given in the mdm_source
/// @param region    what to read and where to put it; valid during the call
/// @return MDM_OK to go on; MDM_ERROR_CANCELLED stops the run, which returns the same; with anything else the run returns
///         MDM_ERROR_CALLBACK
pub type mdm_read_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, region: *const mdm_region) -> mdm_status>;

/// A level of a source: the same image, smaller. This struct never changes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_level {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Pixels of level 0 per pixel of this one, along a side; at least 1.
    pub downsample: f64,
}

/// An image that is read as it is needed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_source {
    /// sizeof(mdm_source)
    pub struct_size: usize,
    /// Reads a region.
    pub read: mdm_read_callback,
    /// Handed to read.
    pub user_data: *mut c_void,
    /// Columns, at least 1; of level 0 where there are several.
    pub width: u32,
    /// Rows, at least 1; of level 0 where there are several.
    pub height: u32,
    /// What regions are made of: one of the MDM_PIXEL constants.
    pub format: mdm_pixel_format,
    /// MDM_LAYOUT_INTERLEAVED or MDM_LAYOUT_PLANAR.
    pub layout: mdm_layout,
    /// Size of a pixel in micrometres, of level 0 where there are several; 0 where it is unknown.
    pub microns_per_pixel: f64,
    /// Columns of a region at most; 0 for 2048. A multiple of the file's tiles is best.
    pub tile_width: u32,
    /// Rows of a region at most, and of the image in memory; 0 for 256. A multiple of the file's tiles is best.
    pub tile_height: u32,
    /// All levels, level 0 first, by growing downsample; NULL where there is one. The library reads the smallest that is not
    /// coarser than what the model was trained on, and the result has the size of that level: see
    /// mdm_segmenter_source_size.
    pub levels: *const mdm_level,
    /// Number of levels; 0 where levels is NULL.
    pub level_count: usize,
    /// The stored value that stands for black, where the camera or the file says so, as 0 of 12 bits; 0 and 0 where nobody does.
    pub range_low: f64,
    /// The stored value that stands for white, as 4095 of 12 bits.
    pub range_high: f64,
    /// 1 if regions can be read more than once. With MDM_RANGE_PERCENTILE the library looks at the whole image before: at a smaller
    /// level than the one that it segments, and where there is none, which needs this, at the same.
    pub rereadable: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// Finished rows of a result.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_band {
    /// sizeof(mdm_band), as the library knows it.
    pub struct_size: usize,
    /// [height][width]: for each pixel the index of the most probable class, as the sink's label_type has it.
    pub labels: *const c_void,
    /// [height][width][classes], adding up to 1; NULL unless the segmenter makes them.
    pub probabilities: *const f32,
    /// [height][width]: how much the heads disagree, in nats; NULL unless the segmenter makes it.
    pub uncertainty: *const f32,
    /// First row, in the result.
    pub y: u32,
    /// Rows of this band.
    pub height: u32,
    /// Columns of the result.
    pub width: u32,
    /// Classes.
    pub classes: u32,
}

/// Takes finished rows, from top to bottom, each row once, on the thread that called the library. It must neither throw
/// nor jump out.
///
/// @param user_data as given in the mdm_sink
/// @param band      the rows; valid during the call
/// @return as mdm_read_callback
pub type mdm_band_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, band: *const mdm_band) -> mdm_status>;

/// Where a result goes, band by band.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mdm_sink {
    /// sizeof(mdm_sink)
    pub struct_size: usize,
    /// Takes finished rows.
    pub write: mdm_band_callback,
    /// Handed to write.
    pub user_data: *mut c_void,
    /// MDM_LABEL_U8 or MDM_LABEL_U16.
    pub label_type: mdm_label_type,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: numbers, pointers and an optional function pointer behind a size.
unsafe impl Versioned for mdm_source {
    const NAME: &'static str = "mdm_source";
    const LEAST: usize = std::mem::offset_of!(mdm_source, microns_per_pixel);
}

// SAFETY: numbers, pointers and an optional function pointer behind a size.
unsafe impl Versioned for mdm_sink {
    const NAME: &'static str = "mdm_sink";
    const LEAST: usize = std::mem::offset_of!(mdm_sink, label_type);
}

const TILE_WIDTH: u32 = 2048;
const TILE_HEIGHT: u32 = 256;
const MOST_LEVELS: usize = 64;

/// The smallest level with so many pixels stands for an image.
const SURVEYED_PIXELS: u64 = 1 << 18;

/// Coarser than the model by this much still counts as the model's scale.
const TOLERANCE: f64 = 1.05;

/// The level of a source that is read.
#[derive(Clone, Copy)]
struct Chosen {
    index: usize,
    level: mdm_level,
    microns: Option<f64>,
}

/// `asked` are the micrometres of the segmenter's options and of the model.
///
/// # Safety
/// `levels` points to `level_count` levels or is NULL.
unsafe fn choose(source: &mdm_source, asked: (Option<f64>, Option<f64>)) -> Result<Chosen, Failure> {
    let whole = mdm_level { width: source.width, height: source.height, downsample: 1.0 };
    let microns = asked.0.or(microns_of(source.microns_per_pixel)?);
    if source.levels.is_null() != (source.level_count == 0) || source.level_count > MOST_LEVELS {
        return Err(Failure::argument(format!(
            "level_count: {} with levels at {:p}; up to {MOST_LEVELS} are possible",
            source.level_count, source.levels
        )));
    }
    check_size(source.width as usize, source.height as usize)?;
    let mut chosen = Chosen { index: 0, level: whole, microns };
    let mut last = 1.0;
    for index in 0..source.level_count {
        // SAFETY: as demanded of the caller; no alignment is assumed.
        let level = unsafe { source.levels.wrapping_add(index).read_unaligned() };
        let first_differs = index == 0
            && (level.width != source.width || level.height != source.height || level.downsample != 1.0);
        if first_differs || !(level.downsample >= last && level.downsample.is_finite()) {
            return Err(Failure::argument(format!(
                "levels: level {index} of {} x {} pixels has downsample {}; level 0 is the whole image, and downsamples grow",
                level.width, level.height, level.downsample
            )));
        }
        last = level.downsample;
        check_size(level.width as usize, level.height as usize)?;
        if let (Some(image), Some(model)) = (microns, asked.1)
            && image * level.downsample <= model * TOLERANCE
        {
            chosen = Chosen { index, level, microns: Some(image * level.downsample) };
        }
    }
    Ok(chosen)
}

/// Why a callback ended a run.
type Stopped = std::cell::RefCell<Option<Failure>>;

/// What a callback returned, as an error that ends the run.
fn returned(status: mdm_status, whose: &str, stopped: &Stopped) -> Result<()> {
    match status {
        MDM_OK => return Ok(()),
        MDM_ERROR_CANCELLED => {}
        other => {
            let message = format!("the {whose} callback returned {other}");
            *stopped.borrow_mut() = Some(Failure::new(MDM_ERROR_CALLBACK, message));
        }
    }
    Err(Error::Cancelled)
}

/// A source, of which a row of tiles is in memory.
pub(super) struct Reader<'a> {
    source: mdm_source,
    chosen: Chosen,
    format: PixelFormat,
    planar: bool,
    /// One for each channel.
    declared: Option<Vec<Limits>>,
    strip: Vec<u8>,
    /// Rows that are in the strip.
    rows: Range<usize>,
    stopped: &'a Stopped,
}

impl<'a> Reader<'a> {
    /// # Safety
    /// The callback can be called with the user data, and writes within the region; see `choose` for levels.
    pub(super) unsafe fn new(
        source: mdm_source,
        asked: (Option<f64>, Option<f64>),
        stopped: &'a Stopped,
    ) -> Result<Self, Failure> {
        if source.read.is_none() {
            return Err(Failure::argument("read of the mdm_source is NULL"));
        }
        let (format, planar) = (format_of(source.format)?, planar_of(source.layout)?);
        let declared = declared_of(source.range_low, source.range_high)?;
        let declared = declared.map(|limits| vec![limits; format.colours()]);
        if source.rereadable > 1 || source.reserved != 0 {
            return Err(Failure::argument("rereadable of the mdm_source must be 0 or 1, and reserved 0"));
        }
        // SAFETY: as demanded of the caller.
        let chosen = unsafe { choose(&source, asked) }?;
        Ok(Self { source, chosen, format, planar, declared, strip: Vec::new(), rows: 0..0, stopped })
    }

    pub(super) fn level(&self) -> usize {
        self.chosen.index
    }

    /// Bytes of a row of `width` pixels, in one plane where there are several.
    fn row_bytes(&self, width: usize) -> usize {
        let pixel = self.format.bytes_per_pixel();
        width * if self.planar { pixel / self.format.samples() } else { pixel }
    }

    /// Columns and rows of a tile.
    fn tile(&self) -> (usize, usize) {
        let or = |given: u32, default: u32| if given == 0 { default } else { given } as usize;
        (or(self.source.tile_width, TILE_WIDTH), or(self.source.tile_height, TILE_HEIGHT))
    }

    /// Brings the row of tiles that holds row `y` of a level into memory.
    fn load(&mut self, (index, level): (usize, mdm_level), y: usize) -> Result<()> {
        let tile = self.tile();
        let (width, height) = (level.width as usize, level.height as usize);
        let top = y / tile.1 * tile.1;
        let rows = tile.1.min(height - top);
        let row_bytes = self.row_bytes(width);
        let plane = rows.checked_mul(row_bytes);
        let planes = if self.planar { self.format.samples() } else { 1 };
        let len = plane.and_then(|plane| plane.checked_mul(planes));
        let too_much = || {
            Error::OutOfMemory(format!(
                "{rows} rows of {row_bytes} bytes of the image; give a smaller tile_height"
            ))
        };
        let (Some(plane), Some(len)) = (plane, len) else { return Err(too_much()) };
        self.rows = 0..0;
        self.strip.clear();
        self.strip.try_reserve_exact(len).map_err(|_| too_much())?;
        self.strip.resize(len, 0);
        let Some(read) = self.source.read else { return Ok(()) };
        for left in (0..width).step_by(tile.0) {
            let columns = tile.0.min(width - left);
            // Sides are at most 2^30.
            let region = mdm_region {
                struct_size: size_of::<mdm_region>(),
                pixels: self.strip.as_mut_ptr().wrapping_add(left * (row_bytes / width)).cast(),
                row_stride: row_bytes,
                plane_stride: if self.planar { plane } else { 0 },
                downsample: level.downsample,
                level: index as u32,
                x: left as u32,
                y: top as u32,
                width: columns as u32,
                height: rows as u32,
                reserved: 0,
            };
            // SAFETY: as demanded of the caller of `new`.
            returned(unsafe { read(self.source.user_data, &raw const region) }, "read", self.stopped)?;
        }
        self.rows = top..top + rows;
        Ok(())
    }

    /// The strip as an image of so many columns.
    fn view(&self, width: usize) -> Result<ImageView<'_>> {
        let make = if self.planar { ImageView::planar } else { ImageView::new };
        let view = make(&self.strip, width, self.rows.len(), self.format)?;
        match &self.declared {
            Some(ranges) => view.with_ranges(ranges),
            None => Ok(view),
        }
    }

    /// The level that stands for the image where its values are examined before it is read; none where that cannot be.
    fn surveyed(&self) -> Option<(usize, mdm_level)> {
        let chosen = (self.chosen.index, self.chosen.level);
        let pixels = |level: &mdm_level| u64::from(level.width) * u64::from(level.height);
        let coarser: Vec<(usize, mdm_level)> = (self.chosen.index + 1..self.source.level_count)
            // SAFETY: as demanded of the caller of `new`, which checked the levels; no alignment is assumed.
            .map(|index| (index, unsafe { self.source.levels.wrapping_add(index).read_unaligned() }))
            .collect();
        let large = coarser.iter().rev().find(|(_, level)| pixels(level) >= SURVEYED_PIXELS);
        match large {
            Some(level) => Some(*level),
            None if self.source.rereadable == 1 => Some(chosen),
            None => coarser.first().copied(),
        }
    }
}

impl ImageSource for Reader<'_> {
    fn width(&self) -> usize {
        self.chosen.level.width as usize
    }

    fn height(&self) -> usize {
        self.chosen.level.height as usize
    }

    fn channels(&self) -> usize {
        self.format.colours()
    }

    fn microns_per_pixel(&self) -> Option<f64> {
        self.chosen.microns
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let first = rows.start;
        self.read_stored(rows, out)?;
        match IntensityRange::Declared.scale(self)? {
            Some(scale) => scale.apply(out, first, self.width()),
            None => Ok(()),
        }
    }

    fn stored(&mut self) -> Option<&mut dyn StoredValues> {
        Some(self)
    }
}

impl StoredValues for Reader<'_> {
    fn full_range(&self) -> Limits {
        self.format.full_range()
    }

    fn declared_ranges(&self) -> Option<&[Limits]> {
        self.declared.as_deref()
    }

    fn read_stored(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row_len = self.width() * self.channels();
        for (y, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            if !self.rows.contains(&y) {
                self.load((self.chosen.index, self.chosen.level), y)?;
            }
            let local = y - self.rows.start;
            self.view(self.width())?.read_stored(local..local + 1, out)?;
        }
        Ok(())
    }

    fn survey(&mut self, sample: &mut IntensitySample) -> Result<bool> {
        let Some(level) = self.surveyed() else { return Ok(false) };
        let tile_height = self.tile().1;
        for y in (0..level.1.height as usize).step_by(tile_height) {
            self.load(level, y)?;
            self.view(level.1.width as usize)?.survey(sample)?;
        }
        self.rows = 0..0;
        Ok(true)
    }
}

/// Sets a source of `struct_size` bytes to zeros and its size; MDM_SOURCE_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_source_init(source: *mut mdm_source, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(source, struct_size) }
}

/// Sets a sink of `struct_size` bytes to zeros and its size; MDM_SINK_INIT does the same. Ignores NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_sink_init(sink: *mut mdm_sink, struct_size: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { structs::initialise(sink, struct_size) }
}

/// Tells which level of a source would be read, and how large its result is. Any thread may call this; nothing is read.
///
/// @param segmenter  the segmenter
/// @param source     the source
/// @param label_type MDM_LABEL_U8 or MDM_LABEL_U16
/// @param size       filled in; its struct_size must be set
/// @param error      receives an error object on failure; may be NULL
/// @return MDM_OK, MDM_ERROR_INVALID_HANDLE, MDM_ERROR_INVALID_ARGUMENT, MDM_ERROR_ABI or MDM_ERROR_IMAGE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_segmenter_source_size(
    segmenter: *const mdm_segmenter,
    source: *const mdm_source,
    label_type: mdm_label_type,
    size: *mut mdm_result_size,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenSegmenter>(segmenter)?;
            let Chosen { index, level, .. } = choose(&structs::read(source)?, object.microns)?;
            let result = result_size(level.width, level.height, object.classes, label_type, index as u32)?;
            structs::write(size, &result)
        })
    }
}

/// Segments an image that is read as it is needed, and hands out the result as soon as it is there. Memory depends on the
/// image's width, not on its height. Callbacks run on the calling thread.
///
/// @param segmenter not in use by another thread; it may be freed meanwhile, which cancels the run
/// @param source    the image
/// @param sink      takes the result; what it took before a failure is part of the result
/// @param run       how to watch and stop it; NULL for neither
/// @param report    filled in where not NULL; its struct_size must be set
/// @param error     receives an error object on failure; may be NULL
/// @return as mdm_segmenter_run, and MDM_ERROR_CALLBACK where a callback failed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mdm_segmenter_run_source(
    segmenter: *mut mdm_segmenter,
    source: *const mdm_source,
    sink: *const mdm_sink,
    run: *const mdm_run,
    report: *mut mdm_report,
    error: *mut *mut mdm_error,
) -> mdm_status {
    // SAFETY: the caller vouches for the pointers and callbacks.
    unsafe {
        call(error, || {
            let object = handles::get::<OpenSegmenter>(segmenter)?;
            let (source, sink) = (structs::read(source)?, structs::read(sink)?);
            let run = structs::read_or_default(run)?;
            if !report.is_null() {
                structs::check(report)?;
            }
            let Some(write) = sink.write else {
                return Err(Failure::argument("write of the mdm_sink is NULL"));
            };
            label_size(sink.label_type)?;
            if sink.reserved != 0 {
                return Err(Failure::argument("reserved of the mdm_sink must be 0"));
            }
            let stopped = Stopped::default();
            let mut reader = Reader::new(source, object.microns, &stopped)?;
            let level = reader.level();
            let mut wide: Vec<u16> = Vec::new();
            let mut segmenter = object.exclusive()?;
            let done = controlled(run, &object.freed, |control| {
                let mut hand_out = |band: Band<'_>| {
                    let mut labels = band.labels.as_ptr().cast();
                    if sink.label_type == MDM_LABEL_U16 {
                        wide.clear();
                        wide.extend(band.labels.iter().map(|&label| u16::from(label)));
                        labels = wide.as_ptr().cast();
                    }
                    let values = |values: Option<&[f32]>| values.map_or(std::ptr::null(), <[f32]>::as_ptr);
                    // Sides are at most 2^30.
                    let band = mdm_band {
                        struct_size: size_of::<mdm_band>(),
                        labels,
                        probabilities: values(band.probabilities),
                        uncertainty: values(band.uncertainty),
                        y: band.top as u32,
                        height: band.height as u32,
                        width: band.width as u32,
                        classes: band.classes as u32,
                    };
                    returned(write(sink.user_data, &raw const band), "write", &stopped)
                };
                segmenter.segment_bands(&mut reader, &mut hand_out, control)
            });
            let done = done.map_err(|failure| stopped.take().unwrap_or(failure))?;
            mdm_report::new(&done, level).tell(report)
        })
    }
}
