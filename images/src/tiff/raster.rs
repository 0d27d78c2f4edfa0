//! The pixels of a page, as its tiles and strips hold them.

use std::io::{Read, Seek, SeekFrom};

use bytemuck::Pod;
use half::f16;

use super::compression::{Compression, decompress};
use super::page::{Meaning, Page, Tiff};
use crate::error::{Result, damaged, unsupported};
use crate::intensity::NumberKind;
use crate::memory::{Kind, allocate, claimed_values, too_large, zeros};
use crate::read::Pixels;

/// Bytes of uncompressed rows that are read at a time.
const BAND: usize = 1 << 20;

impl Page {
    /// Type of the values in memory.
    pub(super) fn kind(&self) -> Kind {
        match (self.stored.kind, self.stored.bits) {
            (NumberKind::Unsigned, ..=8) => Kind::U8,
            (NumberKind::Unsigned, ..=16) => Kind::U16,
            _ => Kind::F32,
        }
    }

    /// Interleaved values of a pixel in a tile or strip.
    fn samples_in_chunk(&self) -> usize {
        if self.planar { 1 } else { self.samples }
    }

    /// Bytes of a row of a tile or strip.
    fn row_bytes(&self) -> usize {
        let bits = self.chunk.0 as usize * self.samples_in_chunk() * usize::from(self.stored.bits);
        bits.div_ceil(8)
    }

    /// Bytes of all uncompressed pixels.
    pub(super) fn plane_bytes(&self) -> u64 {
        let planes = if self.planar { self.samples as u64 } else { 1 };
        self.row_bytes() as u64 * u64::from(self.height) * planes
    }

    /// Whether values take whole bytes.
    fn whole_bytes(&self) -> bool {
        matches!(self.stored.bits, 8 | 16 | 32 | 64)
    }
}

/// Reads the values `samples` of each pixel, interleaved, as they are stored.
///
/// `shift` is where the pixels begin after the place that the page states. Tiles and strips that were left out are zeros.
pub(super) fn read_samples(
    tiff: &mut Tiff,
    page: &Page,
    samples: &[usize],
    shift: u64,
    most: u64,
) -> Result<Pixels> {
    let path = tiff.path.clone();
    if page.compression == Compression::Jpeg && page.stored.bits != 8 {
        let what = format!("JPEG compression of {} values", page.stored);
        return Err(unsupported(&path, what, "save it with Deflate or LZW"));
    }
    if !page.whole_bytes() && predicted(page) {
        let what = format!("compression of differences of {} values", page.stored);
        return Err(unsupported(&path, what, "save it without a predictor"));
    }
    let size = (page.width, page.height);
    let mut pixels = allocate(&path, size, samples.len(), page.kind(), most)?;
    let value_bytes = usize::from(page.stored.bits).div_ceil(8);
    claimed_values(&path, page.chunk, page.samples_in_chunk(), value_bytes)?;
    let across = page.width.div_ceil(page.chunk.0);
    let down = page.height.div_ceil(page.chunk.1);
    // Each plane is read for the one channel that is in it; otherwise all channels at once.
    let picks: Vec<(usize, usize)> = samples.iter().copied().zip(0..).collect();
    let rounds: Vec<(usize, Vec<(usize, usize)>)> = if page.planar {
        picks.into_iter().map(|(sample, channel)| (sample, vec![(0, channel)])).collect()
    } else {
        vec![(0, picks)]
    };
    for (plane, picks) in &rounds {
        for chunk in 0..across * down {
            let index = plane * (across * down) as usize + chunk as usize;
            let place = Place { x: chunk % across * page.chunk.0, y: chunk / across * page.chunk.1 };
            let mut target = Target { pixels: &mut pixels, channels: samples.len(), picks };
            read_chunk(tiff, page, index, place, shift, &mut target)?;
        }
    }
    Ok(pixels)
}

/// Upper left corner of a tile or strip in the image.
#[derive(Clone, Copy)]
struct Place {
    x: u32,
    y: u32,
}

/// Where values go.
struct Target<'a> {
    pixels: &'a mut Pixels,
    channels: usize,
    /// Samples of a tile's or strip's pixel, and the channels that they become.
    picks: &'a [(usize, usize)],
}

