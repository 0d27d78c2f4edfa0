// Mean and sum of squared deviations of each channel over a block of pixels. A thread has four channels of every n-th
// pixel; the threads of a workgroup are so many columns of four channels, 8 or 16, and as many lanes as that leaves.
#import split
#import finite

struct Params {
    pixels: u32,
    channels: u32,
    blocks: u32,
    // Pixels of a block.
    block: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<vec4<Value>>;
// [samples][blocks][2][channels]
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;

var<workgroup> counts: array<f32, 256>;
var<workgroup> means: array<vec4<f32>, 256>;
var<workgroup> squares: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let packs = p.channels / 4u;
    let slices = (packs + p.columns - 1u) / p.columns;
    let lanes = 256u / p.columns;
    let part = group / slices;
    let pack = (group - part * slices) * p.columns + thread % p.columns;
    let sample = part / p.blocks;
    let block = part - sample * p.blocks;
    let end = min(p.pixels, (block + 1u) * p.block);
    var pixel = block * p.block + thread / p.columns;
    var count = 0.0;
    var mean = vec4(0.0);
    var own = vec4(0.0);
    if pack < packs && pixel < end {
        let step = lanes * packs;
        var at = (sample * p.pixels + pixel) * packs + pack;
        // Deviations from one of the values lose fewer bits than the values themselves.
        let pivot = vec4<f32>(input[at]);
        var sum = vec4(0.0);
        count = 1.0;
        pixel += lanes;
        at += step;
        for (; pixel + 3u * lanes < end; pixel += 4u * lanes) {
            let a = vec4<f32>(input[at]) - pivot;
            let b = vec4<f32>(input[at + step]) - pivot;
            let c = vec4<f32>(input[at + 2u * step]) - pivot;
            let d = vec4<f32>(input[at + 3u * step]) - pivot;
            sum += (a + b) + (c + d);
            own += fma(a, a, b * b) + fma(c, c, d * d);
            count += 4.0;
            at += 4u * step;
        }
        for (; pixel < end; pixel += lanes) {
            let deviation = vec4<f32>(input[at]) - pivot;
            sum += deviation;
            own = fma(deviation, deviation, own);
            count += 1.0;
            at += step;
        }
        mean = pivot + sum / count;
        own = relu4(own - sum * sum / count);
    }
    counts[thread] = count;
    means[thread] = mean;
    squares[thread] = own;
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        let other = thread + half * p.columns;
        if thread < half * p.columns && counts[other] > 0.0 {
            // Chan, Golub and LeVeque 1979.
            let all = counts[thread] + counts[other];
            let share = counts[other] / all;
            let delta = means[other] - means[thread];
            squares[thread] += squares[other] + delta * delta * (counts[thread] * share);
            means[thread] += delta * share;
            counts[thread] = all;
        }
    }
    if thread < p.columns && pack < packs {
        let to = part * 2u * packs + pack;
        output[to] = means[thread];
        output[to + packs] = squares[thread];
    }
}
