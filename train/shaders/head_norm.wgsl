// A batch norm's statistics from those of blocks, and its running ones moved towards them. A thread a channel.
#import split

struct Params {
    rows: u32,
    channels: u32,
    // Rows of a block.
    block: u32,
    blocks: u32,
    // How far running statistics move.
    momentum: f32,
    // Added to the variance.
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [blocks][mean, squares][channels]
@group(0) @binding(1) var<storage, read_write> moments: array<f32>;
// [mean, inverse of the standard deviation, running mean, running variance][channels]
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let channel = group * 64u + thread;
    if group >= split.end || channel >= p.channels {
        return;
    }
    // Relative to the first block's mean: what differs is small.
    let start = moments[channel];
    var sum = 0.0;
    for (var block = 1u; block < p.blocks; block++) {
        let count = f32(min(p.rows, (block + 1u) * p.block) - block * p.block);
        sum = fma(count, moments[2u * block * p.channels + channel] - start, sum);
    }
    let mean = start + sum / f32(p.rows);
    var squares = 0.0;
    for (var block = 0u; block < p.blocks; block++) {
        let count = f32(min(p.rows, (block + 1u) * p.block) - block * p.block);
        let apart = moments[2u * block * p.channels + channel] - mean;
        squares += fma(count * apart, apart, moments[(2u * block + 1u) * p.channels + channel]);
    }
    norm[channel] = mean;
    norm[p.channels + channel] = 1.0 / sqrt(squares / f32(p.rows) + p.epsilon);
    let running = 2u * p.channels + channel;
    norm[running] = fma(p.momentum, mean - norm[running], norm[running]);
    let variance = squares / f32(p.rows - 1u);
    let spread = running + p.channels;
    norm[spread] = fma(p.momentum, variance - norm[spread], norm[spread]);
}