fn read_chunk(
    tiff: &mut Tiff,
    page: &Page,
    index: usize,
    place: Place,
    shift: u64,
    target: &mut Target<'_>,
) -> Result<()> {
    let path = tiff.path.clone();
    let (Some(&offset), Some(&count)) = (page.offsets.get(index), page.byte_counts.get(index)) else {
        return Err(damaged(&path, "a tile or strip is missing"));
    };
    if offset == 0 || count == 0 {
        return Ok(());
    }
    let big_endian = tiff.big_endian();
    let row_bytes = page.row_bytes();
    let rows_in_image = page.chunk.1.min(page.height - place.y) as usize;
    // Tiles are stored whole, strips end with the image.
    let rows_stored = if page.tiled { page.chunk.1 as usize } else { rows_in_image };
    let no_memory = || too_large(&path, page.chunk.0, page.chunk.1);
    let cut = |error: std::io::Error| damaged(&path, error);
    if page.compression == Compression::None {
        let rows_at_once = (BAND / row_bytes).clamp(1, rows_in_image);
        let mut band: Vec<u8> = zeros(rows_at_once * row_bytes).ok_or_else(no_memory)?;
        let begin =
            offset.checked_add(shift).ok_or_else(|| damaged(&path, "a tile or strip lies beyond its end"))?;
        tiff.reader().seek(SeekFrom::Start(begin)).map_err(cut)?;
        for first in (0..rows_in_image).step_by(rows_at_once) {
            let band = &mut band[..rows_at_once.min(rows_in_image - first) * row_bytes];
            tiff.reader().read_exact(band).map_err(cut)?;
            if page.low_bits_first {
                for byte in band.iter_mut() {
                    *byte = byte.reverse_bits();
                }
            }
            let y = place.y as usize + first;
            store(page, band, big_endian, (place.x as usize, y), target);
        }
        return Ok(());
    }
    let in_file = tiff.bytes_in_file()?;
    let count = count.min(in_file.saturating_sub(offset)) as usize;
    let mut data: Vec<u8> = zeros(count).ok_or_else(no_memory)?;
    tiff.reader().seek(SeekFrom::Start(offset)).map_err(cut)?;
    tiff.reader().read_exact(&mut data).map_err(cut)?;
    let mut rows: Vec<u8> = zeros(rows_stored * row_bytes).ok_or_else(no_memory)?;
    decompress(page, data, (page.chunk.0, rows_stored as u32), &mut rows)
        .map_err(|error| damaged(&path, error))?;
    store(
        page,
        &mut rows[..rows_in_image * row_bytes],
        big_endian,
        (place.x as usize, place.y as usize),
        target,
    );
    Ok(())
}

/// Whether differences of values are stored. Only these compressions have it, whatever the tag says.
fn predicted(page: &Page) -> bool {
    page.predictor > 1
        && matches!(page.compression, Compression::Lzw | Compression::Deflate | Compression::Zstandard)
}

/// Stores whole rows of a tile or strip, of which the first begins at `(x, y)` of the image.
fn store(page: &Page, rows: &mut [u8], big_endian: bool, (x, y): (usize, usize), target: &mut Target<'_>) {
    let samples = page.samples_in_chunk();
    let width = page.width as usize;
    let count = (page.chunk.0 as usize).min(width - x);
    let swap = big_endian != cfg!(target_endian = "big") && page.compression != Compression::Jpeg;
    let predictor = if predicted(page) { page.predictor } else { 1 };
    let mut wide: Vec<u16> = Vec::new();
    for (row, y) in rows.chunks_exact_mut(page.row_bytes()).zip(y..) {
        let start = (y * width + x) * target.channels;
        let mut to = To { start, channels: target.channels, picks: target.picks, samples, count };
        if !page.whole_bytes() {
            unpack(row, usize::from(page.stored.bits), &mut wide);
            match target.pixels {
                Pixels::U8(out) => to.put(bytemuck::cast_slice(&wide), out, |value: u16| value as u8),
                Pixels::U16(out) => to.put(bytemuck::cast_slice(&wide), out, |value: u16| value),
                Pixels::F32(_) => {}
            }
            continue;
        }
        let bytes = usize::from(page.stored.bits) / 8;
        match predictor {
            3 => undo_float_predictor(row, samples, bytes),
            2 => {
                swap_bytes(row, bytes, swap);
                undo_differences(row, samples, bytes);
            }
            _ => swap_bytes(row, bytes, swap),
        }
        match (&mut *target.pixels, page.stored.kind, bytes) {
            (Pixels::U8(out), ..) => to.put(row, out, |value: u8| value),
            (Pixels::U16(out), ..) => to.put(row, out, |value: u16| value),
            (Pixels::F32(out), NumberKind::Unsigned, 4) => to.put(row, out, |value: u32| value as f32),
            (Pixels::F32(out), NumberKind::Unsigned, _) => to.put(row, out, |value: u64| value as f32),
            (Pixels::F32(out), NumberKind::Signed, 1) => to.put(row, out, |value: i8| value.into()),
            (Pixels::F32(out), NumberKind::Signed, 2) => to.put(row, out, |value: i16| value.into()),
            (Pixels::F32(out), NumberKind::Signed, 4) => to.put(row, out, |value: i32| value as f32),
            (Pixels::F32(out), NumberKind::Signed, _) => to.put(row, out, |value: i64| value as f32),
            (Pixels::F32(out), NumberKind::Float, 2) => to.put(row, out, |value: f16| value.to_f32()),
            (Pixels::F32(out), NumberKind::Float, 4) => to.put(row, out, |value: f32| value),
            (Pixels::F32(out), NumberKind::Float, _) => to.put(row, out, |value: f64| value as f32),
        }
    }
}

