// The same as `conv` on matrix units of 16 x 16 values: f16 factors, f32 sums. A subgroup has FRAGMENT_ROWS x FRAGMENT_COLUMNS
// matrices of sums; SUBGROUP_ROWS x SUBGROUP_COLUMNS subgroups share a tile of both factors. There are two tiles in workgroup
// memory: while one is multiplied, the next is on its way through registers.
//
// Halves are moved about eight at a time as the bits of a vec4<f32>, so that every access has 16 bytes; the host gives the
// matrices of factors their true type (see `spirv.rs`).
#import split
#import epilogue4

const THREADS: u32 = SUBGROUP * SUBGROUP_ROWS * SUBGROUP_COLUMNS;
const OWN_ROWS: u32 = SIZE * FRAGMENT_ROWS;
const OWN_COLUMNS: u32 = SIZE * FRAGMENT_COLUMNS;
const TILE_ROWS: u32 = SUBGROUP_ROWS * OWN_ROWS;
const TILE_COLUMNS: u32 = SUBGROUP_COLUMNS * OWN_COLUMNS;
#import conv_params

alias Pack = vec4<f32>;
#import gather

// [taps][channels][columns]
@group(0) @binding(3) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> output: array<vec4<Result>>;

// Values of a row of columns.
const COLUMN_PACKS: u32 = TILE_COLUMNS / 8u;
// One more than is used, so that neighbouring rows lie in different banks.
const LEFT_STRIDE: u32 = ROW_PACKS + 1u;
const RIGHT_STRIDE: u32 = COLUMN_PACKS + 1u;
const RIGHT_START: u32 = TILE_ROWS * LEFT_STRIDE;
const STAGE: u32 = RIGHT_START + TERMS * RIGHT_STRIDE;
// Sums on their way out: SIZE rows of STRIP_FRAGMENTS matrices of a subgroup, of which STRIPS lie side by side; four columns a value.
const STRIP_COLUMNS: u32 = SIZE * STRIP_FRAGMENTS;
const STRIP_STRIDE: u32 = STRIP_COLUMNS / 4u + 1u;
const STRIP: u32 = SIZE * STRIP_STRIDE;
const_assert SUBGROUP_ROWS * SUBGROUP_COLUMNS * STRIP <= 2u * STAGE;
var<workgroup> tiles: array<vec4<f32>, 2u * STAGE>;

// For each load of weights its term, and where it lies from the step's first weight on.
#for i in RIGHT_LOADS
var<private> right_term_{i}: u32;
var<private> right_at_{i}: u32;
var<private> right_slot_{i}: u32;
var<private> right_{i}: vec4<f32>;
#end

fn find_weights(first_column: u32, thread: u32) {
#for i in RIGHT_LOADS
    // The last loads of some threads may be too many: they repeat others.
    let load_{i} = ({i}u * THREADS + thread) % (TERMS * COLUMN_PACKS);
    let term_{i} = load_{i} / COLUMN_PACKS;
    let pack_{i} = load_{i} % COLUMN_PACKS;
    let column_{i} = first_column + pack_{i} * 8u;
    right_term_{i} = select(TERMS, term_{i}, column_{i} < p.epilogue.columns);
    right_at_{i} = (term_{i} * p.epilogue.columns + column_{i}) / 8u;
    right_slot_{i} = RIGHT_START + term_{i} * RIGHT_STRIDE + pack_{i};
#end
}

// Loads the step's pixels and weights into registers.
fn fetch(thread: u32) {
    let step = gather(thread);
    let all_channels = p.channels_a + p.channels_b;
    let first_weight = (step.tap * all_channels + step.channel) * (p.epilogue.columns / 8u);
    // Terms and columns that are not there meet zeros, or make sums that are not written.
#for i in RIGHT_LOADS
    let used_{i} = right_term_{i} < min(TERMS, step.left);
    right_{i} = weight[select(0u, first_weight + right_at_{i}, used_{i})];
#end
}

fn store(stage: u32, thread: u32) {
    let slot = stage + thread / ROW_PACKS * LEFT_STRIDE + thread % ROW_PACKS;
#for i in LEFT_LOADS
    tiles[slot + {i}u * (THREADS / ROW_PACKS * LEFT_STRIDE)] = select(vec4(0.0), left_{i}, inside_{i});
#end
#for i in RIGHT_LOADS
    tiles[stage + right_slot_{i}] = right_{i};
#end
}

