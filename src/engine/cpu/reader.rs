//! Reads a [`Source`](crate::plan::Source): concatenated, normalised, resampled, padded with zeros.

#![allow(unsafe_code)]

use std::ops::Range;

use super::simd::Simd;
use crate::plan::Resample;

/// A tensor in the arena: `[batch, height, width, channels]`.
#[derive(Clone, Copy)]
pub struct Map {
    pub data: *const f32,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

// SAFETY: a map is only read, and only while the arena's part behind it is not written.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// The values from `offset` on, which lie in the map.
    pub fn at(&self, offset: usize) -> *const f32 {
        self.data.wrapping_add(offset)
    }

    /// Values of one sample.
    pub fn sample_len(&self) -> usize {
        self.height * self.width * self.channels
    }
}

/// A source whose tensors are known.
pub struct Reader {
    pub parts: Vec<Map>,
    /// `[batch, 2 * channels]` and whether SiLU follows.
    pub norm: Option<(Map, bool)>,
    pub resample: Resample,
}

impl Reader {
    /// Channels of the concatenation.
    pub fn channels(&self) -> usize {
        self.parts.iter().map(|part| part.channels).sum()
    }

    /// Rows and columns after resampling.
    pub fn size(&self) -> (usize, usize) {
        let Map { height, width, .. } = self.parts[0];
        match self.resample {
            Resample::None => (height, width),
            Resample::NearestUp => (2 * height, 2 * width),
            Resample::AverageDown => (height / 2, width / 2),
        }
    }

    /// Whether this is one tensor as it is.
    pub fn is_plain(&self) -> bool {
        self.parts.len() == 1 && self.norm.is_none() && self.resample == Resample::None
    }

    /// Writes `count` pixels of row `y` from column `x` on, `channels` of each, to `out`, one pixel every
    /// `pixel_stride` values. Pixels outside of the image are zero.
    ///
    /// # Safety
    /// The maps are valid, `sample` is in the batch, `channels` lie in the concatenation, and `out` takes the pixels.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a window into a four-dimensional tensor")]
    pub unsafe fn row<S: Simd>(
        &self,
        sample: usize,
        y: isize,
        x: isize,
        count: usize,
        channels: Range<usize>,
        out: *mut f32,
        pixel_stride: usize,
    ) {
        let (height, width) = self.size();
        let inside = y >= 0 && (y as usize) < height;
        let left = if inside { ((-x).max(0) as usize).min(count) } else { count };
        let right =
            if inside { (width as isize - x).clamp(left as isize, count as isize) as usize } else { count };
        // SAFETY: all pixels written lie in `0..count`; those read lie in the image.
        unsafe {
            for i in (0..left).chain(right..count) {
                std::ptr::write_bytes(out.add(i * pixel_stride), 0, channels.len());
            }
            if left == right {
                return;
            }
            let mut first = 0;
            for part in &self.parts {
                let (from, to) = (channels.start.max(first), channels.end.min(first + part.channels));
                if from < to {
                    let span = Span {
                        part: *part,
                        resample: self.resample,
                        sample,
                        y: y as usize,
                        x: (x + left as isize) as usize,
                        count: right - left,
                        channels: from - first..to - first,
                        out: out.add(left * pixel_stride + from - channels.start),
                        pixel_stride,
                    };
                    match &self.norm {
                        None => span.copy::<S, PLAIN>(std::ptr::null(), std::ptr::null()),
                        Some((coefficients, silu)) => {
                            let scale = coefficients.data.add(sample * coefficients.channels);
                            let shift = scale.add(coefficients.channels / 2);
                            if *silu {
                                span.copy::<S, SILU>(scale.add(from), shift.add(from));
                            } else {
                                span.copy::<S, AFFINE>(scale.add(from), shift.add(from));
                            }
                        }
                    }
                }
                first += part.channels;
            }
        }
    }
}

const PLAIN: u8 = 0;
const AFFINE: u8 = 1;
const SILU: u8 = 2;

/// Pixels of one row and part, all inside the image.
struct Span {
    part: Map,
    resample: Resample,
    sample: usize,
    y: usize,
    x: usize,
    count: usize,
    channels: Range<usize>,
    out: *mut f32,
    pixel_stride: usize,
}

