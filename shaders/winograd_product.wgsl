// One matrix product for each of the 36 points of Winograd's domain. Terms and columns are multiples of four.
#import split
#import tile

struct Params {
    rows: u32,
    columns: u32,
    terms: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [36][rows][terms / 4]
@group(0) @binding(1) var<storage, read_write> input: array<vec4<f32>>;
// [36][terms][columns / 4]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
// [36][rows][columns / 4]
@group(0) @binding(3) var<storage, read_write> output: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let column_tiles = (p.columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (p.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let point = group / (column_tiles * row_tiles);
    for (var i = 0u; i < 16u; i++) {
        sums[i] = vec4(0.0);
    }
    for (var first = 0u; first < p.terms; first += TERMS) {
        workgroupBarrier();
        for (var i = thread; i < TERMS / 4u * TILE_ROWS; i += THREADS) {
            let term = i % (TERMS / 4u) * 4u;
            let row = i / (TERMS / 4u);
            var value = vec4(0.0);
            if first_row + row < p.rows && first + term < p.terms {
                value = input[((point * p.rows + first_row + row) * p.terms + first + term) / 4u];
            }
            left[term * (TILE_ROWS / 4u) + row / 4u][row % 4u] = value.x;
            left[(term + 1u) * (TILE_ROWS / 4u) + row / 4u][row % 4u] = value.y;
            left[(term + 2u) * (TILE_ROWS / 4u) + row / 4u][row % 4u] = value.z;
            left[(term + 3u) * (TILE_ROWS / 4u) + row / 4u][row % 4u] = value.w;
        }
        for (var i = thread; i < TERMS * TILE_COLUMNS / 4u; i += THREADS) {
            let term = i / (TILE_COLUMNS / 4u);
            let column = first_column + i % (TILE_COLUMNS / 4u) * 4u;
            var value = vec4(0.0);
            if first + term < p.terms && column < p.columns {
                value = weight[((point * p.terms + first + term) * p.columns + column) / 4u];
            }
            right[i] = value;
        }
        workgroupBarrier();
        multiply_tile(thread);
    }
    for (var i = 0u; i < 16u; i++) {
        let row = first_row + tile_row(thread, i / 2u);
        let column = first_column + tile_column(thread, i % 2u);
        if row < p.rows && column < p.columns {
            output[((point * p.rows + row) * p.columns + column) / 4u] = sums[i];
        }
    }
}
