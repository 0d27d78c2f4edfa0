// What follows from the gradient of a norm's coefficients: that of its parameters, a sample's share of it, that of what
// modulated it, and for each tensor p and q such that `p + q x` is what flows back through its moments.
//
// scale = weight inverse factor; shift = (bias - mean weight inverse) factor + offset.
#import split

struct Params {
    samples: u32,
    channels_a: u32,
    channels_b: u32,
    // Pixels of the tensors.
    pixels: u32,
    // Places among the vectors.
    moments_a: u32,
    moments_b: u32,
    gradient: u32,
    output_a: u32,
    output_b: u32,
    // 0, or one more than the place.
    scale_shift: u32,
    scale_shift_output: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> vectors: array<f32>;
// [samples][weight and bias][channels]
@group(0) @binding(4) var<storage, read_write> shares: array<f32>;

const GROUPS: u32 = 32u;
const EPSILON: f32 = 1e-5;

// Mean and variance.
fn moments(sample: u32, channel: u32) -> vec2<f32> {
    if channel < p.channels_a {
        let at = p.moments_a + sample * 2u * p.channels_a + channel;
        return vec2(vectors[at], vectors[at + p.channels_a]);
    }
    let at = p.moments_b + sample * 2u * p.channels_b + channel - p.channels_a;
    return vec2(vectors[at], vectors[at + p.channels_b]);
}

fn factor(sample: u32, channel: u32) -> f32 {
    if p.scale_shift == 0u {
        return 1.0;
    }
    return 1.0 + vectors[p.scale_shift - 1u + sample * 2u * (p.channels_a + p.channels_b) + channel];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let channels = p.channels_a + p.channels_b;
    let at = group * 64u + thread;
    if group >= split.end || at >= p.samples * channels {
        return;
    }
    let channel = at % channels;
    let sample = at / channels;
    let members = channels / GROUPS;
    let first = channel / members * members;
    var mean = 0.0;
    for (var i = 0u; i < members; i++) {
        mean += moments(sample, first + i).x;
    }
    mean /= f32(members);
    var variance = 0.0;
    for (var i = 0u; i < members; i++) {
        let m = moments(sample, first + i);
        variance += m.y + (m.x - mean) * (m.x - mean);
    }
    let inverse = 1.0 / sqrt(variance / f32(members) + EPSILON);

    let gradient = p.gradient + sample * 2u * channels;
    var mean_gradient = 0.0;
    var inverse_gradient = 0.0;
    for (var i = 0u; i < members; i++) {
        let c = first + i;
        let d_shift = vectors[gradient + channels + c];
        let through = weight[c] * factor(sample, c);
        mean_gradient -= through * inverse * d_shift;
        inverse_gradient += through * fma(-mean, d_shift, vectors[gradient + c]);
    }
    let variance_gradient = -0.5 * inverse * inverse * inverse * inverse_gradient;
    let count = f32(members * p.pixels);
    let q = 2.0 * variance_gradient / count;
    let summand = fma(-q, mean, mean_gradient / count);
    if channel < p.channels_a {
        let to = p.output_a + sample * 2u * p.channels_a + channel;
        vectors[to] = summand;
        vectors[to + p.channels_a] = q;
    } else {
        let to = p.output_b + sample * 2u * p.channels_b + channel - p.channels_a;
        vectors[to] = summand;
        vectors[to + p.channels_b] = q;
    }

    let d_scale = vectors[gradient + channel];
    let d_shift = vectors[gradient + channels + channel];
    let own = factor(sample, channel);
    let share = sample * 2u * channels + channel;
    shares[share] = own * inverse * fma(-mean, d_shift, d_scale);
    shares[share + channels] = own * d_shift;
    if p.scale_shift_output != 0u {
        let to = p.scale_shift_output - 1u + sample * 2u * channels + channel;
        vectors[to] = weight[channel] * inverse * fma(-mean, d_shift, d_scale) + bias[channel] * d_shift;
        vectors[to + channels] = d_shift;
    }
}
