// The same as `conv` where all channels are multiples of four, which are loaded together. There are two tiles in workgroup memory:
// while one is multiplied, the next is on its way through registers.
#import split
#import epilogue4
const STAGES: u32 = 2u;
#import tile
#import conv_params

const PACK: u32 = 4u;
alias Pack = vec4<Value>;
#import gather

// [taps][channels][columns]
@group(0) @binding(3) var<storage, read> weight: array<vec4<Value>>;
@group(0) @binding(8) var<storage, read_write> output: array<vec4<Result>>;

// Values of a row of columns.
const COLUMN_PACKS: u32 = TILE_COLUMNS / 4u;

#for i in RIGHT_LOADS
var<private> right_{i}: vec4<Value>;
#end
// Loads the step's pixels and weights into registers.
fn fetch(first_column: u32, thread: u32) {
    let step = gather(thread);
    let first_weight = step.tap * (p.channels_a + p.channels_b) + step.channel;
    let columns = p.epilogue.columns / 4u;
    // Terms and columns that are not there meet zeros, or make sums that are not written.
#for i in RIGHT_LOADS
    let term_{i} = ({i}u * THREADS + thread) / COLUMN_PACKS;
    let column_{i} = first_column / 4u + ({i}u * THREADS + thread) % COLUMN_PACKS;
    let used_{i} = term_{i} < step.left && column_{i} < columns;
    right_{i} = weight[select(0u, (first_weight + term_{i}) * columns + column_{i}, used_{i})];
#end
}

fn store(stage: u32, thread: u32) {
    let term = stage * TERMS + thread % ROW_PACKS * 4u;
#for i in LEFT_LOADS
    let row_{i} = row_of({i}u, thread);
    let value_{i} = select(vec4(0.0), vec4<f32>(left_{i}), inside_{i});
#for j in 4
    left[(term + {j}u) * (TILE_ROWS / 4u) + row_{i} / 4u][row_{i} % 4u] = value_{i}[{j}];
#end
#end
#for i in RIGHT_LOADS
    right[stage * (TERMS * COLUMN_PACKS) + {i}u * THREADS + thread] = vec4<f32>(right_{i});
#end
}

fn write(part: u32, row: u32, column: u32, sums: vec4<f32>) {
    let columns = p.epilogue.columns;
    if row >= p.rows || column >= columns {
        return;
    }
    if p.splits > 1u {
        output[((part * p.rows + row) * columns + column) / 4u] = vec4<Result>(sums);
    } else {
        output[(row * columns + column) / 4u] = vec4<Result>(finish(p.epilogue, row, column, sums));
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let column_tiles = (p.epilogue.columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (p.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let part = group / (column_tiles * row_tiles);
    let steps = p.kernel * p.kernel * tap_steps();
    let share = (steps + p.splits - 1u) / p.splits;
    let first_step = part * share;
    let end = min(steps, first_step + share);

    find_rows(first_row, first_step, thread);
#for i in 16
    sums_{i} = vec4(0.0);
#end
    if first_step < end {
        fetch(first_column, thread);
        store(0u, thread);
    }
    workgroupBarrier();
    for (var index = first_step; index < end; index++) {
        let stage = (index - first_step) % 2u;
        fetch(first_column, thread);
        multiply_tile(thread, stage);
        store(1u - stage, thread);
        workgroupBarrier();
    }

#for i in 16
    write(part, first_row + tile_row(thread, {i}u / 2u), first_column + tile_column(thread, {i}u % 2u), sums_{i});
#end
}
