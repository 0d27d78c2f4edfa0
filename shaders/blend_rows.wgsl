// Finished rows of blended windows: sums divided by weights. The rows are empty afterwards.
#import split

struct Params {
    width: u32,
    held: u32,
    channels: u32,
    // The rows that are finished.
    first_row: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [held][width][channels + 1]
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
// [rows][width][channels]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * p.width {
        return;
    }
    let row = (p.first_row + at / p.width) % p.held;
    let place = (row * p.width + at % p.width) * (p.channels + 1u);
    // A pixel that no window covered has no weight; it becomes 0.
    let weight = max(sums[place + p.channels], 1.2e-38);
    for (var channel = 0u; channel < p.channels; channel++) {
        output[at * p.channels + channel] = sums[place + channel] / weight;
        sums[place + channel] = 0.0;
    }
    sums[place + p.channels] = 0.0;
}
