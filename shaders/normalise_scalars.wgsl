// One part of a source as the next convolution reads it, where channels are no multiples of four: multiplied, shifted, put
// through SiLU, averaged over 2 x 2 pixels, and placed among the channels of the concatenation.
#import split
#import activation

struct Params {
    // Pixels of the result, all samples.
    rows: u32,
    height: u32,
    width: u32,
    // Of the part.
    channels: u32,
    // Of the concatenation, and where the part starts.
    all_channels: u32,
    first_channel: u32,
    // 0, or one more than the place of the coefficients among the vectors.
    coefficients: u32,
    silu: u32,
    averaged: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<Value>;

fn value_at(pixel: u32, channel: u32, scale: f32, shift: f32) -> f32 {
    let value = fma(f32(input[pixel * p.channels + channel]), scale, shift);
    return select(value, silu(value), p.silu != 0u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * p.channels {
        return;
    }
    let channel = at % p.channels;
    let row = at / p.channels;
    let sample = row / (p.height * p.width);
    var scale = 1.0;
    var shift = 0.0;
    if p.coefficients != 0u {
        let first = p.coefficients - 1u + sample * 2u * p.all_channels + p.first_channel + channel;
        scale = vectors[first];
        shift = vectors[first + p.all_channels];
    }
    var value: f32;
    if p.averaged != 0u {
        let y = row / p.width % p.height;
        let x = row % p.width;
        let pixel = (sample * 2u * p.height + 2u * y) * 2u * p.width + 2u * x;
        let below = pixel + 2u * p.width;
        let upper = value_at(pixel, channel, scale, shift) + value_at(pixel + 1u, channel, scale, shift);
        value = 0.25 * (upper + value_at(below, channel, scale, shift) + value_at(below + 1u, channel, scale, shift));
    } else {
        value = value_at(row, channel, scale, shift);
    }
    output[row * p.all_channels + p.first_channel + channel] = Value(value);
}
