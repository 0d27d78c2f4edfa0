// The gradient of a linear layer's input: 32 inputs of a sample a workgroup, 8 threads each.
#import split
#import slope

struct Params {
    inputs: u32,
    outputs: u32,
    silu: u32,
    // Places among the vectors.
    input: u32,
    gradient: u32,
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [outputs][inputs]
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let slices = (p.inputs + 31u) / 32u;
    let input = group % slices * 32u + thread % 32u;
    let sample = group / slices;
    var sum = 0.0;
    if input < p.inputs {
        for (var output = thread / 32u; output < p.outputs; output += 8u) {
            sum = fma(vectors[p.gradient + sample * p.outputs + output], weight[output * p.inputs + input], sum);
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    if thread < 32u && input < p.inputs {
        for (var i = 1u; i < 8u; i++) {
            sum += partial[thread + 32u * i];
        }
        if p.silu != 0u {
            sum *= silu_slope(vectors[p.input + sample * p.inputs + input]);
        }
        vectors[p.to + sample * p.inputs + input] = sum;
    }
}
