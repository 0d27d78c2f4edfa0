// A random number for each patch of each window, four a thread, as multiples of 2^-24.
#import split
#import philox

struct Params {
    samples: u32,
    patches: u32,
    timestep: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples]: seed (low, high), top and left of the window.
@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>;
// [samples][patches]
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let blocks = (p.patches + 3u) / 4u;
    let at = group * 64u + thread;
    if group >= split.end || at >= p.samples * blocks {
        return;
    }
    let sample = at / blocks;
    let block = at % blocks;
    let key = keys[sample];
    let bits = philox(vec4(block, key.z, key.w, p.timestep), key.xy);
    for (var i = 0u; i < min(4u, p.patches - 4u * block); i++) {
        output[sample * p.patches + 4u * block + i] = bits[i] >> 8u;
    }
}
