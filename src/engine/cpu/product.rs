//! Matrix products: rows of activations times packed panels of weights.
//!
//! The left matrix is read where it lies. Its inner dimension may consist of several [`Segment`]s, which is how a 3x3
//! convolution (three runs of three pixels) and a concatenation (one run a tensor) become products without a copy.

#![allow(unsafe_code)]

use super::simd::{Kernel, PANEL_VECTORS, Simd, panel};
use super::sums::Runs;

/// Values of a cache line.
const LINE: usize = 16;

/// A part of the inner dimension that is contiguous within each row of the left matrix.
#[derive(Clone, Copy)]
pub struct Segment {
    /// First row.
    pub start: *const f32,
    /// Values from one row to the next.
    pub row_stride: usize,
    /// Values of a row.
    pub len: usize,
}

/// `out = [out +] [bias +] left * right`, where `right` lies in panels of [`panel`] columns: for each panel all rows of
/// the inner dimension, the last panel padded with zeros.
///
/// # Safety
/// As a kernel's fields: all pointers are valid for what the sizes say, and `out` is nobody else's.
pub struct Product<'a> {
    pub segments: &'a [Segment],
    pub rows: usize,
    pub right: *const f32,
    /// Terms after which sums are put [aside](Runs).
    pub terms: usize,
    /// Both matrices hold bf16 values, two where a value is counted otherwise: those of an even step of the inner dimension and
    /// of the next one. Only where the instruction set [has them](Simd::BF16).
    pub bf16: bool,
    pub columns: usize,
    /// `columns` values, or null.
    pub bias: *const f32,
    /// Adds to what `out` holds.
    pub accumulate: bool,
    pub out: *mut f32,
    pub out_stride: usize,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as promised for the fields.
        unsafe { product::<S>(&self) }
    }
}

/// # Safety
/// As for [`Product`].
#[inline(always)]
pub unsafe fn product<S: Simd>(p: &Product<'_>) {
    let inner: usize = p.segments.iter().map(|segment| segment.len).sum();
    // Equal tiles rather than full ones and a thin rest: thin tiles are bound by loading the panel.
    let tiles = p.rows.div_ceil(S::ROWS);
    let mut column = 0;
    while column < p.columns {
        // SAFETY: the panel of `column` starts at `column * inner`; every tile lies within the rows.
        unsafe {
            let right = p.right.add(column * inner);
            let mut row = 0;
            for index in 0..tiles {
                let end = (index + 1) * p.rows / tiles;
                // The last tile brings the next panel nearer. Often more weights follow the last panel too.
                let ahead = if index + 1 == tiles { panel::<S>() * inner } else { 0 };
                tile::<S>(p, right, ahead, row, end - row, column);
                row = end;
            }
        }
        column += panel::<S>();
    }
}

/// # Safety
/// As for [`Product`]; the tile lies inside it.
#[inline(always)]
unsafe fn tile<S: Simd>(
    p: &Product<'_>,
    right: *const f32,
    ahead: usize,
    row: usize,
    rows: usize,
    column: usize,
) {
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match rows {
                // The guards are constant, so what there are no registers or instructions for is not even compiled.
                // SAFETY: promised by the caller.
                $($n if S::BF16 && p.bf16 && $n <= S::ROWS => unsafe {
                    S::outlined(Tile::<$n, true> { p, right, ahead, row, column })
                },
                // SAFETY: as above.
                $n if $n <= S::ROWS => unsafe {
                    S::outlined(Tile::<$n, false> { p, right, ahead, row, column })
                },)*
                _ => {}
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// `R` rows and one panel of the result, held in registers.
struct Tile<'a, const R: usize, const BF16: bool> {
    p: &'a Product<'a>,
    right: *const f32,
    /// How far behind what is read lies what is brought nearer meanwhile.
    ahead: usize,
    row: usize,
    column: usize,
}

impl<const R: usize, const BF16: bool> Kernel for Tile<'_, R, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the tile lies inside the product.
        unsafe { fixed_tile::<S, R, BF16>(&self) }
    }
}

/// # Safety
/// As for [`tile`] with `R` rows.
#[inline(always)]
unsafe fn fixed_tile<S: Simd, const R: usize, const BF16: bool>(tile: &Tile<'_, R, BF16>) {
    let &Tile { p, right, ahead, row, column } = tile;
    // SAFETY: promised by the caller; `right` holds a full panel for each step of the inner dimension.
    unsafe {
        let mut sums = [[S::splat(0.0); PANEL_VECTORS]; R];
        let mut runs = Runs::<S, R>::new(p.terms);
        let mut right = right;
        for segment in p.segments {
            let stride = segment.row_stride;
            let mut left = segment.start.add(row * stride);
            let mut rest = segment.len;
            while rest > 0 {
                let steps = runs.next(rest, &mut sums);
                for _ in 0..steps {
                    for line in 0..(panel::<S>() / LINE).max(1) {
                        S::prefetch(right.wrapping_add(ahead + line * LINE));
                    }
                    step::<S, R, BF16>(&mut sums, left, stride, right);
                    left = left.add(1);
                    right = right.add(panel::<S>());
                }
                rest -= steps;
            }
        }
        runs.finish(&mut sums);
        let out = p.out.add(row * p.out_stride + column);
        if column + panel::<S>() <= p.columns {
            for v in 0..PANEL_VECTORS {
                let bias =
                    if p.bias.is_null() { S::splat(0.0) } else { S::load(p.bias.add(column + v * S::LANES)) };
                for (r, sum) in sums.iter().enumerate() {
                    let to = out.add(r * p.out_stride + v * S::LANES);
                    let value = S::add(sum[v], bias);
                    S::store(to, if p.accumulate { S::add(S::load(to), value) } else { value });
                }
            }
        } else {
            for (r, sum) in sums.iter().enumerate() {
                let mut values = [0.0f32; 64];
                for (v, &sum) in sum.iter().enumerate() {
                    S::store(values.as_mut_ptr().add(v * S::LANES), sum);
                }
                for (c, value) in values[..p.columns - column].iter().enumerate() {
                    let to = out.add(r * p.out_stride + c);
                    let bias = if p.bias.is_null() { 0.0 } else { *p.bias.add(column + c) };
                    *to = value + bias + if p.accumulate { *to } else { 0.0 };
                }
            }
        }
    }
}

/// Adds the outer product of one column of the left tile and one row of the panel.
///
/// # Safety
/// Both are there in full.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const BF16: bool>(
    sums: &mut [[S::V; PANEL_VECTORS]; R],
    left: *const f32,
    stride: usize,
    right: *const f32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let (b0, b1) = (S::load(right), S::load(right.add(S::LANES)));
        let mut r = 0;
        while r < R {
            let a = S::splat(*left.add(r * stride));
            sums[r] = if BF16 {
                [S::dot_bf16(a, b0, sums[r][0]), S::dot_bf16(a, b1, sums[r][1])]
            } else {
                [S::mul_add(a, b0, sums[r][0]), S::mul_add(a, b1, sums[r][1])]
            };
            r += 1;
        }
    }
}
