// One matrix product for each of the 36 points of Winograd's domain. Terms and columns are multiples of four. There are two tiles in
// workgroup memory: while one is multiplied, the next is on its way through registers.
#import split
const STAGES: u32 = 2u;
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

// Values of a row of terms and of a row of columns.
const ROW_PACKS: u32 = TERMS / 4u;
const COLUMN_PACKS: u32 = TILE_COLUMNS / 4u;

#for i in LEFT_LOADS
var<private> left_{i}: vec4<f32>;
var<private> inside_{i}: bool;
#end
#for i in RIGHT_LOADS
var<private> right_{i}: vec4<f32>;
#end

// Loads TERMS terms from `first` on into registers. Nothing here depends on what is loaded: it arrives while the tile is multiplied.
fn fetch(point: u32, first_row: u32, first_column: u32, first: u32, thread: u32) {
#for i in LEFT_LOADS
    let row_{i} = first_row + {i}u * (THREADS / ROW_PACKS) + thread / ROW_PACKS;
    let own_term_{i} = first + thread % ROW_PACKS * 4u;
    inside_{i} = row_{i} < p.rows && own_term_{i} < p.terms;
    left_{i} = input[select(0u, ((point * p.rows + row_{i}) * p.terms + own_term_{i}) / 4u, inside_{i})];
#end
    // Terms and columns that are not there meet zeros, or make sums that are not written.
#for i in RIGHT_LOADS
    let term_{i} = first + ({i}u * THREADS + thread) / COLUMN_PACKS;
    let column_{i} = first_column + ({i}u * THREADS + thread) % COLUMN_PACKS * 4u;
    let used_{i} = term_{i} < p.terms && column_{i} < p.columns;
    right_{i} = weight[select(0u, ((point * p.terms + term_{i}) * p.columns + column_{i}) / 4u, used_{i})];
#end
}

fn store(stage: u32, thread: u32) {
    let term = stage * TERMS + thread % ROW_PACKS * 4u;
#for i in LEFT_LOADS
    let row_{i} = {i}u * (THREADS / ROW_PACKS) + thread / ROW_PACKS;
    let value_{i} = select(vec4(0.0), left_{i}, inside_{i});
#for j in 4
    left[(term + {j}u) * (TILE_ROWS / 4u) + row_{i} / 4u][row_{i} % 4u] = value_{i}[{j}];
#end
#end
#for i in RIGHT_LOADS
    right[stage * (TERMS * COLUMN_PACKS) + {i}u * THREADS + thread] = right_{i};
#end
}

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
#for i in 16
    sums_{i} = vec4(0.0);
#end
    fetch(point, first_row, first_column, 0u, thread);
    store(0u, thread);
    workgroupBarrier();
    var stage = 0u;
    for (var first = 0u; first < p.terms; first += TERMS) {
        fetch(point, first_row, first_column, first + TERMS, thread);
        multiply_tile(thread, stage);
        stage = 1u - stage;
        store(stage, thread);
        workgroupBarrier();
    }
#for i in 16
    {
        let row = first_row + tile_row(thread, {i}u / 2u);
        let column = first_column + tile_column(thread, {i}u % 2u);
        if row < p.rows && column < p.columns {
            output[((point * p.rows + row) * p.columns + column) / 4u] = sums_{i};
        }
    }
#end
}
