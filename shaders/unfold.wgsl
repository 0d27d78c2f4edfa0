// What lies under the nine taps of each pixel, side by side: an input of few channels becomes one of 9 times as many, which
// fill a product's terms.
#import split
#import activation

struct Params {
    // Pixels of all samples.
    rows: u32,
    height: u32,
    width: u32,
    channels: u32,
    // Values of a pixel of the output: 9 * channels, and nothing up to a multiple of four.
    terms: u32,
    // 0, or one more than the place of the coefficients among the vectors.
    coefficients: u32,
    silu: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
// [rows][terms]
@group(0) @binding(3) var<storage, read_write> output: array<Value>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * p.terms {
        return;
    }
    let row = at / p.terms;
    let tap = at % p.terms / p.channels;
    let channel = at % p.terms % p.channels;
    let y = i32(row / p.width % p.height) + i32(tap / 3u) - 1;
    let x = i32(row % p.width) + i32(tap % 3u) - 1;
    var value = 0.0;
    if tap < 9u && y >= 0 && y < i32(p.height) && x >= 0 && x < i32(p.width) {
        let sample = row / (p.height * p.width);
        let pixel = (sample * p.height + u32(y)) * p.width + u32(x);
        value = f32(input[pixel * p.channels + channel]);
        if p.coefficients != 0u {
            let place = p.coefficients - 1u + sample * 2u * p.channels + channel;
            value = fma(value, vectors[place], vectors[place + p.channels]);
        }
        value = select(value, silu(value), p.silu != 0u);
    }
    output[at] = Value(value);
}
