// The gradient of a head's layer as a product: its rows are the layer's outputs, its columns the inputs and, one further,
// the bias, its terms the samples of a batch. Terms are divided into `splits`, whose sums `head_weight_sum` adds up.
//
// It is with respect to normalised inputs where a batch norm comes before the layer.
#import split
const STAGES: u32 = 1u;
#import tile

struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
    // 1 where a batch norm comes before.
    normalised: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [rows][outputs]
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
// [rows][inputs]
@group(0) @binding(2) var<storage, read_write> input: array<f32>;
// Mean of each channel, then the inverse of its standard deviation.
@group(0) @binding(3) var<storage, read_write> norm: array<f32>;
// [splits][outputs][inputs + 1]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

fn input_at(row: u32, channel: u32) -> f32 {
    if channel == p.inputs {
        return 1.0;
    }
    let value = input[row * p.inputs + channel];
    if p.normalised == 0u {
        return value;
    }
    return (value - norm[channel]) * norm[p.inputs + channel];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let columns = p.inputs + 1u;
    let column_tiles = (columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (p.outputs + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let part = group / (column_tiles * row_tiles);
#for i in 16
    sums_{i} = vec4(0.0);
#end

    let steps = (p.rows + TERMS - 1u) / TERMS;
    let share = (steps + p.splits - 1u) / p.splits;
    for (var step = part * share; step < min(steps, (part + 1u) * share); step++) {
        let first = step * TERMS;
        workgroupBarrier();
        for (var i = thread; i < TERMS * TILE_ROWS; i += THREADS) {
            let term = i / TILE_ROWS;
            let own = i % TILE_ROWS;
            var value = 0.0;
            if first + term < p.rows && first_row + own < p.outputs {
                value = gradient[(first + term) * p.outputs + first_row + own];
            }
            left[term * (TILE_ROWS / 4u) + own / 4u][own % 4u] = value;
        }
        for (var i = thread; i < TERMS * TILE_COLUMNS; i += THREADS) {
            let term = i / TILE_COLUMNS;
            let own = i % TILE_COLUMNS;
            var value = 0.0;
            if first + term < p.rows && first_column + own < columns {
                value = input_at(first + term, first_column + own);
            }
            right[term * (TILE_COLUMNS / 4u) + own / 4u][own % 4u] = value;
        }
        workgroupBarrier();
        multiply_tile(thread, 0u);
    }

#for i in 16
    {
        let row = first_row + tile_row(thread, {i}u / 2u);
        let column = first_column + tile_column(thread, {i}u % 2u);
        if row < p.outputs {
#for j in 4
            if column + {j}u < columns {
                output[(part * p.outputs + row) * columns + column + {j}u] = sums_{i}[{j}];
            }
#end
        }
    }
#end
}
