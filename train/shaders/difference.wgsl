// Mean of squared or of absolute differences, and its gradient.
#import split

struct Params {
    // Of all samples.
    values: u32,
    // 1 for squares.
    squared: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> answer: array<Result>;
@group(0) @binding(2) var<storage, read_write> wanted: array<Result>;
// What the gradient is multiplied by.
@group(0) @binding(3) var<storage, read> share: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<Value>;
// A sum of losses for each workgroup.
@group(0) @binding(5) var<storage, read_write> losses: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let at = group * 256u + thread;
    var loss = 0.0;
    if at < p.values {
        let difference = f32(answer[at]) - f32(wanted[at]);
        if p.squared != 0u {
            loss = difference * difference;
            output[at] = Value(share[0] * 2.0 * difference);
        } else {
            loss = abs(difference);
            output[at] = Value(share[0] * sign(difference));
        }
    }
    partial[thread] = loss;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        losses[group] = partial[0];
    }
}
