// A kernel `[outputs][inputs][taps]` as `[taps][inputs][outputs]`, with rows of zeros up to a multiple of eight. A workgroup
// has 16 inputs and 16 outputs: what it reads and what it writes lies together.
#import split

struct Params {
    // Of the result.
    inputs: u32,
    outputs: u32,
    taps: u32,
    // 1 where the parameter is that of the transposed convolution: inputs and outputs exchanged, turned by half a turn.
    turned: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<Value>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let across = (p.outputs + 15u) / 16u;
    let output = group % across * 16u + thread % 16u;
    let input = group / across * 16u + thread / 16u;
    if group >= split.end || input >= p.inputs || output >= p.outputs {
        return;
    }
    let kernel = select(output * p.inputs + input, input * p.outputs + output, p.turned != 0u) * p.taps;
    for (var tap = 0u; tap < p.taps; tap++) {
        let source = select(tap, p.taps - 1u - tap, p.turned != 0u);
        packed[(tap * p.inputs + input) * p.outputs + output] = Value(weight[kernel + source]);
    }
    if input == 0u {
        let rows = p.taps * p.inputs;
        for (var row = rows; row < (rows + 7u) / 8u * 8u; row++) {
            packed[row * p.outputs + output] = Value(0.0);
        }
    }
}
