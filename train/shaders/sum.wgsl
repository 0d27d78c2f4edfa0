// Everything that flows back into a tensor: from its readers, and from its moments.
#import split
#import slope
#import incoming

struct Params {
    // Pixels of all samples.
    rows: u32,
    height: u32,
    width: u32,
    channels: u32,
    readers: u32,
    // 1 where the sum is added to what is there.
    accumulate: u32,
    // 0, or one more than the place among the vectors of what depends on the tensor through its moments: summands, then
    // multipliers.
    moments: u32,
    unused: u32,
    reader: array<Reader, 4>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> tensor: array<Value>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient_a: array<Value>;
@group(0) @binding(4) var<storage, read_write> gradient_b: array<Value>;
@group(0) @binding(5) var<storage, read_write> gradient_c: array<Value>;
@group(0) @binding(6) var<storage, read_write> gradient_d: array<Value>;
@group(0) @binding(7) var<storage, read_write> output: array<Value>;

fn gradient_at(buffer: u32, at: u32) -> f32 {
    switch buffer {
        case 0u: { return f32(gradient_a[at]); }
        case 1u: { return f32(gradient_b[at]); }
        case 2u: { return f32(gradient_c[at]); }
        default: { return f32(gradient_d[at]); }
    }
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
    let y = row / p.width % p.height;
    let x = row % p.width;
    var sum = 0.0;
    if p.accumulate != 0u {
        sum = f32(output[at]);
    }
    if p.moments != 0u {
        let place = p.moments - 1u + sample * 2u * p.channels + channel;
        sum += fma(vectors[place + p.channels], f32(tensor[at]), vectors[place]);
    }
    for (var i = 0u; i < p.readers; i++) {
        let r = p.reader[i];
        var value = incoming(r, sample, y, x, channel);
        if r.coefficients != 0u {
            let place = coefficients_at(r, sample, channel);
            let scale = vectors[place];
            value *= scale;
            if r.silu != 0u {
                value *= silu_slope(fma(f32(tensor[at]), scale, vectors[place + r.channels]));
            }
        }
        sum += value;
    }
    output[at] = Value(sum);
}
