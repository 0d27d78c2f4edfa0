// Adds up the sums that a convolution left in parts, four columns a thread.
#import split
#import epilogue4

struct Params {
    epilogue: Epilogue,
    rows: u32,
    splits: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [splits][rows][columns]
@group(0) @binding(1) var<storage, read_write> parts: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> output: array<vec4<Result>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let packs = p.epilogue.columns / 4u;
    let at = group * 64u + thread;
    if group >= split.end || at >= p.rows * packs {
        return;
    }
    var sum = vec4(0.0);
    for (var part = 0u; part < p.splits; part++) {
        sum += parts[part * p.rows * packs + at];
    }
    output[at] = vec4<Result>(finish(p.epilogue, at / packs, at % packs * 4u, sum));
}
