// Adds up the sums that `conv` left in parts.
#import split
#import epilogue

struct Params {
    epilogue: Epilogue,
    rows: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [splits][rows][columns]
@group(0) @binding(1) var<storage, read_write> parts: array<f32>;
@group(0) @binding(8) var<storage, read_write> output: array<Result>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let columns = p.epilogue.columns;
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * columns {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < p.splits; part++) {
        sum += parts[part * p.rows * columns + at];
    }
    output[at] = Result(finish(p.epilogue, at / columns, at % columns, sum));
}
