// Adds windows to the rows of an image that are held, weighted by a bell over the window: one thread for each pixel of the
// rectangle that the windows lie in, so that their order is the order of the sums.
#import split

const MOST_PLACES: u32 = 16u;

struct Params {
    // Of the image, and the rows that are held: row y at y % held.
    width: u32,
    held: u32,
    channels: u32,
    window: u32,
    least_weight: f32,
    // The rectangle.
    top: u32,
    left: u32,
    rows: u32,
    columns: u32,
    // Windows, and the first one's number in the batch.
    count: u32,
    first: u32,
    unused: u32,
    // First row and column of each in the image; negative where a window reaches over its border.
    places: array<vec4<i32>, MOST_PLACES>,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples][window][window][channels]
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
// [window]
@group(0) @binding(2) var<storage, read> bell: array<f32>;
// [held][width][channels + 1]: weighted sums, then the sum of weights.
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    let row = at / p.columns;
    if group >= split.end || row >= p.rows {
        return;
    }
    let y = p.top + row;
    let x = p.left + at - row * p.columns;
    let to = (y % p.held * p.width + x) * (p.channels + 1u);
    for (var i = 0u; i < p.count; i++) {
        let own_y = i32(y) - p.places[i].x;
        let own_x = i32(x) - p.places[i].y;
        if own_y < 0 || own_y >= i32(p.window) || own_x < 0 || own_x >= i32(p.window) {
            continue;
        }
        let weight = max(bell[own_y] * bell[own_x], p.least_weight);
        let pixel = ((p.first + i) * p.window + u32(own_y)) * p.window + u32(own_x);
        for (var channel = 0u; channel < p.channels; channel++) {
            sums[to + channel] += weight * values[pixel * p.channels + channel];
        }
        sums[to + p.channels] += weight;
    }
}
