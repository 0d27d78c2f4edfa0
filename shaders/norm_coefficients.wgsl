// Group norm over 32 groups as one multiplier and one summand a channel, with scale and shift of the time embedding.
#import split

struct Params {
    samples: u32,
    channels_a: u32,
    channels_b: u32,
    // Places among the vectors.
    moments_a: u32,
    moments_b: u32,
    // 0, or one more than its place.
    scale_shift: u32,
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> vectors: array<f32>;

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
    variance /= f32(members);
    var scale = weight[channel] / sqrt(variance + EPSILON);
    var shift = fma(-mean, scale, bias[channel]);
    if p.scale_shift != 0u {
        let start = p.scale_shift - 1u + sample * 2u * channels + channel;
        let factor = 1.0 + vectors[start];
        scale *= factor;
        shift = fma(shift, factor, vectors[start + channels]);
    }
    let to = p.to + sample * 2u * channels + channel;
    vectors[to] = scale;
    vectors[to + channels] = shift;
}
