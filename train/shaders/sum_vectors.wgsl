// The sum of up to eight vectors.
#import split

struct Params {
    values: u32,
    // Places among the vectors.
    to: u32,
    count: u32,
    // 1 where the sum is added to what is there.
    accumulate: u32,
    places: array<vec4<u32>, 2>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> vectors: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 64u + thread;
    if group >= split.end || at >= p.values {
        return;
    }
    var sum = 0.0;
    if p.accumulate != 0u {
        sum = vectors[p.to + at];
    }
    for (var i = 0u; i < p.count; i++) {
        sum += vectors[p.places[i / 4u][i % 4u] + at];
    }
    vectors[p.to + at] = sum;
}
