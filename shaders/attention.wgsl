// `softmax(Q K^T / sqrt(channels a head)) V` with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022):
// the matrix of scores never exists. A workgroup holds 32 queries of one head and 64 of its output channels; wider heads
// compute their scores once for every 64 channels.
#import split

struct Params {
    samples: u32,
    pixels: u32,
    heads: u32,
    // Channels a head.
    width: u32,
    // From one head's query to the next, and from a query to its key and from there to its value.
    head_stride: u32,
    role_stride: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples][pixels][3 * heads * width]
@group(0) @binding(1) var<storage, read_write> qkv: array<Value>;
// [samples][pixels][heads * width]
@group(0) @binding(2) var<storage, read_write> output: array<Value>;

const QUERIES: u32 = 32u;
const KEYS: u32 = 16u;
// Channels of queries and keys that are multiplied at a time.
const CHUNK: u32 = 32u;
const SLICE: u32 = 64u;
const THREADS: u32 = 128u;

var<workgroup> query_tile: array<f32, 32 * 33>;
var<workgroup> key_tile: array<f32, 16 * 33>;
var<workgroup> value_tile: array<f32, 16 * 64>;
var<workgroup> weights: array<f32, 32 * 17>;
var<workgroup> reduced: array<f32, 128>;

fn load(pixel: u32, role: u32, first: u32, channel: u32) -> f32 {
    return f32(qkv[pixel * 3u * p.heads * p.width + first + role * p.role_stride + channel]);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let blocks = (p.pixels + QUERIES - 1u) / QUERIES;
    let slices = (p.width + SLICE - 1u) / SLICE;
    let first_query = group % blocks * QUERIES;
    let slice = group / blocks % slices * SLICE;
    let head = group / (blocks * slices) % p.heads;
    let sample = group / (blocks * slices * p.heads);
    let first = head * p.head_stride;
    let image = sample * p.pixels;

    // Four threads a query; each has every fourth key of a tile and every fourth channel of the slice.
    let query = thread / 4u;
    let lane = thread % 4u;
    var highest = -3.0e38;
    var total = 0.0;
    var mixed: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        mixed[i] = 0.0;
    }

    for (var first_key = 0u; first_key < p.pixels; first_key += KEYS) {
        var scores = vec4(0.0);
        for (var chunk = 0u; chunk < p.width; chunk += CHUNK) {
            workgroupBarrier();
            for (var i = thread; i < QUERIES * CHUNK; i += THREADS) {
                let pixel = first_query + i / CHUNK;
                let channel = chunk + i % CHUNK;
                var value = 0.0;
                if pixel < p.pixels && channel < p.width {
                    value = load(image + pixel, 0u, first, channel);
                }
                query_tile[i / CHUNK * 33u + i % CHUNK] = value;
            }
            for (var i = thread; i < KEYS * CHUNK; i += THREADS) {
                let pixel = first_key + i / CHUNK;
                let channel = chunk + i % CHUNK;
                var value = 0.0;
                if pixel < p.pixels && channel < p.width {
                    value = load(image + pixel, 1u, first, channel);
                }
                key_tile[i / CHUNK * 33u + i % CHUNK] = value;
            }
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                let q = query_tile[query * 33u + c];
                scores.x = fma(q, key_tile[lane * 33u + c], scores.x);
                scores.y = fma(q, key_tile[(lane + 4u) * 33u + c], scores.y);
                scores.z = fma(q, key_tile[(lane + 8u) * 33u + c], scores.z);
                scores.w = fma(q, key_tile[(lane + 12u) * 33u + c], scores.w);
            }
        }
        for (var i = thread; i < KEYS * SLICE; i += THREADS) {
            let pixel = first_key + i / SLICE;
            let channel = slice + i % SLICE;
            var value = 0.0;
            if pixel < p.pixels && channel < p.width {
                value = load(image + pixel, 2u, first, channel);
            }
            value_tile[i] = value;
        }

        scores *= p.scale;
        let keys = vec4(first_key + lane) + vec4(0u, 4u, 8u, 12u);
        scores = select(scores, vec4(-3.0e38), keys >= vec4(p.pixels));
        reduced[thread] = max(max(scores.x, scores.y), max(scores.z, scores.w));
        workgroupBarrier();
        let tile_highest = max(max(reduced[query * 4u], reduced[query * 4u + 1u]), max(reduced[query * 4u + 2u], reduced[query * 4u + 3u]));
        let next = max(highest, tile_highest);
        let shrink = exp(highest - next);
        highest = next;
        let exponentials = exp(scores - vec4(next));
        for (var j = 0u; j < 4u; j++) {
            weights[query * 17u + lane + 4u * j] = exponentials[j];
        }
        workgroupBarrier();
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) {
            mixed[i] *= shrink;
        }
        for (var key = 0u; key < KEYS; key++) {
            let weight = weights[query * 17u + key];
            sum += weight;
            for (var i = 0u; i < 16u; i++) {
                mixed[i] = fma(weight, value_tile[key * SLICE + lane + 4u * i], mixed[i]);
            }
        }
        total = fma(total, shrink, sum);
    }

    if first_query + query < p.pixels {
        let pixel = image + first_query + query;
        for (var i = 0u; i < 16u; i++) {
            let channel = slice + lane + 4u * i;
            if channel < p.width {
                output[(pixel * p.heads + head) * p.width + channel] = Value(mixed[i] / total);
            }
        }
    }
}
