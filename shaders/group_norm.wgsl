// Group norm over 32 groups of one or two parts of a source, as the next convolution reads it: moments, multipliers and
// summands as `norm_coefficients` makes them, then what `normalise` does, at once. A workgroup has the fewest groups of a sample
// whose channels are a multiple of four; its threads are columns of four channels and as many lanes of pixels as that leaves.
#import split
#import finite
#import activation

struct Params {
    // Of the input and of the result, a sample.
    pixels: u32,
    out_pixels: u32,
    // Of the result.
    width: u32,
    // Channels in fours: of the parts.
    packs_a: u32,
    packs_b: u32,
    // Of a workgroup, in fours.
    columns: u32,
    // Of a group.
    channels: u32,
    // 0, or one more than the place of scale and shift among the vectors, in fours.
    scale_shift: u32,
    silu: u32,
    averaged: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input_a: array<vec4<Value>>;
@group(0) @binding(2) var<storage, read_write> vectors: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4<Value>>;
@group(0) @binding(4) var<storage, read_write> input_b: array<vec4<Value>>;
@group(0) @binding(5) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> bias: array<vec4<f32>>;

const EPSILON: f32 = 1e-5;
// Pixels that a thread keeps; it reads the others again.
const KEPT: u32 = 16u;

var<workgroup> partial: array<vec4<f32>, 256>;
// At most four.
var<workgroup> totals: array<f32, 4>;

fn value_at(of_b: bool, at: u32) -> vec4<Value> {
    if of_b {
        return input_b[at];
    }
    return input_a[at];
}

fn normalised(value: vec4<f32>, scale: vec4<f32>, shift: vec4<f32>) -> vec4<f32> {
    let result = fma(value, scale, shift);
    if p.silu != 0u {
        return silu4(result);
    }
    return result;
}

// The mean of what all threads have, for the group of each of a column's channels.
fn group_means(thread: u32, lanes: u32, own: vec4<f32>) -> vec4<f32> {
    partial[thread] = own;
    for (var all = lanes; all > 1u;) {
        // The first half takes the second, which may be one shorter.
        let half = (all + 1u) / 2u;
        workgroupBarrier();
        if thread < (all - half) * p.columns {
            partial[thread] += partial[thread + half * p.columns];
        }
        all = half;
    }
    workgroupBarrier();
    if thread < 4u * p.columns / p.channels {
        var sum = 0.0;
        if p.channels % 4u == 0u {
            // The only group.
            for (var i = 0u; i < p.columns; i++) {
                sum += dot(partial[i], vec4(1.0));
            }
        } else {
            for (var i = thread * p.channels; i < (thread + 1u) * p.channels; i++) {
                sum += partial[i / 4u][i % 4u];
            }
        }
        totals[thread] = sum / (f32(p.channels) * f32(p.pixels));
    }
    workgroupBarrier();
    let first = thread % p.columns * 4u;
    return vec4(
        totals[first / p.channels],
        totals[(first + 1u) / p.channels],
        totals[(first + 2u) / p.channels],
        totals[(first + 3u) / p.channels],
    );
}

fn squared(deviation: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(deviation, deviation, sum);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let all_packs = p.packs_a + p.packs_b;
    let sets = all_packs / p.columns;
    let sample = group / sets;
    let pack = (group - sample * sets) * p.columns + thread % p.columns;
    let lanes = 256u / p.columns;
    let lane = thread / p.columns;
    let of_b = pack >= p.packs_a;
    let own_packs = select(p.packs_a, p.packs_b, of_b);
    let own_pack = select(pack, pack - p.packs_a, of_b);
    // Threads beyond the last lane have no pixels.
    let end = select(0u, p.pixels, lane < lanes);
    let first = sample * p.pixels * own_packs + own_pack;
    let step = lanes * own_packs;
    let start = first + lane * own_packs;
    let next = lane + KEPT * lanes;
    let rest = start + KEPT * step;

    var sum = vec4(0.0);
#for i in 16
    var v{i} = vec4<Value>();
    if lane + {i}u * lanes < end {
        v{i} = value_at(of_b, start + {i}u * step);
    }
#end
#for i in 16
    sum += vec4<f32>(v{i});
#end
    var at = rest;
    var pixel = next;
    for (; pixel + 3u * lanes < end; pixel += 4u * lanes) {
        let a = vec4<f32>(value_at(of_b, at));
        let b = vec4<f32>(value_at(of_b, at + step));
        let c = vec4<f32>(value_at(of_b, at + 2u * step));
        let d = vec4<f32>(value_at(of_b, at + 3u * step));
        sum += (a + b) + (c + d);
        at += 4u * step;
    }
    for (; pixel < end; pixel += lanes) {
        sum += vec4<f32>(value_at(of_b, at));
        at += step;
    }
    let mean = group_means(thread, lanes, sum);

    var squares = vec4(0.0);
#for i in 16
    if lane + {i}u * lanes < end {
        squares = squared(vec4<f32>(v{i}) - mean, squares);
    }
#end
    at = rest;
    pixel = next;
    for (; pixel + 3u * lanes < end; pixel += 4u * lanes) {
        let a = vec4<f32>(value_at(of_b, at)) - mean;
        let b = vec4<f32>(value_at(of_b, at + step)) - mean;
        let c = vec4<f32>(value_at(of_b, at + 2u * step)) - mean;
        let d = vec4<f32>(value_at(of_b, at + 3u * step)) - mean;
        squares += squared(a, b * b) + squared(c, d * d);
        at += 4u * step;
    }
    for (; pixel < end; pixel += lanes) {
        squares = squared(vec4<f32>(value_at(of_b, at)) - mean, squares);
        at += step;
    }
    let variance = group_means(thread, lanes, squares);
    if lane >= lanes {
        return;
    }

    var scale = weight[pack] / sqrt(variance + EPSILON);
    if !all(are_finite(variance)) {
        // An infinite one would make everything equal.
        scale = vec4(not_a_number(variance.x));
    }
    var shift = fma(-mean, scale, bias[pack]);
    if p.scale_shift != 0u {
        let place = p.scale_shift - 1u + sample * 2u * all_packs + pack;
        let factor = 1.0 + vectors[place];
        scale *= factor;
        shift = fma(shift, factor, vectors[place + all_packs]);
    }
    var to = (sample * p.out_pixels + lane) * all_packs + pack;
    let to_step = lanes * all_packs;
    if p.averaged != 0u {
        for (var i = lane; i < p.out_pixels; i += lanes) {
            let y = i / p.width;
            let upper = first + (4u * y * p.width + 2u * (i - y * p.width)) * own_packs;
            let lower = upper + 2u * p.width * own_packs;
            let a = vec4<f32>(value_at(of_b, upper));
            let b = vec4<f32>(value_at(of_b, upper + own_packs));
            let c = vec4<f32>(value_at(of_b, lower));
            let d = vec4<f32>(value_at(of_b, lower + own_packs));
            let above = normalised(a, scale, shift) + normalised(b, scale, shift);
            let all = above + normalised(c, scale, shift) + normalised(d, scale, shift);
            output[to] = vec4<Value>(0.25 * all);
            to += to_step;
        }
        return;
    }
#for i in 16
    if lane + {i}u * lanes < end {
        output[to + {i}u * to_step] = vec4<Value>(normalised(vec4<f32>(v{i}), scale, shift));
    }
#end
    at = rest;
    to += KEPT * to_step;
    for (pixel = next; pixel < end; pixel += lanes) {
        output[to] = vec4<Value>(normalised(vec4<f32>(value_at(of_b, at)), scale, shift));
        at += step;
        to += to_step;
    }
}
