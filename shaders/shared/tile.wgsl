// A product's tile in workgroup memory: every thread owns 8 x 8 sums, in four quarters so that neighbouring threads read
// neighbouring values.
//
// ROWS x COLUMNS threads, TERMS terms at a time.
const THREADS: u32 = ROWS * COLUMNS;
const TILE_ROWS: u32 = 8u * ROWS;
const TILE_COLUMNS: u32 = 8u * COLUMNS;

var<workgroup> left: array<vec4<f32>, TERMS * TILE_ROWS / 4u>;
var<workgroup> right: array<vec4<f32>, TERMS * TILE_COLUMNS / 4u>;
var<private> sums: array<vec4<f32>, 16>;

fn multiply_tile(thread: u32) {
    let ty = thread / COLUMNS;
    let tx = thread % COLUMNS;
    for (var k = 0u; k < TERMS; k++) {
        let a0 = left[k * (TILE_ROWS / 4u) + ty];
        let a1 = left[k * (TILE_ROWS / 4u) + ROWS + ty];
        let b0 = right[k * (TILE_COLUMNS / 4u) + tx];
        let b1 = right[k * (TILE_COLUMNS / 4u) + COLUMNS + tx];
        sums[0] = fma(vec4(a0.x), b0, sums[0]);
        sums[1] = fma(vec4(a0.x), b1, sums[1]);
        sums[2] = fma(vec4(a0.y), b0, sums[2]);
        sums[3] = fma(vec4(a0.y), b1, sums[3]);
        sums[4] = fma(vec4(a0.z), b0, sums[4]);
        sums[5] = fma(vec4(a0.z), b1, sums[5]);
        sums[6] = fma(vec4(a0.w), b0, sums[6]);
        sums[7] = fma(vec4(a0.w), b1, sums[7]);
        sums[8] = fma(vec4(a1.x), b0, sums[8]);
        sums[9] = fma(vec4(a1.x), b1, sums[9]);
        sums[10] = fma(vec4(a1.y), b0, sums[10]);
        sums[11] = fma(vec4(a1.y), b1, sums[11]);
        sums[12] = fma(vec4(a1.z), b0, sums[12]);
        sums[13] = fma(vec4(a1.z), b1, sums[13]);
        sums[14] = fma(vec4(a1.w), b0, sums[14]);
        sums[15] = fma(vec4(a1.w), b1, sums[15]);
    }
}

// Row of the tile that `sums[2 * i]` and `sums[2 * i + 1]` belong to.
fn tile_row(thread: u32, i: u32) -> u32 {
    return i / 4u * (4u * ROWS) + thread / COLUMNS * 4u + i % 4u;
}

// First column of the tile in the first (0) or second (1) quarter.
fn tile_column(thread: u32, half: u32) -> u32 {
    return half * (4u * COLUMNS) + thread % COLUMNS * 4u;
}
