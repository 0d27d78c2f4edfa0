// Outputs of a convolution from Winograd's domain: `A^T m A` for 4 x 4 pixels, and what is added to them. One thread a tile
// and channel.
#import split
#import epilogue

struct Params {
    epilogue: Epilogue,
    // Tiles of a sample's columns and of a sample; those that are here, and the first of them.
    tile_columns: u32,
    sample_tiles: u32,
    tiles: u32,
    first_tile: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [36][tiles][columns]
@group(0) @binding(1) var<storage, read_write> products: array<f32>;
@group(0) @binding(8) var<storage, read_write> output: array<Result>;

fn transform(m: array<f32, 6>) -> array<f32, 4> {
    let sum = m[1] + m[2];
    let difference = m[1] - m[2];
    let far_sum = m[3] + m[4];
    let far_difference = m[3] - m[4];
    return array<f32, 4>(
        m[0] + sum + far_sum,
        fma(0.625, difference, 1.5 * far_difference),
        fma(0.390625, sum, 2.25 * far_sum),
        fma(0.244140625, difference, 3.375 * far_difference) + m[5],
    );
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let columns = p.epilogue.columns;
    let at = group * 128u + thread;
    if group >= split.end || at >= p.tiles * columns {
        return;
    }
    let column = at % columns;
    let tile = at / columns;
    let whole = p.first_tile + tile;
    let sample = whole / p.sample_tiles;
    let top = whole % p.sample_tiles / p.tile_columns * 4u;
    let left = whole % p.tile_columns * 4u;
    let point_stride = p.tiles * columns;
    var rows: array<array<f32, 4>, 6>;
    for (var i = 0u; i < 6u; i++) {
        var m: array<f32, 6>;
        for (var j = 0u; j < 6u; j++) {
            m[j] = products[(i * 6u + j) * point_stride + tile * columns + column];
        }
        rows[i] = transform(m);
    }
    for (var j = 0u; j < 4u; j++) {
        let values = transform(array<f32, 6>(rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]));
        for (var i = 0u; i < 4u; i++) {
            if top + i < p.epilogue.height && left + j < p.epilogue.width {
                let row = (sample * p.epilogue.height + top + i) * p.epilogue.width + left + j;
                output[row * columns + column] = Result(finish(p.epilogue, row, column, values[i]));
            }
        }
    }
}
