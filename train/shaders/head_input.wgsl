// What flows back through a head's layer, the batch norm and the ReLU before it, as a product: its rows are the samples of a
// batch, its columns the layer's inputs, its terms the outputs.
#import split
const STAGES: u32 = 1u;
#import tile

struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
    // Places among the parameters: the layer's weight, the norm's multipliers and summands.
    weight: u32,
    scale: u32,
    shift: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [rows][outputs]
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>;
// Of the parameters; those of the norm are needed.
@group(0) @binding(3) var<storage, read_write> gradients: array<f32>;
// Mean of each channel, then the inverse of its standard deviation.
@group(0) @binding(4) var<storage, read_write> norm: array<f32>;
// What the ReLU left, [rows][inputs].
@group(0) @binding(5) var<storage, read_write> values: array<f32>;
// [rows][inputs]
@group(0) @binding(6) var<storage, read_write> output: array<f32>;

// The gradient before the norm and the ReLU of `sum`, that after them.
fn before(row: u32, channel: u32, sum: f32) -> f32 {
    let value = values[row * p.inputs + channel];
    let inverse = norm[p.inputs + channel];
    let normal = (value - norm[channel]) * inverse;
    let along = fma(normal, gradients[p.scale + channel], gradients[p.shift + channel]) / f32(p.rows);
    return select(0.0, (sum - along) * parameters[p.scale + channel] * inverse, value > 0.0);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let column_tiles = (p.inputs + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles * TILE_ROWS;
#for i in 16
    sums_{i} = vec4(0.0);
#end
    for (var first = 0u; first < p.outputs; first += TERMS) {
        workgroupBarrier();
        for (var i = thread; i < TERMS * TILE_ROWS; i += THREADS) {
            let own = i / TERMS;
            let term = first + i % TERMS;
            var value = 0.0;
            if first_row + own < p.rows && term < p.outputs {
                value = gradient[(first_row + own) * p.outputs + term];
            }
            left[i % TERMS * (TILE_ROWS / 4u) + own / 4u][own % 4u] = value;
        }
        for (var i = thread; i < TERMS * TILE_COLUMNS; i += THREADS) {
            let own = i % TILE_COLUMNS;
            let term = first + i / TILE_COLUMNS;
            var value = 0.0;
            if first_column + own < p.inputs && term < p.outputs {
                value = parameters[p.weight + term * p.inputs + first_column + own];
            }
            right[i / TILE_COLUMNS * (TILE_COLUMNS / 4u) + own / 4u][own % 4u] = value;
        }
        workgroupBarrier();
        multiply_tile(thread, 0u);
    }

#for i in 16
    {
        let row = first_row + tile_row(thread, {i}u / 2u);
        let column = first_column + tile_column(thread, {i}u % 2u);
        if row < p.rows {
#for j in 4
            if column + {j}u < p.inputs {
                output[row * p.inputs + column + {j}u] = before(row, column + {j}u, sums_{i}[{j}]);
            }
#end
        }
    }
#end
}
