// An exponential moving average of the parameters.
#import split

struct Params {
    values: u32,
    // One less the decay rate.
    rest: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> averages: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.values {
        return;
    }
    averages[at] += p.rest * (values[at] - averages[at]);
}
