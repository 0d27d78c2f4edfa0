// Adds up the sums that `conv_weight` left in parts and adds them to the parameter's gradient. A workgroup has 16 inputs
// and 16 outputs: what it reads and what it writes lies together.
#import split

struct Params {
    inputs: u32,
    outputs: u32,
    taps: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [splits][taps][inputs][outputs]
@group(0) @binding(1) var<storage, read_write> parts: array<f32>;
// [outputs][inputs][taps]
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let across = (p.outputs + 15u) / 16u;
    let output = group % across * 16u + thread % 16u;
    let input = group / across * 16u + thread / 16u;
    if group >= split.end || input >= p.inputs || output >= p.outputs {
        return;
    }
    for (var tap = 0u; tap < p.taps; tap++) {
        var sum = 0.0;
        for (var part = 0u; part < p.splits; part++) {
            sum += parts[((part * p.taps + tap) * p.inputs + input) * p.outputs + output];
        }
        weight[(output * p.inputs + input) * p.taps + tap] += sum;
    }
}