impl Span {
    /// # Safety
    /// As [`Reader::row`]; `scale` and `shift` are valid for the channels unless `MODE` is plain.
    #[inline(always)]
    unsafe fn copy<S: Simd, const MODE: u8>(&self, scale: *const f32, shift: *const f32) {
        let channels = self.channels.len();
        let whole = channels - channels % S::LANES;
        // SAFETY: lanes never reach past the channels.
        unsafe {
            let mut c = 0;
            while c < whole {
                self.lanes::<S, MODE>(c, S::LANES, scale, shift);
                c += S::LANES;
            }
            if whole < channels {
                self.lanes::<S, MODE>(whole, channels - whole, scale, shift);
            }
        }
    }

    /// # Safety
    /// As [`copy`](Self::copy), for `lanes` channels from `c` on.
    #[inline(always)]
    unsafe fn lanes<S: Simd, const MODE: u8>(
        &self,
        c: usize,
        lanes: usize,
        scale: *const f32,
        shift: *const f32,
    ) {
        let Map { data, height, width, channels } = self.part;
        // SAFETY: rows and columns lie in the part, as the resampled ones lie in the resampled image.
        unsafe {
            let (scale, shift) = if MODE == PLAIN {
                (S::splat(0.0), S::splat(0.0))
            } else {
                (load::<S>(scale.add(c), lanes), load::<S>(shift.add(c), lanes))
            };
            let image = data.add(self.sample * height * width * channels + self.channels.start + c);
            let mut out = self.out.add(c);
            match self.resample {
                Resample::None => {
                    let mut from = image.add((self.y * width + self.x) * channels);
                    for _ in 0..self.count {
                        store::<S>(out, apply::<S, MODE>(load::<S>(from, lanes), scale, shift), lanes);
                        from = from.add(channels);
                        out = out.add(self.pixel_stride);
                    }
                }
                Resample::NearestUp => {
                    let row = image.add(self.y / 2 * width * channels);
                    let mut value = S::splat(0.0);
                    for i in 0..self.count {
                        let x = self.x + i;
                        if i == 0 || x.is_multiple_of(2) {
                            value =
                                apply::<S, MODE>(load::<S>(row.add(x / 2 * channels), lanes), scale, shift);
                        }
                        store::<S>(out, value, lanes);
                        out = out.add(self.pixel_stride);
                    }
                }
                Resample::AverageDown => {
                    let mut from = image.add((2 * self.y * width + 2 * self.x) * channels);
                    let below = width * channels;
                    for _ in 0..self.count {
                        let mut sum = S::splat(0.0);
                        for offset in [0, channels, below, below + channels] {
                            sum = S::add(
                                sum,
                                apply::<S, MODE>(load::<S>(from.add(offset), lanes), scale, shift),
                            );
                        }
                        store::<S>(out, S::mul(sum, S::splat(0.25)), lanes);
                        from = from.add(2 * channels);
                        out = out.add(self.pixel_stride);
                    }
                }
            }
        }
    }
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn apply<S: Simd, const MODE: u8>(value: S::V, scale: S::V, shift: S::V) -> S::V {
    // SAFETY: promised by the caller.
    unsafe {
        match MODE {
            PLAIN => value,
            AFFINE => S::mul_add(value, scale, shift),
            _ => S::silu(S::mul_add(value, scale, shift)),
        }
    }
}

/// The first `lanes` values, zeros after them.
///
/// # Safety
/// `from` is valid for `lanes` values.
#[inline(always)]
pub unsafe fn load<S: Simd>(from: *const f32, lanes: usize) -> S::V {
    // SAFETY: promised by the caller.
    unsafe {
        if lanes == S::LANES {
            return S::load(from);
        }
        let mut values = [0.0f32; 16];
        std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), lanes);
        S::load(values.as_ptr())
    }
}

/// Stores the first `lanes` values.
///
/// # Safety
/// `to` is valid for `lanes` values.
#[inline(always)]
pub unsafe fn store<S: Simd>(to: *mut f32, value: S::V, lanes: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        if lanes == S::LANES {
            return S::store(to, value);
        }
        let mut values = [0.0f32; 16];
        S::store(values.as_mut_ptr(), value);
        std::ptr::copy_nonoverlapping(values.as_ptr(), to, lanes);
    }
}
