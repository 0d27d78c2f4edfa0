// A linear layer of a head as a product: its rows are the samples of a batch, its columns the layer's outputs, its terms
// the inputs. A batch norm before the layer is applied while tiles are loaded.
#import split
const STAGES: u32 = 1u;
#import tile

struct Params {
    rows: u32,
    inputs: u32,
    outputs: u32,
    // Places among the parameters.
    weight: u32,
    bias: u32,
    // 0, or one more than the place of the norm's multipliers; the place of its summands.
    scale: u32,
    shift: u32,
    // 1 where a ReLU follows.
    relu: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [rows][inputs]
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>;
// Mean of each channel, then the inverse of its standard deviation.
@group(0) @binding(3) var<storage, read_write> norm: array<f32>;
// [rows][outputs]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

fn input_at(row: u32, channel: u32) -> f32 {
    let value = input[row * p.inputs + channel];
    if p.scale == 0u {
        return value;
    }
    let normal = (value - norm[channel]) * norm[p.inputs + channel];
    return fma(normal, parameters[p.scale - 1u + channel], parameters[p.shift + channel]);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let column_tiles = (p.outputs + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles * TILE_ROWS;
#for i in 16
    sums_{i} = vec4(0.0);
#end
    for (var first = 0u; first < p.inputs; first += TERMS) {
        workgroupBarrier();
        for (var i = thread; i < TERMS * TILE_ROWS; i += THREADS) {
            let own = i / TERMS;
            let channel = first + i % TERMS;
            var value = 0.0;
            if first_row + own < p.rows && channel < p.inputs {
                value = input_at(first_row + own, channel);
            }
            left[i % TERMS * (TILE_ROWS / 4u) + own / 4u][own % 4u] = value;
        }
        for (var i = thread; i < TERMS * TILE_COLUMNS; i += THREADS) {
            let own = i / TERMS;
            let channel = first + i % TERMS;
            var value = 0.0;
            if first_column + own < p.outputs && channel < p.inputs {
                value = parameters[p.weight + (first_column + own) * p.inputs + channel];
            }
            right[i % TERMS * (TILE_COLUMNS / 4u) + own / 4u][own % 4u] = value;
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
            if column + {j}u < p.outputs {
                let value = sums_{i}[{j}] + parameters[p.bias + column + {j}u];
                output[row * p.outputs + column + {j}u] = select(value, max(value, 0.0), p.relu != 0u);
            }
#end
        }
    }
#end
}
