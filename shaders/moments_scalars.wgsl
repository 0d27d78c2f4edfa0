// Mean and sum of squared deviations of each channel over a block of pixels, where channels are no multiple of four:
// 8 threads a channel, 32 channels a workgroup.
#import split
#import finite

struct Params {
    pixels: u32,
    channels: u32,
    blocks: u32,
    // Pixels of a block.
    block: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
// [samples][blocks][2][channels]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}
var<workgroup> shared_moments: array<Moments, 256>;

// Chan, Golub and LeVeque 1979.
fn combine(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    if b.count == 0.0 {
        return a;
    }
    let delta = b.mean - a.mean;
    return Moments(count, a.mean + delta * b.count / count, a.squares + b.squares + delta * delta * a.count * b.count / count);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let slices = (p.channels + 31u) / 32u;
    let channel = group % slices * 32u + thread % 32u;
    let block = group / slices % p.blocks;
    let sample = group / (slices * p.blocks);
    var own = Moments(0.0, 0.0, 0.0);
    let first = block * p.block + thread / 32u;
    let end = min(p.pixels, (block + 1u) * p.block);
    if channel < p.channels && first < end {
        // Deviations from one of the values lose fewer bits than the values themselves.
        let pivot = f32(input[(sample * p.pixels + first) * p.channels + channel]);
        var sum = 0.0;
        var squares = 0.0;
        for (var pixel = first; pixel < end; pixel += 8u) {
            let deviation = f32(input[(sample * p.pixels + pixel) * p.channels + channel]) - pivot;
            sum += deviation;
            squares = fma(deviation, deviation, squares);
        }
        let count = f32((end - first + 7u) / 8u);
        own = Moments(count, pivot + sum / count, relu(squares - sum * sum / count));
    }
    shared_moments[thread] = own;
    workgroupBarrier();
    if thread < 32u && channel < p.channels {
        for (var i = 1u; i < 8u; i++) {
            own = combine(own, shared_moments[thread + 32u * i]);
        }
        let to = (sample * p.blocks + block) * 2u * p.channels + channel;
        output[to] = own.mean;
        output[to + p.channels] = own.squares;
    }
}
