//! Reads TIFF files: which of their planes are meant, and what is in these.

mod compression;
mod description;
mod page;
mod raster;
#[cfg(test)]
mod tests;

use std::path::Path;

use tiff::tags::Tag;

use self::compression::Compression;
use self::description::{Axis, Description, Place, plane_index};
use self::page::{Meaning, Page, Tiff};
use self::raster::{Palette, finish, read_samples};
use crate::choice::{Chosen, Extent, ReadOptions};
use crate::error::{Result, damaged, failed};
use crate::intensity::{DeclaredRange, NumberKind, RangeSource, StoredType};
use crate::memory::{Kind, allocate};
use crate::orientation::Orientation;
use crate::pixel_size::PixelSize;
use crate::read::{Pixels, Stored};

/// Width and height as shown of the image that [`read`] would give.
pub(crate) fn size(path: &Path) -> Result<(usize, usize)> {
    let mut tiff = Tiff::open(path)?;
    let first = first_page(&mut tiff)?;
    let ((width, height), _) = tiff.outline(first)?;
    Ok(orientation(&mut tiff, first)?.size((width as usize, height as usize)))
}

/// Reads what `options` choose.
pub(crate) fn read(path: &Path, options: &ReadOptions) -> Result<Stored> {
    let mut tiff = Tiff::open(path)?;
    let planes = Planes::of(&mut tiff, options)?;
    let chosen = planes.extent().choose(options).map_err(|reason| failed(path, reason))?;
    if let Some(reason) = &tiff.broken_after
        && (options.z.is_some() || options.time.is_some() || !options.channels.is_empty())
    {
        return Err(damaged(path, format!("after page {}: {reason}", tiff.len())));
    }
    let mut pixels = planes.read(&mut tiff, &chosen, chosen.z.start, options)?;
    for z in chosen.z.clone().skip(1) {
        pixels.maximum(&planes.read(&mut tiff, &chosen, z, options)?);
    }
    let declared_range = planes.declared(&mut tiff, &chosen.channels);
    Ok(Stored {
        width: planes.page.width as usize,
        height: planes.page.height as usize,
        channels: chosen.channels.len(),
        pixels,
        stored: planes.stored(),
        declared_range,
        orientation: orientation(&mut tiff, planes.first)?,
        pixel_size: planes.pixel_size(&mut tiff),
        left_out: chosen.left_out,
    })
}

/// The values of a page as they are stored, before anything is made of them.
pub(crate) struct Raw {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Values of a pixel.
    pub(crate) samples: usize,
    /// `[height, width, samples]`; indices where there is a palette.
    pub(crate) pixels: Pixels,
    pub(crate) stored: StoredType,
    pub(crate) palette: Option<Vec<[u8; 3]>>,
    pub(crate) orientation: Orientation,
    /// Pages of the file.
    pub(crate) pages: usize,
    /// Whether compression has changed values.
    pub(crate) lossy: bool,
}

/// Reads the first page as it is stored, in at most `most` bytes.
pub(crate) fn read_raw(path: &Path, most: u64) -> Result<Raw> {
    let mut tiff = Tiff::open(path)?;
    let planes = Planes::of(&mut tiff, &ReadOptions::default())?;
    let page = &planes.page;
    let samples: Vec<usize> = (0..page.samples).collect();
    Ok(Raw {
        width: page.width as usize,
        height: page.height as usize,
        samples: page.samples,
        pixels: read_samples(&mut tiff, page, &samples, 0, most)?,
        stored: page.stored,
        palette: planes.palette.as_ref().map(|palette| palette.colours.clone()),
        orientation: orientation(&mut tiff, planes.first)?,
        pages: planes.sizes.iter().map(|(_, size)| size).product(),
        lossy: page.compression == Compression::Jpeg,
    })
}

/// The first directory that is neither a preview nor a mask, or else the first.
fn first_page(tiff: &mut Tiff) -> Result<usize> {
    for index in 0..tiff.len() {
        if tiff.outline(index)?.1 {
            return Ok(index);
        }
    }
    Ok(0)
}

fn orientation(tiff: &mut Tiff, index: usize) -> Result<Orientation> {
    let number = tiff.number(index, Tag::Orientation)?.unwrap_or(1);
    Ok(Orientation::from_number(u16::try_from(number).unwrap_or(1)))
}

