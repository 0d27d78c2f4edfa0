//! Bilinear upsampling (align_corners = false), a row at a time.

#![allow(unsafe_code)]

use std::ops::Range;

use super::reader::{Map, load, store};
use super::simd::Simd;

/// Where an output position lies between two input positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    pub first: usize,
    pub second: usize,
    /// Share of the second.
    pub share: f32,
}

/// Position `at` of `size` outputs among `from` inputs.
pub fn between(at: usize, size: usize, from: usize) -> Between {
    let position = ((at as f64 + 0.5) * from as f64 / size as f64 - 0.5).max(0.0);
    let first = (position as usize).min(from - 1);
    Between { first, second: (first + 1).min(from - 1), share: (position - first as f64) as f32 }
}

/// Row `y` of `height` of the upsampled map, still at the map's own width: `[map.width, channels]`.
///
/// # Safety
/// The map is valid, `channels` are its own, and `out` takes the row.
#[inline(always)]
pub unsafe fn row_between<S: Simd>(
    map: &Map,
    sample: usize,
    y: usize,
    height: usize,
    channels: Range<usize>,
    out: *mut f32,
) {
    let rows = between(y, height, map.height);
    let stride = map.width * map.channels;
    // SAFETY: promised by the caller.
    unsafe {
        let image = map.data.add(sample * map.sample_len() + channels.start);
        let share = S::splat(rows.share);
        for x in 0..map.width {
            let first = image.add(rows.first * stride + x * map.channels);
            let second = image.add(rows.second * stride + x * map.channels);
            let to = out.add(x * channels.len());
            let mut c = 0;
            while c < channels.len() {
                let lanes = S::LANES.min(channels.len() - c);
                let a = load::<S>(first.add(c), lanes);
                let b = load::<S>(second.add(c), lanes);
                store::<S>(to.add(c), S::mul_add(share, S::sub(b, a), a), lanes);
                c += S::LANES;
            }
        }
    }
}

/// `lanes` channels from `c` on of column `x`, of a row made by [`row_between`].
///
/// # Safety
/// The row holds `channels` values at both columns.
#[inline(always)]
pub unsafe fn column_between<S: Simd>(
    row: *const f32,
    channels: usize,
    x: Between,
    c: usize,
    lanes: usize,
) -> S::V {
    // SAFETY: promised by the caller.
    unsafe {
        let a = load::<S>(row.add(x.first * channels + c), lanes);
        let b = load::<S>(row.add(x.second * channels + c), lanes);
        S::mul_add(S::splat(x.share), S::sub(b, a), a)
    }
}
