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
@group(0) @binding(1) var<storage, read_write> input: array<vec4<Value>>;
// [blocks][samples][height]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

var<workgroup> partial: array<f32, 256>;

fn one(at: u32, channel: u32) -> f32 {
    var value = 0.0;
    if channel < p.channels {
        value = f32(input[at / 4u][at % 4u]);
    }
    return value;
}

// Four channels, zero beyond the last.
fn four(pixel: u32, channel: u32) -> vec4<f32> {
    let at = pixel * p.channels + channel;
    if p.channels % 4u == 0u {
        return vec4<f32>(input[at / 4u]);
    }
    return vec4(one(at, channel), one(at + 1u, channel + 1u), one(at + 2u, channel + 2u), one(at + 3u, channel + 3u));
}

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
    let quads = (p.channels + 3u) / 4u;
    for (var i = thread; i < p.width * quads; i += 256u) {
        let channel = i % quads * 4u;
        let x = between(i / quads, p.width, p.own_width);
        let a = mix(four(upper + x.first, channel), four(upper + x.second, channel), x.share);
        let b = mix(four(lower + x.first, channel), four(lower + x.second, channel), x.share);
        let value = mix(a, b, rows.share);
        sum += dot(value, value);
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
