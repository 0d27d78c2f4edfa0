// The Frobenius norm of each sample from the sums of squares of all blocks' rows.
#import split

struct Params {
    samples: u32,
    height: u32,
    blocks: u32,
    // Place among the vectors.
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [blocks][samples][height]
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let sample = group_index(id);
    if sample >= split.end {
        return;
    }
    var sum = 0.0;
    for (var i = thread; i < p.blocks * p.height; i += 64u) {
        sum += input[(i / p.height * p.samples + sample) * p.height + i % p.height];
    }
    partial[thread] = sum;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        vectors[p.to + sample] = sqrt(partial[0]);
    }
}
