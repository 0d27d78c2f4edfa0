// A batch: the features of the samples that were picked, standardised. A page of samples begins with number `first`; what
// is on other pages is left to other calls.
#import split

struct Params {
    rows: u32,
    channels: u32,
    first: u32,
    // One more than the page's last.
    end: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [rows]
@group(0) @binding(1) var<storage, read> picked: array<u32>;
// [samples of the page][channels]
@group(0) @binding(2) var<storage, read> page: array<f32>;
// What is subtracted from each channel, then what it is multiplied by.
@group(0) @binding(3) var<storage, read> scale: array<f32>;
// [rows][channels]
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * p.channels {
        return;
    }
    let sample = picked[at / p.channels];
    let channel = at % p.channels;
    if sample >= p.first && sample < p.end {
        let value = page[(sample - p.first) * p.channels + channel];
        output[at] = (value - scale[channel]) * scale[p.channels + channel];
    }
}
