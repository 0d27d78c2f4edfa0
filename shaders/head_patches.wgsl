// The same as `head_logits` where the first layers' channels are multiples of four, which are read at a time. A workgroup has
// 16 x 8 pixels of one head: where they lie in each map is found once for each row and column.
#import split
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
// [samples][heights[i]][widths[i]][heads * first], four each
@group(0) @binding(3) var<storage, read_write> map_0: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> map_1: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> map_2: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> map_3: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> map_4: array<vec4<f32>>;
// [heads that are computed][rows][classes]
@group(0) @binding(8) var<storage, read_write> logits: array<f32>;

const PATCH_HEIGHT: u32 = 8u;
const PATCH_WIDTH: u32 = 16u;
const THREADS: u32 = 64u;
// Activations of the first and of the second layer at a time.
const CHUNK: u32 = 16u;
const OUTPUTS: u32 = 32u;
// Labels whose logits are added up at a time.
const LABELS: u32 = 4u;
// Vectors of four pixels in a row of `tile`, one of them of nothing, so that rows begin in different banks.
const GROUPS: u32 = PATCH_HEIGHT * PATCH_WIDTH / 4u;
const STRIDE: u32 = GROUPS + 1u;

// Where a row or a column of the patch lies in each map: two places that are added to each other's, and the second's share.
struct Place {
    first: u32,
    second: u32,
    share: f32,
    // Whether the map is as large as the image.
    whole: u32,
}
var<workgroup> place_rows: array<Place, 5 * 8>;
var<workgroup> place_columns: array<Place, 5 * 16>;
// [activations of the first layer][pixels], later a quarter of the logits each
var<workgroup> tile: array<vec4<f32>, 16 * 33>;
// [first][second]
var<workgroup> weight_tile: array<vec4<f32>, 16 * 8>;

fn size_of_map(map: u32) -> vec2<u32> {
    return vec2(p.heights[map / 4u][map % 4u], p.widths[map / 4u][map % 4u]);
}

fn map_at(map: u32, at: u32) -> vec4<f32> {
    switch map {
        case 0u: { return map_0[at]; }
        case 1u: { return map_1[at]; }
        case 2u: { return map_2[at]; }
        case 3u: { return map_3[at]; }
        default: { return map_4[at]; }
    }
}

