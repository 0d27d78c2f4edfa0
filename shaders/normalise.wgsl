// One or two parts of a source as the next convolution reads them: multiplied, shifted, put through SiLU, averaged over
// 2 x 2 pixels, and placed among the channels of the concatenation. A thread has four channels of some pixels in a row.
#import split
#import activation

struct Params {
    // Of the result, a sample.
    pixels: u32,
    width: u32,
    // All samples have so many strips of so many pixels.
    strips: u32,
    strip: u32,
    strips_a_sample: u32,
    // Channels in fours: of the parts, of the concatenation, and where the parts start in it.
    packs_a: u32,
    packs_b: u32,
    all_packs: u32,
    first_pack: u32,
    // 0, or one more than the place of the coefficients among the vectors, in fours.
    coefficients: u32,
    silu: u32,
    averaged: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input_a: array<vec4<Value>>;
@group(0) @binding(2) var<storage, read_write> vectors: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4<Value>>;
@group(0) @binding(4) var<storage, read_write> input_b: array<vec4<Value>>;

fn value_at(of_b: bool, at: u32) -> vec4<f32> {
    if of_b {
        return vec4<f32>(input_b[at]);
    }
    return vec4<f32>(input_a[at]);
}

fn normalised(value: vec4<f32>, scale: vec4<f32>, shift: vec4<f32>) -> vec4<f32> {
    let result = fma(value, scale, shift);
    if p.silu != 0u {
        return silu4(result);
    }
    return result;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    let packs = p.packs_a + p.packs_b;
    let strip = at / packs;
    if group >= split.end || strip >= p.strips {
        return;
    }
    let pack = at - strip * packs;
    let sample = strip / p.strips_a_sample;
    let first = (strip - sample * p.strips_a_sample) * p.strip;
    var scale = vec4(1.0);
    var shift = vec4(0.0);
    if p.coefficients != 0u {
        let place = p.coefficients - 1u + sample * 2u * p.all_packs + p.first_pack + pack;
        scale = vectors[place];
        shift = vectors[place + p.all_packs];
    }
    let of_b = pack >= p.packs_a;
    let own = select(p.packs_a, p.packs_b, of_b);
    let own_pack = select(pack, pack - p.packs_a, of_b);
    let count = min(p.strip, p.pixels - first);
    var to = (sample * p.pixels + first) * p.all_packs + p.first_pack + pack;
    if p.averaged != 0u {
        var y = first / p.width;
        var x = first - y * p.width;
        for (var i = 0u; i < count; i++) {
            let upper = (4u * (sample * p.pixels + y * p.width) + 2u * x) * own + own_pack;
            let lower = upper + 2u * p.width * own;
            let a = value_at(of_b, upper);
            let b = value_at(of_b, upper + own);
            let c = value_at(of_b, lower);
            let d = value_at(of_b, lower + own);
            let above = normalised(a, scale, shift) + normalised(b, scale, shift);
            let all = above + normalised(c, scale, shift) + normalised(d, scale, shift);
            output[to] = vec4<Value>(0.25 * all);
            to += p.all_packs;
            x += 1u;
            if x == p.width {
                x = 0u;
                y += 1u;
            }
        }
        return;
    }
    var here = (sample * p.pixels + first) * own + own_pack;
    if count == 4u {
        // All are under way before the first is used.
        let a = value_at(of_b, here);
        let b = value_at(of_b, here + own);
        let c = value_at(of_b, here + 2u * own);
        let d = value_at(of_b, here + 3u * own);
        output[to] = vec4<Value>(normalised(a, scale, shift));
        output[to + p.all_packs] = vec4<Value>(normalised(b, scale, shift));
        output[to + 2u * p.all_packs] = vec4<Value>(normalised(c, scale, shift));
        output[to + 3u * p.all_packs] = vec4<Value>(normalised(d, scale, shift));
        return;
    }
    for (var i = 0u; i < count; i++) {
        output[to] = vec4<Value>(normalised(value_at(of_b, here), scale, shift));
        here += own;
        to += p.all_packs;
    }
}
