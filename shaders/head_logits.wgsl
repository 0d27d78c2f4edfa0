// Logits of some of the ensemble's heads: their first layers' partial sums upsampled, added and biased, ReLU, the second
// layer, ReLU, the third. A workgroup has 64 pixels of one head.
#import split
#import finite
#import bilinear

struct Params {
    // Pixels of all samples.
    rows: u32,
    height: u32,
    width: u32,
    heads: u32,
    hidden_first: u32,
    hidden_second: u32,
    classes: u32,
    // First of the heads that are computed.
    first_head: u32,
    // Number of maps, at most 5, and their sizes.
    maps: u32,
    heights: array<vec4<u32>, 2>,
    widths: array<vec4<u32>, 2>,
    // 0, or one more than the place of the features' norm among the vectors.
    feature_norm: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// First bias [heads * first], second weight [heads][second][first] and bias, third weight [heads][classes][second] and bias.
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> vectors: array<f32>;
// [samples][heights[i]][widths[i]][heads * first]
@group(0) @binding(3) var<storage, read_write> map_0: array<f32>;
@group(0) @binding(4) var<storage, read_write> map_1: array<f32>;
@group(0) @binding(5) var<storage, read_write> map_2: array<f32>;
@group(0) @binding(6) var<storage, read_write> map_3: array<f32>;
@group(0) @binding(7) var<storage, read_write> map_4: array<f32>;
// [heads that are computed][rows][classes]
@group(0) @binding(8) var<storage, read_write> logits: array<f32>;

const PIXELS: u32 = 64u;
const CHUNK: u32 = 32u;

var<workgroup> first_tile: array<f32, 64 * 33>;
// [first][second]
var<workgroup> weight_tile: array<f32, 32 * 32>;

fn map_at(map: u32, at: u32) -> f32 {
    switch map {
        case 0u: { return map_0[at]; }
        case 1u: { return map_1[at]; }
        case 2u: { return map_2[at]; }
        case 3u: { return map_3[at]; }
        default: { return map_4[at]; }
    }
}

// Activation `channel` (of all heads') of the first layer.
fn first_layer(row: u32, channel: u32) -> f32 {
    let pixels = p.height * p.width;
    let sample = row / pixels;
    let y = row % pixels / p.width;
    let x = row % p.width;
    let channels = p.heads * p.hidden_first;
    var sum = 0.0;
    for (var map = 0u; map < p.maps; map++) {
        let height = p.heights[map / 4u][map % 4u];
        let width = p.widths[map / 4u][map % 4u];
        let rows = between(y, p.height, height);
        let columns = between(x, p.width, width);
        let upper = (sample * height + rows.first) * width;
        let lower = (sample * height + rows.second) * width;
        let a = mix(map_at(map, (upper + columns.first) * channels + channel), map_at(map, (upper + columns.second) * channels + channel), columns.share);
        let b = mix(map_at(map, (lower + columns.first) * channels + channel), map_at(map, (lower + columns.second) * channels + channel), columns.share);
        sum += mix(a, b, rows.share);
    }
    if p.feature_norm != 0u {
        sum /= max(vectors[p.feature_norm - 1u + sample], 1.2e-38);
    }
    return relu(sum + weights[channel]);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let blocks = (p.rows + PIXELS - 1u) / PIXELS;
    let local_head = group / blocks;
    let head = p.first_head + local_head;
    let first_row = group % blocks * PIXELS;
    let row = first_row + thread;
    let second_weight = p.heads * p.hidden_first;
    let second_bias = second_weight + p.heads * p.hidden_second * p.hidden_first;
    let third_weight = second_bias + p.heads * p.hidden_second;
    let third_bias = third_weight + p.heads * p.classes * p.hidden_second;
    let to = (local_head * p.rows + row) * p.classes;
    if row < p.rows {
        for (var label = 0u; label < p.classes; label++) {
            logits[to + label] = weights[third_bias + head * p.classes + label];
        }
    }
    for (var second = 0u; second < p.hidden_second; second += CHUNK) {
        var sums: array<f32, 32>;
        for (var j = 0u; j < CHUNK; j++) {
            sums[j] = 0.0;
        }
        for (var chunk = 0u; chunk < p.hidden_first; chunk += CHUNK) {
            workgroupBarrier();
            for (var i = thread; i < PIXELS * CHUNK; i += 64u) {
                let channel = chunk + i % CHUNK;
                var value = 0.0;
                if first_row + i / CHUNK < p.rows && channel < p.hidden_first {
                    value = first_layer(first_row + i / CHUNK, head * p.hidden_first + channel);
                }
                first_tile[i / CHUNK * 33u + i % CHUNK] = value;
            }
            for (var i = thread; i < CHUNK * CHUNK; i += 64u) {
                let start = chunk + i % CHUNK;
                let out = second + i / CHUNK;
                var value = 0.0;
                if start < p.hidden_first && out < p.hidden_second {
                    value = weights[second_weight + (head * p.hidden_second + out) * p.hidden_first + start];
                }
                weight_tile[i % CHUNK * CHUNK + i / CHUNK] = value;
            }
            workgroupBarrier();
            for (var k = 0u; k < CHUNK; k++) {
                let value = first_tile[thread * 33u + k];
                for (var j = 0u; j < CHUNK; j++) {
                    sums[j] = fma(value, weight_tile[k * CHUNK + j], sums[j]);
                }
            }
        }
        if row < p.rows {
            for (var j = 0u; j < min(CHUNK, p.hidden_second - second); j++) {
                sums[j] = relu(sums[j] + weights[second_bias + head * p.hidden_second + second + j]);
            }
            for (var label = 0u; label < p.classes; label++) {
                let start = third_weight + (head * p.classes + label) * p.hidden_second + second;
                var sum = logits[to + label];
                for (var j = 0u; j < min(CHUNK, p.hidden_second - second); j++) {
                    sum = fma(weights[start + j], sums[j], sum);
                }
                logits[to + label] = sum;
            }
        }
    }
}
