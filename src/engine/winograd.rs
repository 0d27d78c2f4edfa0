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

/// `G g G^T` in f64, for tiles of 4 x 4 or 2 x 2 outputs.
pub fn transform_filter(tile: usize, filter: &[f32], mut write: impl FnMut(usize, f32)) {
    let g = |a: f64, b: f64, c: f64| {
        if tile == 2 {
            return [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c, 0.0, 0.0];
        }
        let at = |point: f64, divisor: f64| (a + point * b + point * point * c) / divisor;
        let [zero, near, far] = DIVISORS;
        [a / zero, at(NEAR, near), at(-NEAR, near), at(FAR, far), at(-FAR, far), c]
    };
    let mut columns = [[0.0; MOST_POINTS]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = g(filter[x].into(), filter[3 + x].into(), filter[6 + x].into());
    }
    let side = tile + 2;
    for y in 0..side {
        let [a, b, c] = columns.map(|column| column[y]);
        let row = g(a, b, c);
        for (x, value) in row.into_iter().enumerate().take(side) {
            write(y * side + x, value as f32);
        }
    }
}
