// Gradients of a linear layer's weight and, one column further, of its bias. A thread each.
#import split
#import activation

struct Params {
    samples: u32,
    inputs: u32,
    outputs: u32,
    silu: u32,
    // Places among the vectors.
    input: u32,
    gradient: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> vectors: array<f32>;
// [outputs][inputs]
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.outputs * (p.inputs + 1u) {
        return;
    }
    let output = at / (p.inputs + 1u);
    let input = at % (p.inputs + 1u);
    var sum = 0.0;
    for (var sample = 0u; sample < p.samples; sample++) {
        let g = vectors[p.gradient + sample * p.outputs + output];
        if input == p.inputs {
            sum += g;
        } else {
            let x = vectors[p.input + sample * p.inputs + input];
            sum = fma(g, select(x, silu(x), p.silu != 0u), sum);
        }
    }
    if input == p.inputs {
        bias[output] += sum;
    } else {
        weight[output * p.inputs + input] += sum;
    }
}
