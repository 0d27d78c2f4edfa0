// The same as `conv` where all channels are multiples of four, which are loaded together. There are two tiles in workgroup memory:
// while one is multiplied, the next is on its way through registers.
#import split
#import epilogue4
const STAGES: u32 = 2u;
#import tile
#import conv_params

// Four channels a value.
@group(0) @binding(1) var<storage, read_write> input_a: array<vec4<Value>>;
@group(0) @binding(2) var<storage, read_write> input_b: array<vec4<Value>>;
// [taps][channels][columns]
@group(0) @binding(3) var<storage, read> weight: array<vec4<Value>>;
@group(0) @binding(8) var<storage, read_write> output: array<vec4<Result>>;

// Values of a row of terms and of a row of columns.
const ROW_PACKS: u32 = TERMS / 4u;
const COLUMN_PACKS: u32 = TILE_COLUMNS / 4u;

// For each load of a thread: its row's pixel of the input (upper left tap; far outside beyond the last row), and the sample's first.
#for i in LEFT_LOADS
var<private> row_y_{i}: i32;
var<private> row_x_{i}: i32;
var<private> row_start_{i}: u32;
var<private> left_{i}: vec4<Value>;
var<private> inside_{i}: bool;
#end
#for i in RIGHT_LOADS
var<private> right_{i}: vec4<Value>;
#end
// The step that is loaded next: a tap, and TERMS channels of one of the inputs.
var<private> tap_y: u32;
var<private> tap_x: u32;
var<private> chunk: u32;

fn find_loads(first_row: u32, thread: u32) {
    let pixels = p.epilogue.height * p.epilogue.width;
    let reach = i32(p.kernel / 2u);
#for i in LEFT_LOADS
    let row_{i} = first_row + {i}u * (THREADS / ROW_PACKS) + thread / ROW_PACKS;
    let pixel_{i} = row_{i} % pixels;
    row_y_{i} = select(-1000000000, i32(pixel_{i} / p.epilogue.width * p.stride) - reach, row_{i} < p.rows);
    row_x_{i} = i32(pixel_{i} % p.epilogue.width * p.stride) - reach;
    row_start_{i} = row_{i} / pixels * p.in_height;
#end
}

// Loads the step's values into registers, and goes on to the next one; beyond the last there are no channels left, and something is
// loaded that nobody needs. Nothing here depends on what is loaded: it arrives while the tile is multiplied. Steps of all taps
// follow one another for the same channels, most of whose pixels are in the nearest cache then.
fn fetch(first_column: u32, thread: u32) {
    let chunks_a = (p.channels_a + TERMS - 1u) / TERMS;
    let second = chunk >= chunks_a;
    let channels = select(p.channels_a, p.channels_b, second);
    let first_channel = select(chunk, chunk - chunks_a, second) * TERMS;
    let left = select(0u, channels - first_channel, channels > first_channel);
    let pack = thread % ROW_PACKS;
    let in_channels = pack * 4u < left;
    let row_packs = channels / 4u;
    let first_pack = first_channel / 4u + pack;
    let height = p.in_height << p.upsampled;
    let width = p.in_width << p.upsampled;
#for i in LEFT_LOADS
    let y_{i} = u32(row_y_{i} + i32(tap_y));
    let x_{i} = u32(row_x_{i} + i32(tap_x));
    inside_{i} = in_channels && y_{i} < height && x_{i} < width;
    let pixel_{i} = (row_start_{i} + (y_{i} >> p.upsampled)) * p.in_width + (x_{i} >> p.upsampled);
    let at_{i} = select(0u, pixel_{i} * row_packs + first_pack, inside_{i});
#end
    if second {
#for i in LEFT_LOADS
        left_{i} = input_b[at_{i}];
#end
    } else {
#for i in LEFT_LOADS
        left_{i} = input_a[at_{i}];
#end
    }
    let tap = tap_y * p.kernel + tap_x;
    let weight_row = tap * (p.channels_a + p.channels_b) + select(0u, p.channels_a, second) + first_channel;
    let columns = p.epilogue.columns / 4u;
    // Terms and columns that are not there meet zeros, or make sums that are not written.
#for i in RIGHT_LOADS
    let term_{i} = ({i}u * THREADS + thread) / COLUMN_PACKS;
    let column_{i} = first_column / 4u + ({i}u * THREADS + thread) % COLUMN_PACKS;
    let used_{i} = term_{i} < left && column_{i} < columns;
    right_{i} = weight[select(0u, (weight_row + term_{i}) * columns + column_{i}, used_{i})];
#end
    tap_x += 1u;
    if tap_x == p.kernel {
        tap_x = 0u;
        tap_y += 1u;
        if tap_y == p.kernel {
            tap_y = 0u;
            chunk += 1u;
        }
    }
}

fn store(stage: u32, thread: u32) {
    let term = stage * TERMS + thread % ROW_PACKS * 4u;
#for i in LEFT_LOADS
    let row_{i} = {i}u * (THREADS / ROW_PACKS) + thread / ROW_PACKS;
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
    let taps = p.kernel * p.kernel;
    let steps = taps * tap_steps();
    let share = (steps + p.splits - 1u) / p.splits;
    let first_step = part * share;
    let end = min(steps, first_step + share);

    find_loads(first_row, thread);
    chunk = first_step / taps;
    tap_y = first_step % taps / p.kernel;
    tap_x = first_step % p.kernel;
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
