// Adds a window to the rows of an image that are held, weighted by a bell over the window.
#import split

struct Params {
    // Of the image, and the rows that are held: row y at y % held.
    height: u32,
    width: u32,
    held: u32,
    channels: u32,
    window: u32,
    // First row and column of the window in the image; negative where the window reaches over its border.
    top: i32,
    left: i32,
    // Which of the batch.
    sample: u32,
    least_weight: f32,
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
    if group >= split.end || at >= p.window * p.window {
        return;
    }
    let y = p.top + i32(at / p.window);
    let x = p.left + i32(at % p.window);
    if y < 0 || y >= i32(p.height) || x < 0 || x >= i32(p.width) {
        return;
    }
    let weight = max(bell[at / p.window] * bell[at % p.window], p.least_weight);
    let first = (p.sample * p.window * p.window + at) * p.channels;
    let to = (u32(y) % p.held * p.width + u32(x)) * (p.channels + 1u);
    for (var channel = 0u; channel < p.channels; channel++) {
        sums[to + channel] += weight * values[first + channel];
    }
    sums[to + p.channels] += weight;
}
