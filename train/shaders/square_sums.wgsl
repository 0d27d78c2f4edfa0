// Sums of squares of 16384 values a workgroup.
#import split

struct Params {
    values: u32,
    // Where the sums begin.
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    var sum = 0.0;
    let end = min(p.values, (group + 1u) * 16384u);
    for (var at = group * 16384u + thread; at < end; at += 256u) {
        sum = fma(input[at], input[at], sum);
    }
    partial[thread] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        output[p.to + group] = partial[0];
    }
}
