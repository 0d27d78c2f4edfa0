// The gradient of structural similarity from the slopes that `ssim` left: each value gathers what the windows around it send.
#import split

struct Params {
    // Of all samples.
    values: u32,
    height: u32,
    width: u32,
    channels: u32,
    // Odd.
    window: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> answer: array<Result>;
@group(0) @binding(2) var<storage, read_write> wanted: array<Result>;
@group(0) @binding(3) var<storage, read> bell: array<f32>;
// [slope of the mean, of the square, of the product; mean of the answer, of what is wanted][values]
@group(0) @binding(4) var<storage, read_write> slopes: array<f32>;
// What the gradient is multiplied by.
@group(0) @binding(5) var<storage, read> share: array<f32>;
@group(0) @binding(6) var<storage, read_write> output: array<Value>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.values {
        return;
    }
    let channel = at % p.channels;
    let row = at / p.channels;
    let y = row / p.width % p.height;
    let x = row % p.width;
    let image = row / (p.height * p.width) * p.height;
    let radius = p.window / 2u;
    let own = f32(answer[at]);
    let other = f32(wanted[at]);
    var sum = 0.0;
    for (var i = 0u; i < p.window; i++) {
        let from_y = y + i;
        if from_y < radius || from_y >= p.height + radius {
            continue;
        }
        for (var j = 0u; j < p.window; j++) {
            let from_x = x + j;
            if from_x < radius || from_x >= p.width + radius {
                continue;
            }
            let place = ((image + from_y - radius) * p.width + from_x - radius) * p.channels + channel;
            let dx = own - slopes[3u * p.values + place];
            let dy = other - slopes[4u * p.values + place];
            let through = slopes[place] + 2.0 * dx * slopes[p.values + place] + dy * slopes[2u * p.values + place];
            sum = fma(bell[i] * bell[j], through, sum);
        }
    }
    output[at] = Value(share[0] * sum);
}
