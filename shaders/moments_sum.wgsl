// Combines the moments of blocks of pixels into mean and biased variance of each channel: 32 channels a workgroup.
#import split

struct Params {
    pixels: u32,
    channels: u32,
    blocks: u32,
    // Pixels of a block.
    block: u32,
    columns: u32,
    lanes: u32,
    // Where the result lies among the vectors.
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#import block_moments
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let slices = (p.channels + p.columns - 1u) / p.columns;
    let sample = group / slices;
    let channel = (group - sample * slices) * p.columns + thread % p.columns;
    let own = block_moments(thread, channel < p.channels, sample, channel, p.channels);
    if thread < p.columns && channel < p.channels {
        let to = p.to + sample * 2u * p.channels + channel;
        vectors[to] = own.x;
        vectors[to + p.channels] = own.y;
    }
}
