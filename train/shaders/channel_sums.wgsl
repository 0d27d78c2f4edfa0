// The sum of each channel over a block of pixels: 8 threads a channel, 32 channels a workgroup.
#import split

struct Params {
    pixels: u32,
    channels: u32,
    blocks: u32,
    // Pixels of a block.
    block: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
// [samples][blocks][channels]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let slices = (p.channels + 31u) / 32u;
    let channel = group % slices * 32u + thread % 32u;
    let block = group / slices % p.blocks;
    let sample = group / (slices * p.blocks);
    let end = min(p.pixels, (block + 1u) * p.block);
    var sum = 0.0;
    if channel < p.channels {
        for (var pixel = block * p.block + thread / 32u; pixel < end; pixel += 8u) {
            sum += f32(input[(sample * p.pixels + pixel) * p.channels + channel]);
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    if thread < 32u && channel < p.channels {
        for (var i = 1u; i < 8u; i++) {
            sum += partial[thread + 32u * i];
        }
        output[(sample * p.blocks + block) * p.channels + channel] = sum;
    }
}
