// Convolution as a product: its rows are the pixels of all samples, its columns the output's channels, its terms the
// channels under each tap. Rows are gathered while tiles are loaded: there is no unfolded copy of the input, none of a
// concatenation, and none of a nearest-upsampled input.
//
// Where there are few tiles the terms are divided into `splits`, whose sums `conv_sum` adds up.
#import split
#import epilogue
#import tile

struct Params {
    epilogue: Epilogue,
    rows: u32,
    // Input before it is upsampled.
    in_height: u32,
    in_width: u32,
    channels_a: u32,
    channels_b: u32,
    // 1 or 3.
    kernel: u32,
    stride: u32,
    // 1 where each pixel of the input stands for 2 x 2.
    upsampled: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input_a: array<Value>;
@group(0) @binding(2) var<storage, read_write> input_b: array<Value>;
// [taps][channels][columns]
@group(0) @binding(3) var<storage, read> weight: array<Value>;
@group(0) @binding(8) var<storage, read_write> output: array<Result>;

// Upper left tap of each row of the tile, and its sample; -1 beyond the last row.
var<workgroup> places: array<vec3<i32>, TILE_ROWS>;

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

    let pixels = p.epilogue.height * p.epilogue.width;
    let reach = i32(p.kernel / 2u);
    for (var i = thread; i < TILE_ROWS; i += THREADS) {
        let row = first_row + i;
        let y = i32(row % pixels / p.epilogue.width * p.stride) - reach;
        let x = i32(row % p.epilogue.width * p.stride) - reach;
        places[i] = select(vec3(0, 0, -1), vec3(y, x, i32(row / pixels)), row < p.rows);
    }
    for (var i = 0u; i < 16u; i++) {
        sums[i] = vec4(0.0);
    }

    let height = i32(p.in_height << p.upsampled);
    let width = i32(p.in_width << p.upsampled);
    let taps = p.kernel * p.kernel;
    let channels = p.channels_a + p.channels_b;
    let chunks_a = (p.channels_a + TERMS - 1u) / TERMS;
    let chunks = chunks_a + (p.channels_b + TERMS - 1u) / TERMS;
    let steps = taps * chunks;
    let share = (steps + p.splits - 1u) / p.splits;
    let last = min(steps, (part + 1u) * share);
    for (var step = part * share; step < last; step++) {
        let tap = step / chunks;
        let chunk = step % chunks;
        let second = chunk >= chunks_a;
        let own = select(p.channels_a, p.channels_b, second);
        let first_channel = select(chunk, chunk - chunks_a, second) * TERMS;
        let dy = i32(tap / p.kernel);
        let dx = i32(tap % p.kernel);

        workgroupBarrier();
        for (var i = thread; i < TERMS * TILE_ROWS; i += THREADS) {
            let term = i % TERMS;
            let row = i / TERMS;
            let channel = first_channel + term;
            let place = places[row];
            let y = place.x + dy;
            let x = place.y + dx;
            var value = 0.0;
            if place.z >= 0 && y >= 0 && y < height && x >= 0 && x < width && channel < own {
                let pixel = (u32(place.z) * p.in_height + (u32(y) >> p.upsampled)) * p.in_width + (u32(x) >> p.upsampled);
                if second {
                    value = f32(input_b[pixel * own + channel]);
                } else {
                    value = f32(input_a[pixel * own + channel]);
                }
            }
            left[term * (TILE_ROWS / 4u) + row / 4u][row % 4u] = value;
        }
        let weight_row = tap * channels + select(0u, p.channels_a, second) + first_channel;
        for (var i = thread; i < TERMS * TILE_COLUMNS; i += THREADS) {
            let term = i / TILE_COLUMNS;
            let column = i % TILE_COLUMNS;
            var value = 0.0;
            if first_channel + term < own && first_column + column < columns {
                value = f32(weight[(weight_row + term) * columns + first_column + column]);
            }
            right[term * (TILE_COLUMNS / 4u) + column / 4u][column % 4u] = value;
        }
        workgroupBarrier();
        multiply_tile(thread);
    }

    for (var i = 0u; i < 16u; i++) {
        let row = first_row + tile_row(thread, i / 2u);
        let column = first_column + tile_column(thread, i % 2u);
        if row < p.rows {
            for (var j = 0u; j < 4u; j++) {
                if column + j < columns {
                    if p.splits > 1u {
                        output[(part * p.rows + row) * columns + column + j] = Result(sums[i][j]);
                    } else {
                        output[row * columns + column + j] = Result(finish(p.epilogue, row, column + j, sums[i][j]));
                    }
                }
            }
        }
    }
}