/// The planes of a file, in the order of their axes.
struct Planes {
    /// The first page, whose properties all have.
    first: usize,
    page: Page,
    palette: Option<Palette>,
    description: Description,
    /// Directories of the pages.
    pages: Vec<usize>,
    /// Planes follow each other without directories.
    contiguous: bool,
    sizes: [(Axis, usize); 3],
    channel_names: Vec<Option<String>>,
}

impl Planes {
    fn of(tiff: &mut Tiff, options: &ReadOptions) -> Result<Self> {
        let path = tiff.path.clone();
        let first = first_page(tiff)?;
        let page = tiff.page(first)?;
        let palette = match page.meaning {
            Meaning::Palette => {
                let map = tiff.numbers(first, Tag::ColorMap)?;
                let palette = Palette::new(&map).filter(|_| page.kind() == Kind::U8);
                Some(palette.ok_or_else(|| damaged(&path, "its palette is missing, or too large"))?)
            }
            _ => None,
        };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let description = Description::parse(&tiff.bytes(first, Tag::ImageDescription)?, &file);
        let outline = tiff.outline(first)?;
        let pages: Vec<usize> = (first..tiff.len())
            .filter(|index| *index == first || tiff.outline(*index).is_ok_and(|other| other == outline))
            .collect();
        let mut planes = Self {
            first,
            page,
            palette,
            description,
            pages,
            contiguous: false,
            sizes: [(Axis::Channel, 1), (Axis::Z, 1), (Axis::Time, 1)],
            channel_names: Vec::new(),
        };
        planes.find_axes(&path, options)?;
        Ok(planes)
    }

    fn find_axes(&mut self, path: &Path, options: &ReadOptions) -> Result<()> {
        let pages = self.pages.len();
        match &self.description {
            Description::Ome(ome) => {
                // The channels of OME count all values of a pixel.
                let samples = self.page.samples;
                let channels =
                    if ome.channels % samples == 0 { ome.channels / samples } else { ome.channels };
                self.sizes = ome.order.map(|axis| match axis {
                    Axis::Channel => (axis, channels),
                    Axis::Z => (axis, ome.z),
                    Axis::Time => (axis, ome.times),
                });
                self.channel_names.clone_from(&ome.channel_names);
            }
            Description::ImageJ(imagej) if imagej.images > 1 => {
                let (c, z, t) = (imagej.channels, imagej.slices, imagej.frames);
                let known = c.saturating_mul(z).saturating_mul(t) == imagej.images;
                let (c, z, t) = if known { (c, z, t) } else { (1, imagej.images, 1) };
                self.sizes = [(Axis::Channel, c), (Axis::Z, z), (Axis::Time, t)];
                self.contiguous = pages == 1 && self.page.compression == Compression::None;
            }
            _ if pages > 1 => {
                let meanings = [
                    (Axis::Channel, !options.channels.is_empty() && self.channels_in_page() == 1),
                    (Axis::Z, options.z.is_some()),
                    (Axis::Time, options.time.is_some()),
                ];
                let mut asked = meanings.iter().filter(|(_, asked)| *asked).map(|(axis, _)| *axis);
                let meaning = asked.next().unwrap_or(Axis::Z);
                if asked.next().is_some() {
                    return Err(failed(
                        path,
                        format!(
                            "has {pages} pages and does not say whether they are channels, planes or times: use one of --channels, --z \
                             and --time only, or save it as OME-TIFF"
                        ),
                    ));
                }
                for (axis, size) in &mut self.sizes {
                    if *axis == meaning {
                        *size = pages;
                    }
                }
            }
            _ => {}
        }
        let count = self.planes_of_channels() * self.channels_in_page();
        if self.channel_names.len() != count {
            self.channel_names = vec![None; count];
        }
        Ok(())
    }

    /// Channels in each page, as they are seen.
    fn channels_in_page(&self) -> usize {
        match (self.page.meaning, &self.palette) {
            (Meaning::Palette, Some(palette)) => palette.channels(),
            (Meaning::Cmyk, _) => 3,
            _ => self.page.samples - usize::from(self.page.opacity),
        }
    }

