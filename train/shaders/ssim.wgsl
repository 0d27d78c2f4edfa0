// Structural similarity (Wang et al. 2004): the loss and its gradient. A workgroup takes a tile of one channel. Around each of its
// values, and around those whose windows reach into it, it computes the loss and its slopes with respect to the window's mean, mean
// square and mean product; each value of the tile gathers what the windows around it send. Everything is written in deviations from
// the window's means and in differences between both images, which keeps bits where images are flat or alike. The window is cut off
// at the border, where images count as zero.
#import split

struct Params {
    samples: u32,
    height: u32,
    width: u32,
    channels: u32,
    // Odd, so narrow that a row of windows is narrower than a workgroup has threads.
    window: u32,
    c1: f32,
    c2: f32,
    // 1 for `clamp(1 - ssim, 0, 1) / 2`, 0 for `1 - ssim`.
    clamped: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> answer: array<Result>;
@group(0) @binding(2) var<storage, read_write> wanted: array<Result>;
// The window along one side.
@group(0) @binding(3) var<storage, read> bell: array<f32>;
// What the gradient is multiplied by.
@group(0) @binding(4) var<storage, read> share: array<f32>;
@group(0) @binding(5) var<storage, read_write> output: array<Value>;
// A sum of losses for each workgroup.
@group(0) @binding(6) var<storage, read_write> losses: array<f32>;

const SIDE: u32 = 16u;
const THREADS: u32 = 256u;

// What as many windows send at a time.
var<workgroup> slope_of_mean: array<f32, 256>;
var<workgroup> slope_of_square: array<f32, 256>;
var<workgroup> slope_of_product: array<f32, 256>;
var<workgroup> mean_of_answer: array<f32, 256>;
var<workgroup> mean_of_wanted: array<f32, 256>;
var<workgroup> partial: array<f32, 256>;

// The part of the window that lies outside of an image along one side.
fn outside(at: u32, size: u32) -> f32 {
    let radius = p.window / 2u;
    var sum = 0.0;
    for (var i = 0u; i < p.window; i++) {
        if at + i < radius || at + i >= size + radius {
            sum += bell[i];
        }
    }
    return sum;
}

// The loss around one value; its slopes go to `slot`.
fn loss_at(sample: u32, y: u32, x: u32, channel: u32, slot: u32) -> f32 {
    let image = sample * p.height;
    let radius = p.window / 2u;
    let outside_y = outside(y, p.height);
    let outside_x = outside(x, p.width);
    let gone = outside_y + outside_x - outside_y * outside_x;
    let here = 1.0 - gone;

    var mean_x = 0.0;
    var mean_d = 0.0;
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
            let weight = bell[i] * bell[j];
            let value = f32(answer[place]);
            mean_x = fma(weight, value, mean_x);
            mean_d = fma(weight, f32(wanted[place]) - value, mean_d);
        }
    }
    mean_x /= here;
    mean_d /= here;
    let mean_y = mean_x + mean_d;

    // Variances of the answer and of the difference, and their covariance.
    var variance_x = 0.0;
    var variance_d = 0.0;
    var covariance = 0.0;
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
            let weight = bell[i] * bell[j];
            let value = f32(answer[place]);
            let dx = value - mean_x;
            let dd = f32(wanted[place]) - value - mean_d;
            variance_x = fma(weight * dx, dx, variance_x);
            variance_d = fma(weight * dd, dd, variance_d);
            covariance = fma(weight * dx, dd, covariance);
        }
    }
    // What the zeros outside of the image add.
    let border = here * gone;
    let both = variance_x + covariance + mean_x * mean_y * border;
    let apart = variance_d + mean_d * mean_d * border;
    let variances = 2.0 * variance_x + 2.0 * covariance + variance_d + (mean_x * mean_x + mean_y * mean_y) * border;

    let mx = here * mean_x;
    let my = here * mean_y;
    let md = here * mean_d;
    let a1 = 2.0 * mx * my + p.c1;
    let a2 = 2.0 * both + p.c2;
    let b1 = mx * mx + my * my + p.c1;
    let b2 = variances + p.c2;
    let inverse = 1.0 / (b1 * b2);
    let ssim = a1 * a2 * inverse;
    let loss = (md * md * b2 + a1 * apart) * inverse;

    var slope = -1.0;
    var result = loss;
    // Clamping would make a number of what is none.
    let finite = (bitcast<u32>(loss) & 0x7f800000u) != 0x7f800000u;
    if p.clamped != 0u && finite {
        slope = select(0.0, -0.5, loss >= 0.0 && loss <= 1.0);
        result = 0.5 * clamp(loss, 0.0, 1.0);
    }
    let of_square = -ssim / b2;
    let of_product = 2.0 * a1 * inverse;
    let of_mean = 2.0 * a2 * inverse / b1 * md * (my * (my + mx) + p.c1)
        + gone * (2.0 * mean_x * of_square + mean_y * of_product);
    slope_of_mean[slot] = slope * of_mean;
    slope_of_square[slot] = slope * of_square;
    slope_of_product[slot] = slope * of_product;
    mean_of_answer[slot] = mean_x;
    mean_of_wanted[slot] = mean_y;
    return result;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let tiles_y = (p.height + SIDE - 1u) / SIDE;
    let tiles_x = (p.width + SIDE - 1u) / SIDE;
    let left = group % tiles_x * SIDE;
    let top = group / tiles_x % tiles_y * SIDE;
    let channel = group / (tiles_x * tiles_y) % p.channels;
    let sample = group / (tiles_x * tiles_y * p.channels);
    let radius = p.window / 2u;

    let y = top + thread / SIDE;
    let x = left + thread % SIDE;
    let inside = y < p.height && x < p.width;
    let own_at = ((sample * p.height + y) * p.width + x) * p.channels + channel;
    var own = 0.0;
    var other = 0.0;
    if inside {
        own = f32(answer[own_at]);
        other = f32(wanted[own_at]);
    }

    // Windows that reach into the tile, some rows at a time; a row of them is narrower than there are threads.
    let first_y = top - min(top, radius);
    let first_x = left - min(left, radius);
    let end_y = min(top + SIDE + radius, p.height);
    let columns = min(left + SIDE + radius, p.width) - first_x;
    let rows = THREADS / columns;
    var loss = 0.0;
    var sum = 0.0;
    for (var from_y = first_y; from_y < end_y; from_y += rows) {
        let at_y = from_y + thread / columns;
        let at_x = first_x + thread % columns;
        if thread < rows * columns && at_y < end_y {
            let value = loss_at(sample, at_y, at_x, channel, thread);
            if at_y >= top && at_y < top + SIDE && at_x >= left && at_x < left + SIDE {
                loss += value;
            }
        }
        workgroupBarrier();
        if inside {
            let stop_y = min(min(from_y + rows, end_y), y + radius + 1u);
            let stop_x = min(first_x + columns, x + radius + 1u);
            for (var i = max(from_y, y - min(y, radius)); i < stop_y; i++) {
                for (var j = x - min(x, radius); j < stop_x; j++) {
                    let slot = (i - from_y) * columns + j - first_x;
                    let dx = own - mean_of_answer[slot];
                    let dy = other - mean_of_wanted[slot];
                    let through = slope_of_mean[slot] + 2.0 * dx * slope_of_square[slot] + dy * slope_of_product[slot];
                    sum = fma(bell[i + radius - y] * bell[j + radius - x], through, sum);
                }
            }
        }
        workgroupBarrier();
    }
    if inside {
        output[own_at] = Value(share[0] * sum);
    }
    partial[thread] = loss;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        losses[group] = partial[0];
    }
}
