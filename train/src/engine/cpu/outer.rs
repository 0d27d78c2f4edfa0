//! Products whose inner dimension is the rows of both matrices: sums of outer products of rows.

#![allow(unsafe_code)]

use mdm::engine::cpu::reader::{load, store};
use mdm::engine::cpu::simd::{Kernel, PANEL_VECTORS, Simd, panel};
use mdm::engine::cpu::sums::{FEW_TERMS, Runs, Sums};

/// Rows that follow each other at equal distances in both matrices.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// First row of the left matrix.
    pub left: *const f32,
    /// Values from one row to the next.
    pub left_stride: usize,
    /// First row of the right matrix.
    pub right: *const f32,
    /// Values from one row to the next.
    pub right_stride: usize,
    /// How many rows.
    pub count: usize,
}

impl Rows {
    /// Makes the left matrix the right one.
    pub(super) fn exchange(&mut self) {
        std::mem::swap(&mut self.left, &mut self.right);
        std::mem::swap(&mut self.left_stride, &mut self.right_stride);
    }
}

/// `out[i, j] = [out[i, j] +] sum over rows r of left[r, i] * right[r, j]`.
///
/// # Safety
/// As a kernel's fields: rows hold `height` and `width` values, and `out` takes as many rows and columns and is nobody
/// else's.
pub(super) struct Outer<'a> {
    pub rows: &'a [Rows],
    pub height: usize,
    pub width: usize,
    /// Adds to what `out` holds.
    pub accumulate: bool,
    pub out: *mut f32,
    pub out_stride: usize,
}

impl Kernel for Outer<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as promised for the fields.
        unsafe { outer::<S>(&self) }
    }
}

/// # Safety
/// As for [`Outer`].
#[inline(always)]
pub(super) unsafe fn outer<S: Simd>(p: &Outer<'_>) {
    let tiles = p.height.div_ceil(S::ROWS);
    for column in (0..p.width).step_by(panel::<S>()) {
        let mut row = 0;
        for index in 0..tiles {
            let end = (index + 1) * p.height / tiles;
            // SAFETY: every tile lies within the result.
            unsafe { tile::<S>(p, row, end - row, column) };
            row = end;
        }
    }
}

/// # Safety
/// As for [`Outer`]; the tile lies inside it.
#[inline(always)]
unsafe fn tile<S: Simd>(p: &Outer<'_>, row: usize, rows: usize, column: usize) {
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: promised by the caller.
                $($n if $n <= S::ROWS => unsafe { S::outlined(Tile::<$n> { p, row, column }) },)*
                _ => {}
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// `R` rows and one panel of the result, held in registers.
struct Tile<'a, const R: usize> {
    p: &'a Outer<'a>,
    row: usize,
    column: usize,
}

impl<const R: usize> Kernel for Tile<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = self.p;
        let width = p.width - self.column;
        // SAFETY: the tile lies inside the result; only columns that are there are read.
        unsafe {
            let mut sums = [[S::splat(0.0); PANEL_VECTORS]; R];
            if width >= panel::<S>() {
                self.sum::<S, true>(&mut sums, [S::LANES; PANEL_VECTORS]);
            } else {
                let lanes = [width.min(S::LANES), width.saturating_sub(S::LANES)];
                self.sum::<S, false>(&mut sums, lanes);
            }
            for (r, sum) in sums.iter().enumerate() {
                let out = p.out.add((self.row + r) * p.out_stride + self.column);
                for (v, &sum) in sum.iter().enumerate() {
                    let lanes = width.saturating_sub(v * S::LANES).min(S::LANES);
                    if lanes > 0 {
                        let to = out.add(v * S::LANES);
                        let before = if p.accumulate { load::<S>(to, lanes) } else { S::splat(0.0) };
                        store::<S>(to, S::add(before, sum), lanes);
                    }
                }
            }
        }
    }
}

impl<const R: usize> Tile<'_, R> {
    /// Sums over all rows; all columns of the panel are there if it is `FULL`, otherwise `lanes` of each vector.
    ///
    /// # Safety
    /// As for [`Outer`].
    #[inline(always)]
    unsafe fn sum<S: Simd, const FULL: bool>(&self, sums: &mut Sums<S, R>, lanes: [usize; PANEL_VECTORS]) {
        let mut runs = Runs::<S, R>::new(FEW_TERMS);
        // SAFETY: the tile lies inside the result.
        unsafe {
            for rows in self.p.rows {
                let mut left = rows.left.add(self.row);
                let mut right = rows.right.add(self.column);
                let mut rest = rows.count;
                while rest > 0 {
                    let steps = runs.next(rest, sums);
                    // A copy that no reference outlives, or the compiler writes it to memory at every step.
                    let mut own = *sums;
                    for _ in 0..steps {
                        let second = right.wrapping_add(S::LANES);
                        let values = if FULL {
                            [S::load(right), S::load(second)]
                        } else {
                            [load::<S>(right, lanes[0]), load::<S>(second, lanes[1])]
                        };
                        step::<S, R>(&mut own, left, values);
                        left = left.wrapping_add(rows.left_stride);
                        right = right.wrapping_add(rows.right_stride);
                    }
                    *sums = own;
                    rest -= steps;
                }
            }
            runs.finish(sums);
        }
    }
}

/// Adds the outer product of one row's left and right parts.
///
/// # Safety
/// `R` values are there.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize>(
    sums: &mut [[S::V; PANEL_VECTORS]; R],
    left: *const f32,
    right: [S::V; PANEL_VECTORS],
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut r = 0;
        while r < R {
            let a = S::splat(*left.add(r));
            sums[r] = [S::mul_add(a, right[0], sums[r][0]), S::mul_add(a, right[1], sums[r][1])];
            r += 1;
        }
    }
}
