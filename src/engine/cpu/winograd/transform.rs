//! The transforms of tiles of input and tiles of output; that of filters is in [`crate::engine::winograd`].

use super::CHUNK;
use crate::engine::cpu::simd::Simd;

use crate::engine::winograd::{FAR, MOST_POINTS, NEAR};

/// `even + x odd` at a point and at its negative.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
pub unsafe fn at_pair<S: Simd>(point: f32, even: S::V, odd: S::V) -> [S::V; 2] {
    // SAFETY: promised by the caller.
    unsafe { [S::mul_add(S::splat(point), odd, even), S::mul_add(S::splat(-point), odd, even)] }
}

/// `B^T d` for one column of a tile.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn input_transform<S: Simd, const TILE: usize>(d: [S::V; MOST_POINTS]) -> [S::V; MOST_POINTS] {
    // SAFETY: promised by the caller.
    unsafe {
        if TILE == 2 {
            let zero = S::splat(0.0);
            return [
                S::sub(d[0], d[2]),
                S::add(d[1], d[2]),
                S::sub(d[2], d[1]),
                S::sub(d[3], d[1]),
                zero,
                zero,
            ];
        }
        let (near, far) = (NEAR as f32, FAR as f32);
        let product = S::splat(near * near * far * far);
        let sum = S::splat(-near * near - far * far);
        let (near2, far2) = (S::splat(-near * near), S::splat(-far * far));
        let [n0, n1] = at_pair::<S>(near, S::mul_add(far2, d[2], d[4]), S::mul_add(far2, d[1], d[3]));
        let [f0, f1] = at_pair::<S>(far, S::mul_add(near2, d[2], d[4]), S::mul_add(near2, d[1], d[3]));
        [
            S::mul_add(product, d[0], S::mul_add(sum, d[2], d[4])),
            n0,
            n1,
            f0,
            f1,
            S::mul_add(product, d[1], S::mul_add(sum, d[3], d[5])),
        ]
    }
}

/// `B^T d B` for the tile whose rows start at slot `first` of the ring at `from`. A point's vector is half as long in `BF16`.
///
/// # Safety
/// The ring has as many rows as the tile, and `to` takes a vector a point, `point_stride` apart.
#[inline(always)]
pub unsafe fn input_tile<S: Simd, const TILE: usize, const BF16: bool>(
    from: *const f32,
    row_len: usize,
    first: usize,
    to: *mut f32,
    point_stride: usize,
) {
    let side = TILE + 2;
    // SAFETY: promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        let mut rows = [[zero; MOST_POINTS]; MOST_POINTS];
        let mut x = 0;
        while x < side {
            let mut d = [zero; MOST_POINTS];
            let mut y = 0;
            while y < side {
                let slot = if first + y < side { first + y } else { first + y - side };
                d[y] = S::load(from.add(slot * row_len + x * CHUNK));
                y += 1;
            }
            let v = input_transform::<S, TILE>(d);
            let mut y = 0;
            while y < side {
                rows[y][x] = v[y];
                y += 1;
            }
            x += 1;
        }
        let mut y = 0;
        while y < side {
            let v = input_transform::<S, TILE>(rows[y]);
            let mut x = 0;
            while x < side {
                let to = to.add((y * side + x) * point_stride);
                if BF16 {
                    S::store_bf16(to.cast(), v[x]);
                } else {
                    S::store(to, v[x]);
                }
                x += 1;
            }
            y += 1;
        }
    }
}

/// `A^T m` for one column of products.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn output_transform<S: Simd, const TILE: usize>(m: [S::V; MOST_POINTS]) -> [S::V; 4] {
    // SAFETY: promised by the caller.
    unsafe {
        let sum = S::add(m[1], m[2]);
        let difference = S::sub(m[1], m[2]);
        if TILE == 2 {
            return [S::add(m[0], sum), S::add(difference, m[3]), m[0], m[0]];
        }
        let (near, far) = (NEAR as f32, FAR as f32);
        let (far_sum, far_difference) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        let (near2, far2) = (near * near, far * far);
        let cubic = S::mul_add(S::splat(near2 * near), difference, m[5]);
        [
            S::add(S::add(m[0], sum), far_sum),
            S::mul_add(S::splat(near), difference, S::mul(S::splat(far), far_difference)),
            S::mul_add(S::splat(near2), sum, S::mul(S::splat(far2), far_sum)),
            S::mul_add(S::splat(far2 * far), far_difference, cubic),
        ]
    }
}

/// Where a tile of outputs goes.
pub struct Target {
    pub to: *mut f32,
    /// What is added, laid out like the output, or null.
    pub added: *const f32,
    pub row_stride: usize,
    pub pixel_stride: usize,
    /// Rows and columns inside the image.
    pub size: (usize, usize),
}

/// `A^T m A + bias` for one tile.
///
/// # Safety
/// `from` has a vector a point, `point_stride` apart; the target takes the pixels inside the image.
#[inline(always)]
pub unsafe fn output_tile<S: Simd, const TILE: usize>(
    from: *const f32,
    point_stride: usize,
    bias: S::V,
    target: &Target,
) {
    let side = TILE + 2;
    // SAFETY: promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        let mut rows = [[zero; MOST_POINTS]; 4];
        let mut x = 0;
        while x < side {
            let mut m = [zero; MOST_POINTS];
            let mut y = 0;
            while y < side {
                m[y] = S::load(from.add((y * side + x) * point_stride));
                y += 1;
            }
            let v = output_transform::<S, TILE>(m);
            let mut y = 0;
            while y < TILE {
                rows[y][x] = v[y];
                y += 1;
            }
            x += 1;
        }
        let mut y = 0;
        while y < TILE {
            if y < target.size.0 {
                let v = output_transform::<S, TILE>(rows[y]);
                let mut x = 0;
                while x < TILE {
                    if x < target.size.1 {
                        let at = y * target.row_stride + x * target.pixel_stride;
                        let mut value = S::add(v[x], bias);
                        if !target.added.is_null() {
                            value = S::add(value, S::load(target.added.add(at)));
                        }
                        S::store(target.to.add(at), value);
                    }
                    x += 1;
                }
            }
            y += 1;
        }
    }
}
