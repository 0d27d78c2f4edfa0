//! Filters in Winograd's domain (Lavin and Gray 2015).
//!
//! F(4x4, 3x3)'s interpolation points are 0, 5/8, -5/8, 3/2, -3/2 and infinity, which lose half as many bits as the usual
//! 0, 1, -1, 2, -2 (found by trying fractions; all factors of the transforms of inputs and outputs are exact in f32);
//! F(2x2, 3x3)'s are 0, 1, -1 and infinity.

/// Points along one side of the largest tile.
pub const MOST_POINTS: usize = 6;

/// The smaller of the finite points of F(4x4, 3x3).
pub const NEAR: f64 = 0.625;

/// The larger one.
pub const FAR: f64 = 1.5;

/// Divisors of the filter's values at 0, at the smaller points and at the larger ones.
pub const DIVISORS: [f64; 3] = [
    NEAR * NEAR * FAR * FAR,
    2.0 * NEAR * NEAR * (NEAR * NEAR - FAR * FAR),
    2.0 * FAR * FAR * (FAR * FAR - NEAR * NEAR),
];

/// Products a tile with `tile` x `tile` outputs.
pub const fn points(tile: usize) -> usize {
    (tile + 2) * (tile + 2)
}

/// `G g G^T` of one filter, as [`transform_filters`] computes it.
pub fn transform_filter(tile: usize, filter: &[f32], mut write: impl FnMut(usize, f32)) {
    let taps = std::array::from_fn(|tap| [f64::from(filter[tap])]);
    transform_filters(tile, &taps, |point, [value]| write(point, value));
}

/// `G g G^T` in f64 of `COUNT` filters side by side, given by their taps, for tiles of 4 x 4 or 2 x 2 outputs.
#[inline(always)]
pub fn transform_filters<const COUNT: usize>(
    tile: usize,
    taps: &[[f64; COUNT]; 9],
    mut write: impl FnMut(usize, [f32; COUNT]),
) {
    let side = tile + 2;
    let [left, middle, right] =
        std::array::from_fn(|x| transform(tile, &taps[x], &taps[3 + x], &taps[6 + x]));
    for (y, ((a, b), c)) in left.iter().zip(&middle).zip(&right).enumerate().take(side) {
        let row = transform(tile, a, b, c);
        for (x, values) in row.iter().enumerate().take(side) {
            write(y * side + x, values.map(|value| value as f32));
        }
    }
}

/// `G` times a column of three values.
#[inline(always)]
fn transform<const COUNT: usize>(
    tile: usize,
    a: &[f64; COUNT],
    b: &[f64; COUNT],
    c: &[f64; COUNT],
) -> [[f64; COUNT]; MOST_POINTS] {
    let mut result = [[0.0; COUNT]; MOST_POINTS];
    let mut pair = |first: usize, point: f64, divisor: f64| {
        for i in 0..COUNT {
            let (even, odd) = (a[i] + point * point * c[i], point * b[i]);
            result[first][i] = (even + odd) * (1.0 / divisor);
            result[first + 1][i] = (even - odd) * (1.0 / divisor);
        }
    };
    if tile == 2 {
        pair(1, 1.0, 2.0);
        (result[0], result[3]) = (*a, *c);
        return result;
    }
    let [zero, near, far] = DIVISORS;
    pair(1, NEAR, near);
    pair(3, FAR, far);
    (result[0], result[5]) = (a.map(|value| value * (1.0 / zero)), *c);
    result
}