    fn size(&self, wanted: Axis) -> usize {
        self.sizes.iter().find(|(axis, _)| *axis == wanted).map_or(1, |(_, size)| *size)
    }

    fn planes_of_channels(&self) -> usize {
        self.size(Axis::Channel)
    }

    fn extent(&self) -> Extent<'_> {
        let colours = match self.page.meaning {
            Meaning::Grey { .. } => 1,
            Meaning::Palette => self.channels_in_page(),
            Meaning::Rgb | Meaning::Cmyk | Meaning::YCbCr => 3,
        };
        Extent { channels: &self.channel_names, colours, z: self.size(Axis::Z), times: self.size(Axis::Time) }
    }

    /// The chosen channels of one plane of a stack.
    fn read(&self, tiff: &mut Tiff, chosen: &Chosen, z: usize, options: &ReadOptions) -> Result<Pixels> {
        let in_page = self.channels_in_page();
        let plane_of = |channel: &usize| channel / in_page;
        let mut planes: Vec<usize> = chosen.channels.iter().map(plane_of).collect();
        planes.sort_unstable();
        planes.dedup();
        if let [only] = planes.as_slice() {
            let channels: Vec<usize> = chosen.channels.iter().map(|channel| channel % in_page).collect();
            return self.read_plane(tiff, [*only, z, chosen.time], &channels, options);
        }
        let size = (self.page.width, self.page.height);
        let count = chosen.channels.len();
        let mut all = allocate(&tiff.path, size, count, self.page.kind(), options.limit())?;
        for plane in planes {
            let (places, channels): (Vec<usize>, Vec<usize>) = chosen
                .channels
                .iter()
                .enumerate()
                .filter(|(_, channel)| plane_of(channel) == plane)
                .map(|(place, channel)| (place, channel % in_page))
                .unzip();
            let part = self.read_plane(tiff, [plane, z, chosen.time], &channels, options)?;
            all.insert(&part, &places, count);
        }
        Ok(all)
    }

    /// `channels` of the page that holds a channel, z and time.
    fn read_plane(
        &self,
        tiff: &mut Tiff,
        plane: [usize; 3],
        channels: &[usize],
        options: &ReadOptions,
    ) -> Result<Pixels> {
        let (page, shift) = self.find(tiff, plane)?;
        let limit = options.limit();
        if matches!(self.page.meaning, Meaning::Grey { .. } | Meaning::Rgb | Meaning::YCbCr) {
            let mut pixels = read_samples(tiff, &page, channels, shift, limit)?;
            finish(&page, &mut pixels, None);
            return Ok(pixels);
        }
        let samples: Vec<usize> = if self.palette.is_some() { vec![0] } else { (0..4).collect() };
        let mut pixels = read_samples(tiff, &page, &samples, shift, limit)?;
        finish(&page, &mut pixels, self.palette.as_ref());
        pixels.pick(self.channels_in_page(), channels);
        Ok(pixels)
    }

    /// The page of a plane, and where its pixels begin after the place that the page states.
    fn find(&self, tiff: &mut Tiff, plane: [usize; 3]) -> Result<(Page, u64)> {
        let path = tiff.path.clone();
        let index = plane_index(&self.sizes, plane);
        if self.contiguous {
            let shift = (index as u64).checked_mul(self.page.plane_bytes());
            let shift = shift.ok_or_else(|| damaged(&path, "it claims more planes than a file can hold"))?;
            let mut page = self.page.clone();
            if page.offsets.len() > 1 {
                // The strips of a plane follow each other too.
                page.offsets.truncate(1);
                page.byte_counts.truncate(1);
                page.chunk.1 = page.height;
            }
            return Ok((page, shift));
        }
        let [channel, z, time] = plane;
        let missing = |place: &str| {
            failed(
                &path,
                format!("the plane of channel {}, z {} and time {} is {place}", channel + 1, z + 1, time + 1),
            )
        };
        let stated = match &self.description {
            Description::Ome(ome) => {
                let first_of_page = [channel * (ome.channels / self.planes_of_channels()), z, time];
                ome.places.get(&first_of_page)
            }
            _ => None,
        };
        let directory = match stated {
            Some(Place::Elsewhere(file)) => {
                return Err(missing(&format!("in another file of the set: {file}")));
            }
            Some(Place::Here(directory)) if *directory < tiff.len() => *directory,
            Some(Place::Here(_)) => return Err(missing("missing: the file is cut short or incomplete")),
            None => *self
                .pages
                .get(index)
                .ok_or_else(|| missing("missing: the file is cut short or incomplete"))?,
        };
        if directory == self.first {
            return Ok((self.page.clone(), 0));
        }
        let page = tiff.page(directory)?;
        let alike =
            |page: &Page| (page.width, page.height, page.stored, page.samples, page.meaning, page.opacity);
        if alike(&page) != alike(&self.page) {
            return Err(failed(
                &path,
                format!("page {} has another size or type than page {}", directory + 1, self.first + 1),
            ));
        }
        Ok((page, 0))
    }

    /// The type that the values have been brought to, or that they have in the file where nothing was lost.
    fn stored(&self) -> StoredType {
        match self.page.stored {
            StoredType { kind: NumberKind::Unsigned, bits: ..8 } => StoredType::U8,
            stored => stored,
        }
    }

    /// What the file says about the intensities of these channels.
    fn declared(&self, tiff: &mut Tiff, channels: &[usize]) -> Option<DeclaredRange> {
        if !matches!(self.page.meaning, Meaning::Grey { white_is_zero: false } | Meaning::Rgb) {
            return None;
        }
        let stored = self.stored();
        let count = channels.len();
        if let Description::Ome(ome) = &self.description
            && let Some(bits) = ome.significant_bits
        {
            let source = RangeSource::OmeSignificantBits;
            if let Some(range) = DeclaredRange::of_significant_bits(bits, stored, count, source) {
                return Some(range);
            }
        }
        let in_page = self.channels_in_page();
        let mut numbers = |tag| {
            let numbers = tiff.real_numbers(self.first, tag);
            let of = |channel: &usize| match *numbers.as_slice() {
                [only] => Some(only),
                ref several => several.get(channel % in_page).copied(),
            };
            channels.iter().map(of).collect::<Option<Vec<f64>>>()
        };
        let stated = match numbers(Tag::SMaxSampleValue) {
            Some(high) => numbers(Tag::SMinSampleValue).map(|low| (low, high)),
            None => numbers(Tag::MaxSampleValue)
                .map(|high| (numbers(Tag::MinSampleValue).unwrap_or_else(|| vec![0.0; count]), high)),
        };
        if let Some((low, high)) = stated {
            let channels: Vec<(f64, f64)> = low.into_iter().zip(high).collect();
            // As wide as the type: nothing is said.
            if channels.iter().any(|range| Some(*range) != stored.limits()) {
                return Some(DeclaredRange { channels, source: RangeSource::TiffSampleValues });
            }
        }
        // Between bytes, memory has wider values than the file.
        let range = stored.limits().filter(|_| (9..16).contains(&stored.bits))?;
        Some(DeclaredRange { channels: vec![range; count], source: RangeSource::BitsPerSample })
    }

    /// From the description, or else from the resolution tags.
    fn pixel_size(&self, tiff: &mut Tiff) -> PixelSize {
        let mut density = |tag| tiff.real_numbers(self.first, tag).first().copied();
        let along_x = density(Tag::XResolution);
        let along_y = density(Tag::YResolution).or(along_x);
        let density = along_x.zip(along_y);
        match &self.description {
            Description::Ome(ome) if ome.pixel_size != PixelSize::Absent => return ome.pixel_size.clone(),
            Description::Aperio(size) if *size != PixelSize::Absent => return size.clone(),
            Description::Broken(error) => {
                return PixelSize::NotUnderstood(format!("OME-XML that is broken: {error}"));
            }
            Description::ImageJ(imagej) => {
                if let Some(size) = imagej.pixel_size(density) {
                    return size;
                }
            }
            _ => {}
        }
        let unit = match tiff.number(self.first, Tag::ResolutionUnit).ok().flatten().unwrap_or(2) {
            2 => 25_400.0,
            3 => 10_000.0,
            _ => return PixelSize::Absent,
        };
        density.map_or(PixelSize::Absent, |(x, y)| PixelSize::of_density(x, y, unit))
    }
}
