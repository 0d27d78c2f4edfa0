// The gradient of a norm's coefficients over a block of pixels: sums of `g x` and of `g` for each channel of one of the
// tensors that were normalised. 8 threads a channel, 32 channels a workgroup.
#import split
#import slope
#import incoming

struct Params {
    pixels: u32,
    width: u32,
    channels: u32,
    blocks: u32,
    // Pixels of a block.
    block: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
    reader: Reader,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> tensor: array<Value>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<Value>;
// [samples][blocks][2][channels]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

var<workgroup> partial: array<vec2<f32>, 256>;

fn gradient_at(buffer: u32, at: u32) -> f32 {
    return f32(gradient[at]);
}

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
    var sum = vec2(0.0);
    if channel < p.channels {
        let place = coefficients_at(p.reader, sample, channel);
        let scale = vectors[place];
        let shift = vectors[place + p.reader.channels];
        for (var pixel = block * p.block + thread / 32u; pixel < end; pixel += 8u) {
            let x = f32(tensor[(sample * p.pixels + pixel) * p.channels + channel]);
            var g = incoming(p.reader, sample, pixel / p.width, pixel % p.width, channel);
            if p.reader.silu != 0u {
                g *= silu_slope(fma(x, scale, shift));
            }
            sum += vec2(g * x, g);
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    if thread < 32u && channel < p.channels {
        for (var i = 1u; i < 8u; i++) {
            sum += partial[thread + 32u * i];
        }
        let to = (sample * p.blocks + block) * 2u * p.channels + channel;
        output[to] = sum.x;
        output[to + p.channels] = sum.y;
    }
}
