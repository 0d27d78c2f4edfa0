// Tiles of a convolution's input in Winograd's domain: `B^T d B` of 6 x 6 pixels for 4 x 4 outputs (Lavin and Gray 2015),
// with the interpolation points 0, 5/8, -5/8, 3/2, -3/2 and infinity. Normalised on the way; one thread a tile and channel.
#import split
#import activation

struct Params {
    // Of the part, before it is upsampled.
    in_height: u32,
    in_width: u32,
    channels: u32,
    // Of the concatenation, and where the part starts.
    all_channels: u32,
    first_channel: u32,
    // 0, or one more than the place of the coefficients among the vectors.
    coefficients: u32,
    silu: u32,
    // 1 where each pixel of the input stands for 2 x 2.
    upsampled: u32,
    // Tiles of a sample's columns and of a sample; those that are transformed, and the first of them.
    tile_columns: u32,
    sample_tiles: u32,
    tiles: u32,
    first_tile: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
// [36][tiles][all_channels]
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

fn transform(d: array<f32, 6>) -> array<f32, 6> {
    // Values at a point and at its negative share their even and odd parts.
    let near_even = fma(-2.25, d[2], d[4]);
    let near_odd = fma(-2.25, d[1], d[3]);
    let far_even = fma(-0.390625, d[2], d[4]);
    let far_odd = fma(-0.390625, d[1], d[3]);
    return array<f32, 6>(
        fma(0.87890625, d[0], fma(-2.640625, d[2], d[4])),
        fma(0.625, near_odd, near_even),
        fma(-0.625, near_odd, near_even),
        fma(1.5, far_odd, far_even),
        fma(-1.5, far_odd, far_even),
        fma(0.87890625, d[1], fma(-2.640625, d[3], d[5])),
    );
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 128u + thread;
    if group >= split.end || at >= p.tiles * p.channels {
        return;
    }
    let channel = at % p.channels;
    let tile = at / p.channels;
    let whole = p.first_tile + tile;
    let sample = whole / p.sample_tiles;
    let top = i32(whole % p.sample_tiles / p.tile_columns * 4u) - 1;
    let left = i32(whole % p.tile_columns * 4u) - 1;
    var scale = 1.0;
    var shift = 0.0;
    if p.coefficients != 0u {
        let place = p.coefficients - 1u + sample * 2u * p.all_channels + p.first_channel + channel;
        scale = vectors[place];
        shift = vectors[place + p.all_channels];
    }
    let height = i32(p.in_height << p.upsampled);
    let width = i32(p.in_width << p.upsampled);
    var rows: array<array<f32, 6>, 6>;
    for (var i = 0; i < 6; i++) {
        let y = top + i;
        var d: array<f32, 6>;
        for (var j = 0; j < 6; j++) {
            let x = left + j;
            d[j] = 0.0;
            if y >= 0 && y < height && x >= 0 && x < width {
                let pixel = (sample * p.in_height + (u32(y) >> p.upsampled)) * p.in_width + (u32(x) >> p.upsampled);
                let value = fma(f32(input[pixel * p.channels + channel]), scale, shift);
                d[j] = select(value, silu(value), p.silu != 0u);
            }
        }
        rows[i] = transform(d);
    }
    let point_stride = p.tiles * p.all_channels;
    let to = tile * p.all_channels + p.first_channel + channel;
    for (var j = 0u; j < 6u; j++) {
        let column = transform(array<f32, 6>(rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]));
        for (var i = 0u; i < 6u; i++) {
            output[(i * 6u + j) * point_stride + to] = column[i];
        }
    }
}