// Writes a subgroup's strip of sums, whose first belongs to (`first_row`, `first_column`).
fn write(strip: u32, lane: u32, part: u32, first_row: u32, first_column: u32) {
    let columns = p.epilogue.columns;
    for (var i = lane; i < SIZE * (STRIP_COLUMNS / 4u); i += SUBGROUP) {
        let own_row = i / (STRIP_COLUMNS / 4u);
        let own_column = i % (STRIP_COLUMNS / 4u);
        let row = first_row + own_row;
        let column = first_column + own_column * 4u;
        if row < p.rows && column < columns {
            let sum = tiles[strip + own_row * STRIP_STRIDE + own_column];
            if p.splits > 1u {
                output[((part * p.rows + row) * columns + column) / 4u] = vec4<Result>(sum);
            } else {
                output[(row * columns + column) / 4u] = vec4<Result>(finish(p.epilogue, row, column, sum));
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // Not by `group_index`: what a function returns is not known to be the same for all threads, as matrix units demand.
    let group = split.first + id.y * GRID_WIDTH + id.x;
    if group >= split.end {
        return;
    }
    let column_tiles = (p.epilogue.columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (p.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let part = group / (column_tiles * row_tiles);
    // For the same reason not by `tap_steps`.
    let chunks = (p.channels_a + TERMS - 1u) / TERMS + (p.channels_b + TERMS - 1u) / TERMS;
    let steps = p.kernel * p.kernel * chunks;
    let share = (steps + p.splits - 1u) / p.splits;
    let first_step = part * share;
    let end = min(steps, first_step + share);

    find_rows(first_row, first_step, thread);
    find_weights(first_column, thread);
#for i in FRAGMENT_ROWS
#for s in STRIPS
#for j in STRIP_FRAGMENTS
    var sums_{i}_{s}_{j} = Sums();
#end
#end
#end
    let own_row = subgroup / SUBGROUP_COLUMNS * OWN_ROWS;
    let own_column = subgroup % SUBGROUP_COLUMNS * OWN_COLUMNS;
    if first_step < end {
        fetch(thread);
        store(0u, thread);
    }
    workgroupBarrier();
    var stage = 0u;
    for (var index = first_step; index < end; index++) {
        fetch(thread);
#for k in TERM_FRAGMENTS
#for i in FRAGMENT_ROWS
        let at_left_{k}_{i} = stage + (own_row + {i}u * SIZE) * LEFT_STRIDE + {k}u * (SIZE / 8u);
        let left_{k}_{i} = coopLoadT<Left>(&tiles[at_left_{k}_{i}], LEFT_STRIDE);
#end
#for s in STRIPS
#for j in STRIP_FRAGMENTS
        let column_{k}_{s}_{j} = own_column + {s}u * STRIP_COLUMNS + {j}u * SIZE;
        let at_right_{k}_{s}_{j} = stage + RIGHT_START + {k}u * SIZE * RIGHT_STRIDE + column_{k}_{s}_{j} / 8u;
        let right_{k}_{s}_{j} = coopLoadT<Right>(&tiles[at_right_{k}_{s}_{j}], RIGHT_STRIDE);
#for i in FRAGMENT_ROWS
        sums_{i}_{s}_{j} = coopMultiplyAdd(left_{k}_{i}, right_{k}_{s}_{j}, sums_{i}_{s}_{j});
#end
#end
#end
#end
        stage = STAGE - stage;
        store(stage, thread);
        workgroupBarrier();
    }

    let strip = subgroup * STRIP;
#for i in FRAGMENT_ROWS
#for s in STRIPS
#for j in STRIP_FRAGMENTS
    let to_{i}_{s}_{j} = strip + {j}u * (SIZE / 4u);
    coopStoreT(sums_{i}_{s}_{j}, &tiles[to_{i}_{s}_{j}], STRIP_STRIDE);
#end
    workgroupBarrier();
    write(strip, lane, part, first_row + own_row + {i}u * SIZE, first_column + own_column + {s}u * STRIP_COLUMNS);
    workgroupBarrier();
#end
#end
}
