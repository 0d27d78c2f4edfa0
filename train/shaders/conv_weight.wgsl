// The gradient of a convolution's weight as a product: its rows are the channels under each tap, its columns the output's
// channels, its terms the pixels of all samples. There are many more terms than rows or columns, so they are divided into
// `splits`, whose sums `conv_weight_sum` adds up.
#import split
const STAGES: u32 = 1u;
#import tile

struct Params {
    // Of the gradient, all samples.
    pixels: u32,
    height: u32,
    width: u32,
    // Of what was read, before it is upsampled.
    in_height: u32,
    in_width: u32,
    channels_a: u32,
    channels_b: u32,
    // 1 or 3.
    kernel: u32,
    stride: u32,
    // 1 where each pixel of what was read stands for 2 x 2.
    upsampled: u32,
    columns: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input_a: array<Value>;
@group(0) @binding(2) var<storage, read_write> input_b: array<Value>;
// [pixels][columns]
@group(0) @binding(3) var<storage, read_write> gradient: array<Value>;
// [splits][taps][channels][columns]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

// Upper left tap of each pixel of a step, and its sample; -1 beyond the last pixel.
var<workgroup> places: array<vec3<i32>, TERMS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let channels = p.channels_a + p.channels_b;
    let rows = p.kernel * p.kernel * channels;
    let column_tiles = (p.columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (rows + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let part = group / (column_tiles * row_tiles);
#for i in 16
    sums_{i} = vec4(0.0);
#end

    // There are as many threads as rows of a tile, or twice as many: what a thread loads belongs to one row.
    let own = thread % TILE_ROWS;
    let row = first_row + own;
    let tap = row / channels;
    let dy = i32(tap / p.kernel);
    let dx = i32(tap % p.kernel);
    let second = row % channels >= p.channels_a;
    let own_channels = select(p.channels_a, p.channels_b, second);
    let channel = row % channels - select(0u, p.channels_a, second);
    let height = i32(p.in_height << p.upsampled);
    let width = i32(p.in_width << p.upsampled);

    let image = p.height * p.width;
    let steps = (p.pixels + TERMS - 1u) / TERMS;
    let share = (steps + p.splits - 1u) / p.splits;
    for (var step = part * share; step < min(steps, (part + 1u) * share); step++) {
        let first = step * TERMS;
        workgroupBarrier();
        if thread < TERMS {
            let pixel = first + thread;
            let y = i32(pixel % image / p.width * p.stride) - i32(p.kernel / 2u);
            let x = i32(pixel % p.width * p.stride) - i32(p.kernel / 2u);
            places[thread] = select(vec3(0, 0, -1), vec3(y, x, i32(pixel / image)), pixel < p.pixels);
        }
        for (var i = thread; i < TERMS * TILE_COLUMNS; i += THREADS) {
            let term = i / TILE_COLUMNS;
            let column = i % TILE_COLUMNS;
            var value = 0.0;
            if first + term < p.pixels && first_column + column < p.columns {
                value = f32(gradient[(first + term) * p.columns + first_column + column]);
            }
            right[term * (TILE_COLUMNS / 4u) + column / 4u][column % 4u] = value;
        }
        workgroupBarrier();
        for (var term = thread / TILE_ROWS; term < TERMS; term += THREADS / TILE_ROWS) {
            let place = places[term];
            let y = place.x + dy;
            let x = place.y + dx;
            var value = 0.0;
            if row < rows && place.z >= 0 && y >= 0 && x >= 0 && y < height && x < width {
                let line = u32(place.z) * p.in_height + (u32(y) >> p.upsampled);
                let at = (line * p.in_width + (u32(x) >> p.upsampled)) * own_channels + channel;
                if second {
                    value = f32(input_b[at]);
                } else {
                    value = f32(input_a[at]);
                }
            }
            left[term * (TILE_ROWS / 4u) + own / 4u][own % 4u] = value;
        }
        workgroupBarrier();
        multiply_tile(thread, 0u);
    }

#for i in 16
    {
        let to_row = first_row + tile_row(thread, {i}u / 2u);
        let column = first_column + tile_column(thread, {i}u % 2u);
        if to_row < rows {
#for j in 4
            if column + {j}u < p.columns {
                output[(part * rows + to_row) * p.columns + column + {j}u] = sums_{i}[{j}];
            }
#end
        }
    }
#end
}
