// Convolution as a product: its rows are the pixels of all samples, its columns the output's channels, its terms the
// channels under each tap. Rows are gathered while tiles are loaded: there is no unfolded copy of the input, none of a
// concatenation, and none of a nearest-upsampled input.
//
// For any number of channels; `conv_packed` is for multiples of four.
//
// Where there are few tiles the terms are divided into `splits`, whose sums `conv_sum` adds up.
#import split
#import epilogue
const STAGES: u32 = 1u;
#import tile
#import rows

@group(0) @binding(1) var<storage, read_write> input_a: array<Value>;
@group(0) @binding(2) var<storage, read_write> input_b: array<Value>;
// [taps][channels][columns]
@group(0) @binding(3) var<storage, read> weight: array<Value>;
@group(0) @binding(8) var<storage, read_write> output: array<Result>;

// Four sums of a row.
fn write(part: u32, row: u32, first_column: u32, sums: vec4<f32>) {
    let columns = p.epilogue.columns;
    if row >= p.rows {
        return;
    }
    for (var i = 0u; i < min(4u, columns - min(columns, first_column)); i++) {
        let column = first_column + i;
        // Not by index: vectors that are indexed by a variable leave the registers.
        let sum = select(select(sums.x, sums.y, i == 1u), select(sums.z, sums.w, i == 3u), i >= 2u);
        if p.splits > 1u {
            output[(part * p.rows + row) * columns + column] = Result(sum);
        } else {
            output[row * columns + column] = Result(finish(p.epilogue, row, column, sum));
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let columns = p.epilogue.columns;
    let column_tiles = (columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (p.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let part = group / (column_tiles * row_tiles);

    find_places(first_row, thread);
#for i in 16
    sums_{i} = vec4(0.0);
#end
    let steps = p.kernel * p.kernel * tap_steps();
    let share = (steps + p.splits - 1u) / p.splits;
    for (var index = part * share; index < min(steps, (part + 1u) * share); index++) {
        let step = step_at(index);
        workgroupBarrier();
        for (var i = thread; i < TERMS * TILE_ROWS; i += THREADS) {
            let row = i / TERMS;
            let channel = step.first_channel + i % TERMS;
            let pixel = pixel_under(row, step.dy, step.dx);
            var value = 0.0;
            if pixel >= 0 && channel < step.channels {
                let at = u32(pixel) * step.channels + channel;
                if step.second {
                    value = f32(input_b[at]);
                } else {
                    value = f32(input_a[at]);
                }
            }
            left[i % TERMS * (TILE_ROWS / 4u) + row / 4u][row % 4u] = value;
        }
        for (var i = thread; i < TERMS * TILE_COLUMNS; i += THREADS) {
            let term = i / TILE_COLUMNS;
            let column = i % TILE_COLUMNS;
            var value = 0.0;
            if step.first_channel + term < step.channels && first_column + column < columns {
                value = f32(weight[(step.weight_row + term) * columns + first_column + column]);
            }
            right[term * (TILE_COLUMNS / 4u) + column / 4u][column % 4u] = value;
        }
        workgroupBarrier();
        multiply_tile(thread, 0u);
    }

#for i in 16
    write(part, first_row + tile_row(thread, {i}u / 2u), first_column + tile_column(thread, {i}u % 2u), sums_{i});
#end
}
