// Adds up the sums of blocks: those of a sample become a vector, those of all samples are added to the gradients of one
// parameter, or of two. 8 threads a value, 32 values a workgroup.
#import split

struct Params {
    samples: u32,
    blocks: u32,
    // Values of a block.
    values: u32,
    // 0, or one more than the place of the first sample's vector among the vectors, and from one sample to the next.
    to: u32,
    stride: u32,
    // Values of the first parameter; those of a vector's second part lie `second` later.
    first: u32,
    second: u32,
    // 1 where the sums are added to parameters.
    parameters: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples][blocks][values]
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(3) var<storage, read_write> parameter_a: array<f32>;
@group(0) @binding(4) var<storage, read_write> parameter_b: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let value = group * 32u + thread % 32u;
    var total = 0.0;
    for (var sample = 0u; sample < p.samples; sample++) {
        var sum = 0.0;
        if value < p.values {
            for (var block = thread / 32u; block < p.blocks; block += 8u) {
                sum += input[(sample * p.blocks + block) * p.values + value];
            }
        }
        workgroupBarrier();
        partial[thread] = sum;
        workgroupBarrier();
        if thread < 32u && value < p.values {
            for (var i = 1u; i < 8u; i++) {
                sum += partial[thread + 32u * i];
            }
            total += sum;
            if p.to != 0u {
                let place = select(value, p.second + value - p.first, value >= p.first);
                vectors[p.to - 1u + sample * p.stride + place] = sum;
            }
        }
    }
    if thread < 32u && value < p.values && p.parameters != 0u {
        if value < p.first {
            parameter_a[value] += total;
        } else {
            parameter_b[value - p.first] += total;
        }
    }
}
