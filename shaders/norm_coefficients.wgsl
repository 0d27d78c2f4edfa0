// Group norm over 32 groups as one multiplier and one summand a channel, with scale and shift of the time embedding: a
// workgroup for each group of a sample. Moments of one of the tensors may still be in blocks; they are combined on the way.
#import split
#import finite

struct Params {
    channels_a: u32,
    channels_b: u32,
    // Places among the vectors.
    moments_a: u32,
    moments_b: u32,
    // 0, or one more than its place.
    scale_shift: u32,
    to: u32,
    // Whose moments are in blocks: 0 nobody's, 1 those of the first tensor, 2 those of the second.
    fresh: u32,
    pixels: u32,
    blocks: u32,
    // Pixels of a block.
    block: u32,
    // Channels of a group.
    columns: u32,
    lanes: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
#import block_moments
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;

const GROUPS: u32 = 32u;
const EPSILON: f32 = 1e-5;

// Mean and variance of the group's channels.
var<workgroup> moments: array<vec2<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let sample = group / GROUPS;
    let channel = group % GROUPS * p.columns + thread % p.columns;
    let of_b = channel >= p.channels_a;
    let own_channels = select(p.channels_a, p.channels_b, of_b);
    let own_channel = select(channel, channel - p.channels_a, of_b);
    let place = select(p.moments_a, p.moments_b, of_b) + sample * 2u * own_channels + own_channel;
    let is_fresh = p.fresh == select(1u, 2u, of_b);
    var own = vec2(0.0);
    if p.fresh != 0u {
        let wanted = is_fresh && thread < p.columns * p.lanes;
        own = block_moments(thread, wanted, sample, own_channel, own_channels);
    }
    if thread < p.columns {
        if is_fresh {
            vectors[place] = own.x;
            vectors[place + own_channels] = own.y;
        } else {
            own = vec2(vectors[place], vectors[place + own_channels]);
        }
        moments[thread] = own;
    }
    workgroupBarrier();
    if thread >= p.columns {
        return;
    }
    var mean = 0.0;
    for (var i = 0u; i < p.columns; i++) {
        mean += moments[i].x;
    }
    mean /= f32(p.columns);
    var variance = 0.0;
    for (var i = 0u; i < p.columns; i++) {
        let deviation = moments[i].x - mean;
        variance += fma(deviation, deviation, moments[i].y);
    }
    variance /= f32(p.columns);
    let channels = p.channels_a + p.channels_b;
    var scale = weight[channel] / sqrt(variance + EPSILON);
    if !is_finite(variance) {
        // An infinite one would make everything equal.
        scale = not_a_number(scale);
    }
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