/// Where the values of a row go.
struct To<'a> {
    /// The first value in the image.
    start: usize,
    channels: usize,
    picks: &'a [(usize, usize)],
    /// Values of a stored pixel.
    samples: usize,
    /// Pixels.
    count: usize,
}

impl To<'_> {
    fn put<T: Pod, O>(&mut self, row: &[u8], out: &mut [O], convert: impl Fn(T) -> O) {
        let bytes = size_of::<T>();
        let out = out[self.start..].chunks_mut(self.channels);
        for (pixel, out) in row.chunks_exact(self.samples * bytes).zip(out).take(self.count) {
            for (sample, channel) in self.picks {
                out[*channel] = convert(bytemuck::pod_read_unaligned(&pixel[sample * bytes..][..bytes]));
            }
        }
    }
}

/// Values of `bits` bits, the highest first, that follow each other without gaps.
fn unpack(row: &[u8], bits: usize, values: &mut Vec<u16>) {
    values.clear();
    let (mut held, mut count) = (0u32, 0);
    for byte in row {
        held = held << 8 | u32::from(*byte);
        count += 8;
        while count >= bits {
            count -= bits;
            values.push((held >> count) as u16 & ((1u32 << bits) - 1) as u16);
        }
        held &= (1 << count) - 1;
    }
}

fn swap_bytes(row: &mut [u8], bytes: usize, swap: bool) {
    if swap && bytes > 1 {
        row.chunks_exact_mut(bytes).for_each(<[u8]>::reverse);
    }
}

fn undo_differences(row: &mut [u8], samples: usize, bytes: usize) {
    macro_rules! undo {
        ($number:ty) => {
            for at in (samples * bytes..row.len() + 1 - bytes).step_by(bytes) {
                let read = |at: usize| <$number>::from_ne_bytes(std::array::from_fn(|i| row[at + i]));
                let sum = read(at).wrapping_add(read(at - samples * bytes));
                row[at..at + bytes].copy_from_slice(&sum.to_ne_bytes());
            }
        };
    }
    match bytes {
        1 => undo!(u8),
        2 => undo!(u16),
        4 => undo!(u32),
        _ => undo!(u64),
    }
}

/// Bytes are differences, and lie sorted by their significance, the highest first.
fn undo_float_predictor(row: &mut [u8], samples: usize, bytes: usize) {
    undo_differences(row, samples, 1);
    let values = row.len() / bytes;
    let sorted = row.to_vec();
    for (at, value) in row.chunks_exact_mut(bytes).enumerate() {
        for (significance, byte) in value.iter_mut().enumerate() {
            let significance =
                if cfg!(target_endian = "big") { significance } else { bytes - 1 - significance };
            *byte = sorted[significance * values + at];
        }
    }
}

