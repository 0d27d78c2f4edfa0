// Sum of squares of one row of a bilinearly upsampled block.
#import split
#import bilinear

struct Params {
    height: u32,
    width: u32,
    own_height: u32,
    own_width: u32,
    channels: u32,
    // Where the block's rows start in the output.
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
// [blocks][samples][height]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let rows = between(group % p.height, p.height, p.own_height);
    let image = group / p.height * p.own_height;
    let upper = (image + rows.first) * p.own_width;
    let lower = (image + rows.second) * p.own_width;
    var sum = 0.0;
    for (var i = thread; i < p.width * p.channels; i += 256u) {
        let channel = i % p.channels;
        let x = between(i / p.channels, p.width, p.own_width);
        let a = mix(f32(input[(upper + x.first) * p.channels + channel]), f32(input[(upper + x.second) * p.channels + channel]), x.share);
        let b = mix(f32(input[(lower + x.first) * p.channels + channel]), f32(input[(lower + x.second) * p.channels + channel]), x.share);
        let value = mix(a, b, rows.share);
        sum = fma(value, value, sum);
    }
    partial[thread] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        output[p.to + group] = partial[0];
    }
}
