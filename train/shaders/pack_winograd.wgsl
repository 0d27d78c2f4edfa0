// A 3x3 kernel `[outputs][inputs][9]` in Winograd's domain, `[36][inputs][outputs]`: `G g G^T` (Lavin and Gray 2015). A
// workgroup has 16 inputs and 16 outputs.
#import split

struct Params {
    // Of the result.
    inputs: u32,
    outputs: u32,
    // 1 where the parameter is that of the transposed convolution: inputs and outputs exchanged, turned by half a turn.
    turned: u32,
    unused: u32,
    // Rows of G.
    g: array<vec4<f32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<f32>;

fn transform(column: vec3<f32>) -> array<f32, 6> {
    var result: array<f32, 6>;
    for (var point = 0u; point < 6u; point++) {
        result[point] = dot(p.g[point].xyz, column);
    }
    return result;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let across = (p.outputs + 15u) / 16u;
    let output = group % across * 16u + thread % 16u;
    let input = group / across * 16u + thread / 16u;
    if group >= split.end || input >= p.inputs || output >= p.outputs {
        return;
    }
    let kernel = select(output * p.inputs + input, input * p.outputs + output, p.turned != 0u) * 9u;
    var columns: array<array<f32, 6>, 3>;
    for (var x = 0u; x < 3u; x++) {
        var column: array<f32, 3>;
        for (var y = 0u; y < 3u; y++) {
            let tap = 3u * y + x;
            column[y] = weight[kernel + select(tap, 8u - tap, p.turned != 0u)];
        }
        columns[x] = transform(vec3(column[0], column[1], column[2]));
    }
    let stride = p.inputs * p.outputs;
    let to = input * p.outputs + output;
    for (var y = 0u; y < 6u; y++) {
        let row = transform(vec3(columns[0][y], columns[1][y], columns[2][y]));
        for (var x = 0u; x < 6u; x++) {
            packed[(6u * y + x) * stride + to] = row[x];
        }
    }
}