/// Makes what is seen of stored values: `samples` a pixel become channels of a grey or an RGB image.
pub(super) fn finish(page: &Page, pixels: &mut Pixels, palette: Option<&Palette>) {
    if let (Some(palette), Pixels::U8(indices)) = (palette, &mut *pixels) {
        *pixels = Pixels::U8(palette.look_up(indices));
        return;
    }
    let bits = page.stored.bits;
    if page.meaning == (Meaning::Grey { white_is_zero: true }) {
        let highest = page.stored.limits().map_or(1.0, |(low, high)| low + high) as f32;
        match pixels {
            Pixels::U8(values) => {
                let highest = (u16::from(u8::MAX) >> (8 - bits.min(8))) as u8;
                values.iter_mut().for_each(|value| *value = highest - *value);
            }
            Pixels::U16(values) => {
                let highest = u16::MAX >> (16 - bits.min(16));
                values.iter_mut().for_each(|value| *value = highest - *value);
            }
            Pixels::F32(values) => values.iter_mut().for_each(|value| *value = highest - *value),
        }
    }
    if let Pixels::U8(values) = &mut *pixels
        && bits < 8
    {
        let highest = (1u16 << bits) - 1;
        for value in values.iter_mut() {
            *value = ((u16::from(*value) * 255 + highest / 2) / highest) as u8;
        }
    }
    if page.meaning == Meaning::Cmyk {
        match pixels {
            Pixels::U8(values) => from_cmyk(values, |colour: u8, black: u8| {
                ((255 - u32::from(colour)) * (255 - u32::from(black)) / 255) as u8
            }),
            Pixels::U16(values) => from_cmyk(values, |colour: u16, black: u16| {
                (u64::from(u16::MAX - colour) * u64::from(u16::MAX - black) / u64::from(u16::MAX)) as u16
            }),
            Pixels::F32(values) => {
                from_cmyk(values, |colour: f32, black: f32| (1.0 - colour) * (1.0 - black));
            }
        }
    }
}

/// Cyan, magenta, yellow and black as red, green and blue.
fn from_cmyk<T: Copy>(values: &mut Vec<T>, mix: impl Fn(T, T) -> T) {
    let pixels = values.len() / 4;
    for pixel in 0..pixels {
        for colour in 0..3 {
            values[3 * pixel + colour] = mix(values[4 * pixel + colour], values[4 * pixel + 3]);
        }
    }
    values.truncate(3 * pixels);
}

/// The colours that indices stand for.
pub(super) struct Palette {
    pub(super) colours: Vec<[u8; 3]>,
    grey: bool,
}

impl Palette {
    /// From the tag, in which all reds come first, then all greens, then all blues, of 16 bits each.
    pub(super) fn new(map: &[u64]) -> Option<Self> {
        let entries = map.len() / 3;
        // Some programs write 8 bits.
        let shift = if map.iter().any(|value| *value > 255) { 8 } else { 0 };
        let colour = |at: usize| [0, 1, 2].map(|part| (map[part * entries + at] >> shift) as u8);
        let colours: Vec<[u8; 3]> = (0..entries).map(colour).collect();
        let grey = colours.iter().all(|[red, green, blue]| red == green && green == blue);
        (entries > 0).then_some(Self { colours, grey })
    }

    pub(super) fn channels(&self) -> usize {
        if self.grey { 1 } else { 3 }
    }

    fn look_up(&self, indices: &[u8]) -> Vec<u8> {
        let colour = |index: &u8| self.colours.get(usize::from(*index)).copied().unwrap_or_default();
        if self.grey {
            indices.iter().map(|index| colour(index)[0]).collect()
        } else {
            indices.iter().flat_map(colour).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_number_of_bits_are_unpacked() {
        let mut values = Vec::new();
        unpack(&[0x12, 0x34, 0x56], 12, &mut values);
        assert_eq!(values, [0x123, 0x456]);
        unpack(&[0b1011_0001], 1, &mut values);
        assert_eq!(values, [1, 0, 1, 1, 0, 0, 0, 1]);
        unpack(&[0xFF, 0xFE, 0x00], 15, &mut values);
        assert_eq!(values, [0x7FFF]);
    }

    #[test]
    fn differences_are_summed_up() {
        let mut row = [1, 10, 2, 20, 255, 250];
        undo_differences(&mut row, 2, 1);
        assert_eq!(row, [1, 10, 3, 30, 2, 24]);
        let mut wide: Vec<u8> = [1u16, 65535, 2].iter().flat_map(|value| value.to_ne_bytes()).collect();
        undo_differences(&mut wide, 1, 2);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, u16>(&wide), [1, 0, 2]);
    }
}
