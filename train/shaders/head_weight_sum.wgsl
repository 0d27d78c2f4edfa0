// Adds up the sums that `head_weight` left in parts: the gradients of a layer, and of the batch norm before it. 16 threads an
// input, 16 inputs a workgroup; the bias counts as one input more.
#import split

struct Params {
    inputs: u32,
    outputs: u32,
    splits: u32,
    // Places among the parameters.
    weight: u32,
    bias: u32,
    // 0, or one more than the place of the norm's multipliers; the place of its summands.
    scale: u32,
    shift: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [splits][outputs][inputs + 1]
@group(0) @binding(1) var<storage, read_write> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameters: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradients: array<f32>;

var<workgroup> scales: array<f32, 256>;
var<workgroup> shifts: array<f32, 256>;

fn total(output: u32, column: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < p.splits; part++) {
        sum += parts[(part * p.outputs + output) * (p.inputs + 1u) + column];
    }
    return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let channel = group * 16u + thread % 16u;
    let normalised = p.scale != 0u && channel < p.inputs;
    var scale = 0.0;
    var shift = 0.0;
    if channel <= p.inputs {
        for (var output = thread / 16u; output < p.outputs; output += 16u) {
            let slope = total(output, channel);
            let at = p.weight + output * p.inputs + channel;
            if channel == p.inputs {
                gradients[p.bias + output] = slope;
            } else if p.scale == 0u {
                gradients[at] = slope;
            } else {
                let bias = total(output, p.inputs);
                let weight = parameters[at];
                scale = fma(weight, slope, scale);
                shift = fma(weight, bias, shift);
                gradients[at] = fma(slope, parameters[p.scale - 1u + channel], bias * parameters[p.shift + channel]);
            }
        }
    }
    scales[thread] = scale;
    shifts[thread] = shift;
    workgroupBarrier();
    if thread < 16u && normalised {
        for (var i = 1u; i < 16u; i++) {
            scale += scales[thread + 16u * i];
            shift += shifts[thread + 16u * i];
        }
        gradients[p.scale - 1u + channel] = scale;
        gradients[p.shift + channel] = shift;
    }
}
