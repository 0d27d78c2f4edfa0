// Zeros between pixels: `output[2 y, 2 x] = input[y, x]`.
#import split

struct Params {
    // Pixels of the output, all samples.
    rows: u32,
    height: u32,
    width: u32,
    channels: u32,
    // Of the input.
    in_height: u32,
    in_width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
@group(0) @binding(2) var<storage, read_write> output: array<Value>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * p.channels {
        return;
    }
    let row = at / p.channels;
    let y = row / p.width % p.height;
    let x = row % p.width;
    var value = Value(0.0);
    if y % 2u == 0u && x % 2u == 0u {
        let sample = row / (p.height * p.width);
        value = input[((sample * p.in_height + y / 2u) * p.in_width + x / 2u) * p.channels + at % p.channels];
    }
    output[at] = value;
}
