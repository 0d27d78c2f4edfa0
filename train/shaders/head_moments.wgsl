// Mean and sum of squared deviations of each channel over blocks of a batch's rows. 8 threads a channel, 32 channels a
// workgroup. Deviations are from the block's own mean, so that nothing cancels.
#import split

struct Params {
    rows: u32,
    channels: u32,
    // Rows of a block.
    block: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [rows][channels]
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
// [blocks][mean, squares][channels]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let across = (p.channels + 31u) / 32u;
    let channel = group % across * 32u + thread % 32u;
    let block = group / across;
    let first = block * p.block;
    let end = min(p.rows, first + p.block);

    var sum = 0.0;
    if channel < p.channels {
        for (var row = first + thread / 32u; row < end; row += 8u) {
            sum += input[row * p.channels + channel];
        }
    }
    partial[thread] = sum;
    workgroupBarrier();
    var mean = 0.0;
    for (var i = 0u; i < 8u; i++) {
        mean += partial[thread % 32u + 32u * i];
    }
    mean /= f32(end - first);
    workgroupBarrier();

    var squares = 0.0;
    if channel < p.channels {
        for (var row = first + thread / 32u; row < end; row += 8u) {
            let deviation = input[row * p.channels + channel] - mean;
            squares = fma(deviation, deviation, squares);
        }
    }
    partial[thread] = squares;
    workgroupBarrier();
    if thread < 32u && channel < p.channels {
        for (var i = 1u; i < 8u; i++) {
            squares += partial[thread + 32u * i];
        }
        output[2u * block * p.channels + channel] = mean;
        output[(2u * block + 1u) * p.channels + channel] = squares;
    }
}
