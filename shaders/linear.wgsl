// `weight * f(input) + bias` on vectors, a workgroup for each output and sample.
#import split
#import activation

struct Params {
    inputs: u32,
    outputs: u32,
    silu: u32,
    // Places among the vectors.
    input: u32,
    to: u32,
    // 1 where the class's row of the table is added.
    labelled: u32,
    // Where the samples' classes start among the vectors, as numbers.
    classes: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [outputs][inputs]
@group(0) @binding(1) var<storage, read> weight: array<Value>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
// [classes][outputs]
@group(0) @binding(3) var<storage, read> label_embedding: array<f32>;
@group(0) @binding(4) var<storage, read_write> vectors: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let output = group % p.outputs;
    let sample = group / p.outputs;
    var sum = 0.0;
    for (var i = thread; i < p.inputs; i += 64u) {
        let x = vectors[p.input + sample * p.inputs + i];
        sum = fma(f32(weight[output * p.inputs + i]), select(x, silu(x), p.silu != 0u), sum);
    }
    partial[thread] = sum;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        var value = partial[0] + bias[output];
        if p.labelled != 0u {
            value += label_embedding[u32(vectors[p.classes + sample]) * p.outputs + output];
        }
        vectors[p.to + sample * p.outputs + output] = value;
    }
}
