// An ensemble of heads whose first layers' channels are multiples of four, which are read at a time. THREADS of a workgroup have a
// patch of pixels of one head: where they lie in each map is found once for each row and column.
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
// The first layer's, of the BIASES times four activations that are computed next.
var<workgroup> biases: array<vec4<f32>, BIASES>;

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

fn find_biases(head: u32, chunk: u32, thread: u32) {
    for (var i = thread; i < BIASES; i += THREADS) {
        let at = head * p.hidden_first + chunk + 4u * i;
        if chunk + 4u * i < p.hidden_first {
            biases[i] = vec4(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]);
        }
    }
}

// Activations of the first layer, four from `channel` of all heads' on, at a row and a column of the patch. `quad` is their place
// among the biases.
fn activations(channel: u32, quad: u32, patch_row: u32, patch_column: u32, scale: f32) -> vec4<f32> {
    var sum = vec4(0.0);
    for (var map = 0u; map < p.maps; map++) {
        var row = place_rows[map * PATCH_HEIGHT + patch_row];
        row.first += channel / 4u;
        row.second += channel / 4u;
        sum += upsampled(map, row, place_columns[map * PATCH_WIDTH + patch_column]);
    }
    return relu4(fma(sum, vec4(scale), biases[quad]));
}

// A weight of the second or third layer, or a bias of the second; zero beyond its last.
fn weight_at(at: u32, output: u32) -> f32 {
    var value = 0.0;
    if output < p.hidden_second {
        value = weights[at];
    }
    return value;
}

// Four weights of the third layer or biases of the second.
fn four_weights(start: u32, output: u32) -> vec4<f32> {
    let at = start + output;
    return vec4(weight_at(at, output), weight_at(at + 1u, output + 1u), weight_at(at + 2u, output + 2u), weight_at(at + 3u, output + 3u));
}