// Upper left, upper right, lower left, lower right.
struct Taps {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn taps_at(map: u32, a: u32, b: u32, c: u32, d: u32) -> Taps {
    switch map {
        case 0u: { return Taps(map_0[a], map_0[b], map_0[c], map_0[d]); }
        case 1u: { return Taps(map_1[a], map_1[b], map_1[c], map_1[d]); }
        case 2u: { return Taps(map_2[a], map_2[b], map_2[c], map_2[d]); }
        case 3u: { return Taps(map_3[a], map_3[b], map_3[c], map_3[d]); }
        default: { return Taps(map_4[a], map_4[b], map_4[c], map_4[d]); }
    }
}

fn upsampled(map: u32, row: Place, column: Place) -> vec4<f32> {
    if row.whole != 0u {
        return map_at(map, row.first + column.first);
    }
    let taps = taps_at(map, row.first + column.first, row.first + column.second, row.second + column.first, row.second + column.second);
    return mix(mix(taps.a, taps.b, column.share), mix(taps.c, taps.d, column.share), row.share);
}

// Finds `place_rows` and `place_columns`.
fn find_places(sample: u32, top: u32, left: u32, thread: u32) {
    let quads = p.heads * p.hidden_first / 4u;
    for (var i = thread; i < p.maps * PATCH_HEIGHT; i += THREADS) {
        let size = size_of_map(i / PATCH_HEIGHT);
        let rows = between(min(top + i % PATCH_HEIGHT, p.height - 1u), p.height, size.x);
        let image = sample * size.x;
        let whole = u32(all(size == vec2(p.height, p.width)));
        place_rows[i] = Place((image + rows.first) * size.y * quads, (image + rows.second) * size.y * quads, rows.share, whole);
    }
    for (var i = thread; i < p.maps * PATCH_WIDTH; i += THREADS) {
        let columns = between(min(left + i % PATCH_WIDTH, p.width - 1u), p.width, size_of_map(i / PATCH_WIDTH).y);
        place_columns[i] = Place(columns.first * quads, columns.second * quads, columns.share, 0u);
    }
}

// Fills `tile`: four activations of the first layer at four neighbouring pixels at a time.
fn fill_tile(head: u32, chunk: u32, scale: f32, thread: u32) {
    for (var i = thread; i < GROUPS * CHUNK / 4u; i += THREADS) {
        let group = i / (CHUNK / 4u);
        let quad = i % (CHUNK / 4u);
        var v0 = vec4(0.0);
        var v1 = vec4(0.0);
        var v2 = vec4(0.0);
        var v3 = vec4(0.0);
        if chunk + 4u * quad < p.hidden_first {
            let channel = head * p.hidden_first + chunk + 4u * quad;
            for (var map = 0u; map < p.maps; map++) {
                var row = place_rows[map * PATCH_HEIGHT + group / (PATCH_WIDTH / 4u)];
                row.first += channel / 4u;
                row.second += channel / 4u;
                let column = map * PATCH_WIDTH + group % (PATCH_WIDTH / 4u) * 4u;
                v0 += upsampled(map, row, place_columns[column]);
                v1 += upsampled(map, row, place_columns[column + 1u]);
                v2 += upsampled(map, row, place_columns[column + 2u]);
                v3 += upsampled(map, row, place_columns[column + 3u]);
            }
            let bias = vec4(weights[channel], weights[channel + 1u], weights[channel + 2u], weights[channel + 3u]);
            v0 = max(fma(v0, vec4(scale), bias), vec4(0.0));
            v1 = max(fma(v1, vec4(scale), bias), vec4(0.0));
            v2 = max(fma(v2, vec4(scale), bias), vec4(0.0));
            v3 = max(fma(v3, vec4(scale), bias), vec4(0.0));
        }
        let to = 4u * quad * STRIDE + group;
        tile[to] = vec4(v0.x, v1.x, v2.x, v3.x);
        tile[to + STRIDE] = vec4(v0.y, v1.y, v2.y, v3.y);
        tile[to + 2u * STRIDE] = vec4(v0.z, v1.z, v2.z, v3.z);
        tile[to + 3u * STRIDE] = vec4(v0.w, v1.w, v2.w, v3.w);
    }
}

// A weight of the second or third layer, or a bias of the second; zero beyond its last.
fn weight_at(at: u32, output: u32) -> f32 {
    var value = 0.0;
    if output < p.hidden_second {
        value = weights[at];
    }
    return value;
}

fn fill_weights(start: u32, chunk: u32, second: u32, thread: u32) {
    for (var i = thread; i < CHUNK * OUTPUTS / 4u; i += THREADS) {
        let output = second + i / CHUNK * 4u;
        let at = start + output * p.hidden_first + chunk + i % CHUNK;
        var value = vec4(0.0);
        if chunk + i % CHUNK < p.hidden_first {
            value.x = weight_at(at, output);
            value.y = weight_at(at + p.hidden_first, output + 1u);
            value.z = weight_at(at + 2u * p.hidden_first, output + 2u);
            value.w = weight_at(at + 3u * p.hidden_first, output + 3u);
        }
        weight_tile[i % CHUNK * (OUTPUTS / 4u) + i / CHUNK] = value;
    }
}

// Four weights of the third layer or biases of the second.
fn four_weights(start: u32, output: u32) -> vec4<f32> {
    let at = start + output;
    return vec4(weight_at(at, output), weight_at(at + 1u, output + 1u), weight_at(at + 2u, output + 2u), weight_at(at + 3u, output + 3u));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = group_index(id);
    if index >= split.end {
        return;
    }
    let across = (p.width + PATCH_WIDTH - 1u) / PATCH_WIDTH;
    let down = (p.height + PATCH_HEIGHT - 1u) / PATCH_HEIGHT;
    let left = index % across * PATCH_WIDTH;
    let top = index / across % down * PATCH_HEIGHT;
    let samples = p.rows / (p.height * p.width);
    let sample = index / (across * down) % samples;
    let local_head = index / (across * down * samples);
    let head = p.first_head + local_head;
    let second_weight = p.heads * p.hidden_first;
    let second_bias = second_weight + p.heads * p.hidden_second * p.hidden_first;
    let third_weight = second_bias + p.heads * p.hidden_second;
    let third_bias = third_weight + p.heads * p.classes * p.hidden_second;
    var scale = 1.0;
    if p.feature_norm != 0u {
        scale = 1.0 / max(vectors[p.feature_norm - 1u + sample], 1.2e-38);
    }
    find_places(sample, top, left, thread);

    // Eight pixels and eight outputs of the second layer.
    let own_group = thread % 16u;
    let quarter = thread / 16u;
    for (var second = 0u; second < p.hidden_second; second += OUTPUTS) {
        var a0 = vec4(0.0);
        var a1 = vec4(0.0);
        var a2 = vec4(0.0);
        var a3 = vec4(0.0);
        var a4 = vec4(0.0);
        var a5 = vec4(0.0);
        var a6 = vec4(0.0);
        var a7 = vec4(0.0);
        var b0 = vec4(0.0);
        var b1 = vec4(0.0);
        var b2 = vec4(0.0);
        var b3 = vec4(0.0);
        var b4 = vec4(0.0);
        var b5 = vec4(0.0);
        var b6 = vec4(0.0);
        var b7 = vec4(0.0);
        for (var chunk = 0u; chunk < p.hidden_first; chunk += CHUNK) {
            workgroupBarrier();
            fill_tile(head, chunk, scale, thread);
            fill_weights(second_weight + head * p.hidden_second * p.hidden_first, chunk, second, thread);
            workgroupBarrier();
            for (var k = 0u; k < CHUNK; k++) {
                let x = tile[k * STRIDE + own_group];
                let y = tile[k * STRIDE + 16u + own_group];
                let v = weight_tile[k * (OUTPUTS / 4u) + 2u * quarter];
                let w = weight_tile[k * (OUTPUTS / 4u) + 2u * quarter + 1u];
                a0 = fma(vec4(x.x), v, a0);
                b0 = fma(vec4(x.x), w, b0);
                a1 = fma(vec4(x.y), v, a1);
                b1 = fma(vec4(x.y), w, b1);
                a2 = fma(vec4(x.z), v, a2);
                b2 = fma(vec4(x.z), w, b2);
                a3 = fma(vec4(x.w), v, a3);
                b3 = fma(vec4(x.w), w, b3);
                a4 = fma(vec4(y.x), v, a4);
                b4 = fma(vec4(y.x), w, b4);
                a5 = fma(vec4(y.y), v, a5);
                b5 = fma(vec4(y.y), w, b5);
                a6 = fma(vec4(y.z), v, a6);
                b6 = fma(vec4(y.z), w, b6);
                a7 = fma(vec4(y.w), v, a7);
                b7 = fma(vec4(y.w), w, b7);
            }
        }

        let output = second + 8u * quarter;
        let bias_a = four_weights(second_bias + head * p.hidden_second, output);
        let bias_b = four_weights(second_bias + head * p.hidden_second, output + 4u);
        a0 = max(a0 + bias_a, vec4(0.0));
        b0 = max(b0 + bias_b, vec4(0.0));
        a1 = max(a1 + bias_a, vec4(0.0));
        b1 = max(b1 + bias_b, vec4(0.0));
        a2 = max(a2 + bias_a, vec4(0.0));
        b2 = max(b2 + bias_b, vec4(0.0));
        a3 = max(a3 + bias_a, vec4(0.0));
        b3 = max(b3 + bias_b, vec4(0.0));
        a4 = max(a4 + bias_a, vec4(0.0));
        b4 = max(b4 + bias_b, vec4(0.0));
        a5 = max(a5 + bias_a, vec4(0.0));
        b5 = max(b5 + bias_b, vec4(0.0));
        a6 = max(a6 + bias_a, vec4(0.0));
        b6 = max(b6 + bias_b, vec4(0.0));
        a7 = max(a7 + bias_a, vec4(0.0));
        b7 = max(b7 + bias_b, vec4(0.0));

        for (var first_label = 0u; first_label < p.classes; first_label += LABELS) {
            let labels = min(LABELS, p.classes - first_label);
            workgroupBarrier();
            for (var i = 0u; i < labels; i++) {
                let start = third_weight + (head * p.classes + first_label + i) * p.hidden_second;
                let v = four_weights(start, output);
                let w = four_weights(start, output + 4u);
                let to = (4u * i + quarter) * STRIDE + own_group;
                tile[to] = vec4(dot(a0, v) + dot(b0, w), dot(a1, v) + dot(b1, w), dot(a2, v) + dot(b2, w), dot(a3, v) + dot(b3, w));
                tile[to + 16u] = vec4(dot(a4, v) + dot(b4, w), dot(a5, v) + dot(b5, w), dot(a6, v) + dot(b6, w), dot(a7, v) + dot(b7, w));
            }
            workgroupBarrier();
            for (var i = thread; i < labels * PATCH_HEIGHT * PATCH_WIDTH; i += THREADS) {
                let label = i % labels;
                let pixel = i / labels;
                let y = top + pixel / PATCH_WIDTH;
                let x = left + pixel % PATCH_WIDTH;
                if y < p.height && x < p.width {
                    let part = 4u * label * STRIDE + pixel / 4u;
                    let lane = pixel % 4u;
                    var sum = (tile[part][lane] + tile[part + STRIDE][lane]) + (tile[part + 2u * STRIDE][lane] + tile[part + 3u * STRIDE][lane]);
                    let row = local_head * p.rows + (sample * p.height + y) * p.width + x;
                    let to = row * p.classes + first_label + label;
                    if second == 0u {
                        sum += weights[third_bias + head * p.classes + first_label + label];
                    } else {
                        sum += logits[to];
                    }
                    logits[to] = sum;
                }
            }
        }
    }
}
