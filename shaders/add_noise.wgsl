// `signal * x + spread * n`, n normally distributed by Box and Muller's transform: four values a thread.
#import split
#import philox

struct Params {
    samples: u32,
    // Values of a sample.
    values: u32,
    timestep: u32,
    signal: f32,
    spread: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples]: seed (low, high), top and left of the window.
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> input: array<Value>;
@group(0) @binding(3) var<storage, read_write> output: array<Value>;

const UNIT: f32 = 1.0 / 4294967296.0;

// Logarithm of (bits + 0.5) / 2^32. Close to 1 it is taken from what is missing there, which is known exactly.
fn logarithm(bits: u32) -> f32 {
    let missing = (f32(~bits) + 0.5) * UNIT;
    if missing < 0.0625 {
        let m = missing;
        return -m * (1.0 + m * (0.5 + m * (0.33333333 + m * (0.25 + m * (0.2 + m * 0.16666667)))));
    }
    return log((f32(bits) + 0.5) * UNIT);
}

// Cosine and sine of (bits + 0.5) / 2^32 turns. Shading languages promise no accuracy for theirs.
fn direction(bits: u32) -> vec2<f32> {
    let quarter = (bits + 0x20000000u) >> 30u;
    let angle = (f32(bitcast<i32>(bits - (quarter << 30u))) + 0.5) * (6.2831853 * UNIT);
    let s = angle * angle;
    let sine = angle * (1.0 + s * (-0.16666667 + s * (0.0083333333 + s * (-1.9841270e-4 + s * 2.7557319e-6))));
    let cosine = 1.0 + s * (-0.5 + s * (0.041666667 + s * (-0.0013888889 + s * (2.4801587e-5 - s * 2.7557319e-7))));
    switch quarter & 3u {
        case 0u: { return vec2(cosine, sine); }
        case 1u: { return vec2(-sine, cosine); }
        case 2u: { return vec2(-cosine, -sine); }
        default: { return vec2(sine, -cosine); }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let blocks = (p.values + 3u) / 4u;
    let at = group * 64u + thread;
    if group >= split.end || at >= p.samples * blocks {
        return;
    }
    let sample = at / blocks;
    let block = at % blocks;
    let key = keys[sample];
    let bits = philox(vec4(block, key.z, key.w, p.timestep), key.xy);
    let noise = vec4(
        sqrt(-2.0 * logarithm(bits.x)) * direction(bits.y),
        sqrt(-2.0 * logarithm(bits.z)) * direction(bits.w),
    );
    for (var i = 0u; i < min(4u, p.values - 4u * block); i++) {
        let value = sample * p.values + 4u * block + i;
        output[value] = Value(p.signal * f32(input[value]) + p.spread * noise[i]);
    }
}
