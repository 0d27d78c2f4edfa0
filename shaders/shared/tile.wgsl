// A product's tile in workgroup memory: every thread owns 8 x 8 sums, in four quarters so that neighbouring threads read
// neighbouring values.
//
// ROWS x COLUMNS threads, TERMS terms at a time, STAGES tiles.
const THREADS: u32 = ROWS * COLUMNS;
const TILE_ROWS: u32 = 8u * ROWS;
const TILE_COLUMNS: u32 = 8u * COLUMNS;

var<workgroup> left: array<vec4<f32>, STAGES * TERMS * TILE_ROWS / 4u>;
var<workgroup> right: array<vec4<f32>, STAGES * TERMS * TILE_COLUMNS / 4u>;
#for i in 16
var<private> sums_{i}: vec4<f32>;
#end

fn multiply_tile(thread: u32, stage: u32) {
    let ty = stage * (TERMS * TILE_ROWS / 4u) + thread / COLUMNS;
    let tx = stage * (TERMS * TILE_COLUMNS / 4u) + thread % COLUMNS;
    for (var k = 0u; k < TERMS; k++) {
        let a0 = left[k * (TILE_ROWS / 4u) + ty];
        let a1 = left[k * (TILE_ROWS / 4u) + ROWS + ty];
        let b0 = right[k * (TILE_COLUMNS / 4u) + tx];
        let b1 = right[k * (TILE_COLUMNS / 4u) + COLUMNS + tx];
        sums_0 = fma(vec4(a0.x), b0, sums_0);
        sums_1 = fma(vec4(a0.x), b1, sums_1);
        sums_2 = fma(vec4(a0.y), b0, sums_2);
        sums_3 = fma(vec4(a0.y), b1, sums_3);
        sums_4 = fma(vec4(a0.z), b0, sums_4);
        sums_5 = fma(vec4(a0.z), b1, sums_5);
        sums_6 = fma(vec4(a0.w), b0, sums_6);
        sums_7 = fma(vec4(a0.w), b1, sums_7);
        sums_8 = fma(vec4(a1.x), b0, sums_8);
        sums_9 = fma(vec4(a1.x), b1, sums_9);
        sums_10 = fma(vec4(a1.y), b0, sums_10);
        sums_11 = fma(vec4(a1.y), b1, sums_11);
        sums_12 = fma(vec4(a1.z), b0, sums_12);
        sums_13 = fma(vec4(a1.z), b1, sums_13);
        sums_14 = fma(vec4(a1.w), b0, sums_14);
        sums_15 = fma(vec4(a1.w), b1, sums_15);
    }
}

// Row of the tile that `sums_{2 * i}` and `sums_{2 * i + 1}` belong to.
fn tile_row(thread: u32, i: u32) -> u32 {
    return i / 4u * (4u * ROWS) + thread / COLUMNS * 4u + i % 4u;
}

// First column of the tile in the first (0) or second (1) quarter.
fn tile_column(thread: u32, half: u32) -> u32 {
    return half * (4u * COLUMNS) + thread % COLUMNS * 4u;
}
