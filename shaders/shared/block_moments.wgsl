// Moments of a map's channels from those of its blocks of pixels. The threads of a workgroup are `p.columns` channels and
// `p.lanes` of each, a power of two.

// [samples][blocks][2][channels]: means and sums of squared deviations.
@group(0) @binding(1) var<storage, read_write> blocks: array<f32>;

var<workgroup> partial: array<f32, 256>;

// The sum over a channel's lanes, for all of them.
fn over_lanes(thread: u32, value: f32) -> f32 {
    partial[thread] = value;
    for (var half = p.lanes / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half * p.columns {
            partial[thread] += partial[thread + half * p.columns];
        }
    }
    workgroupBarrier();
    let total = partial[thread % p.columns];
    workgroupBarrier();
    return total;
}

fn block_size(block: u32) -> f32 {
    return f32(min(p.block, p.pixels - block * p.block));
}

// Mean and biased variance of a channel of a sample; `wanted` is false for threads that have none. All threads call it.
fn block_moments(thread: u32, wanted: bool, sample: u32, channel: u32, channels: u32) -> vec2<f32> {
    let first = sample * p.blocks * 2u * channels + channel;
    let end = select(0u, p.blocks, wanted);
    // Deviations from one of the means lose fewer bits than the means themselves.
    var pivot = 0.0;
    if wanted {
        pivot = blocks[first];
    }
    var sum = 0.0;
    for (var block = thread / p.columns; block < end; block += p.lanes) {
        sum = fma(block_size(block), blocks[first + block * 2u * channels] - pivot, sum);
    }
    let mean = pivot + over_lanes(thread, sum) / f32(p.pixels);
    var squares = 0.0;
    for (var block = thread / p.columns; block < end; block += p.lanes) {
        let at = first + block * 2u * channels;
        let deviation = blocks[at] - mean;
        squares += fma(block_size(block) * deviation, deviation, blocks[at + channels]);
    }
    return vec2(mean, over_lanes(thread, squares) / f32(p.pixels));
}
