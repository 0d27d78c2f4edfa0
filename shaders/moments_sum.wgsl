// Combines the moments of blocks of pixels into mean and biased variance of each channel.
#import split

struct Params {
    pixels: u32,
    channels: u32,
    blocks: u32,
    block: u32,
    samples: u32,
    // Where the result lies among the vectors.
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples][blocks][2][channels]
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 64u + thread;
    if group >= split.end || at >= p.samples * p.channels {
        return;
    }
    let channel = at % p.channels;
    let sample = at / p.channels;
    var count = 0.0;
    var mean = 0.0;
    var squares = 0.0;
    for (var block = 0u; block < p.blocks; block++) {
        let start = (sample * p.blocks + block) * 2u * p.channels + channel;
        let own = f32(min(p.block, p.pixels - block * p.block));
        // Chan, Golub and LeVeque 1979.
        let delta = input[start] - mean;
        mean += delta * own / (count + own);
        squares += input[start + p.channels] + delta * delta * count * own / (count + own);
        count += own;
    }
    let to = p.to + sample * 2u * p.channels + channel;
    vectors[to] = mean;
    vectors[to + p.channels] = squares / count;
}
