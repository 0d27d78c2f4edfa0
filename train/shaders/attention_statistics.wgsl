// For each query the logarithm of the sum of its exponentiated scores, and the mean under its probabilities of what the
// gradient of its result says of each value: what `attention_gradient` needs to compute probabilities again, a tile at a
// time. A workgroup holds 32 queries of one head; four threads a query.
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
@group(0) @binding(2) var<storage, read_write> gradient: array<Value>;
// [samples][heads][pixels][2]
@group(0) @binding(3) var<storage, read_write> statistics: array<f32>;

const QUERIES: u32 = 32u;
const KEYS: u32 = 16u;
// Channels that are multiplied at a time.
const CHUNK: u32 = 32u;
const THREADS: u32 = 128u;

var<workgroup> own: array<f32, 32 * 33>;
var<workgroup> other: array<f32, 16 * 33>;
var<workgroup> reduced: array<vec3<f32>, 128>;

// Products of a query with four keys, or of the gradient of its result with their values.
fn products(thread: u32, head: u32, image: u32, first_query: u32, first_key: u32, of_values: bool) -> vec4<f32> {
    let query = thread / 4u;
    let lane = thread % 4u;
    let stride = p.heads * p.width;
    var sums = vec4(0.0);
    for (var chunk = 0u; chunk < p.width; chunk += CHUNK) {
        workgroupBarrier();
        for (var i = thread; i < QUERIES * CHUNK; i += THREADS) {
            let pixel = first_query + i / CHUNK;
            let channel = chunk + i % CHUNK;
            var value = 0.0;
            if pixel < p.pixels && channel < p.width {
                if of_values {
                    value = f32(gradient[(image + pixel) * stride + head * p.width + channel]);
                } else {
                    value = f32(qkv[(image + pixel) * 3u * stride + head * p.head_stride + channel]);
                }
            }
            own[i / CHUNK * 33u + i % CHUNK] = value;
        }
        for (var i = thread; i < KEYS * CHUNK; i += THREADS) {
            let pixel = first_key + i / CHUNK;
            let channel = chunk + i % CHUNK;
            let role = select(1u, 2u, of_values) * p.role_stride;
            var value = 0.0;
            if pixel < p.pixels && channel < p.width {
                value = f32(qkv[(image + pixel) * 3u * stride + head * p.head_stride + role + channel]);
            }
            other[i / CHUNK * 33u + i % CHUNK] = value;
        }
        workgroupBarrier();
        for (var c = 0u; c < CHUNK; c++) {
            let q = own[query * 33u + c];
            sums.x = fma(q, other[lane * 33u + c], sums.x);
            sums.y = fma(q, other[(lane + 4u) * 33u + c], sums.y);
            sums.z = fma(q, other[(lane + 8u) * 33u + c], sums.z);
            sums.w = fma(q, other[(lane + 12u) * 33u + c], sums.w);
        }
    }
    return sums;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let blocks = (p.pixels + QUERIES - 1u) / QUERIES;
    let first_query = group % blocks * QUERIES;
    let head = group / blocks % p.heads;
    let sample = group / (blocks * p.heads);
    let image = sample * p.pixels;
    let lane = thread % 4u;

    // Each thread has every fourth key; the four are combined at the end.
    var highest = -3.0e38;
    var total = 0.0;
    var weighted = 0.0;
    for (var first_key = 0u; first_key < p.pixels; first_key += KEYS) {
        let scores = p.scale * products(thread, head, image, first_query, first_key, false);
        let slopes = products(thread, head, image, first_query, first_key, true);
        let keys = vec4(first_key + lane) + vec4(0u, 4u, 8u, 12u);
        let there = keys < vec4(p.pixels);
        let known = select(vec4(-3.0e38), scores, there);
        let next = max(highest, max(max(known.x, known.y), max(known.z, known.w)));
        let shrink = exp(highest - next);
        let exponentials = select(vec4(0.0), exp(scores - vec4(next)), there);
        highest = next;
        total = fma(total, shrink, exponentials.x + exponentials.y + exponentials.z + exponentials.w);
        weighted = fma(weighted, shrink, dot(exponentials, slopes));
    }
    workgroupBarrier();
    reduced[thread] = vec3(highest, total, weighted);
    workgroupBarrier();
    let query = first_query + thread / 4u;
    if lane == 0u && query < p.pixels {
        for (var i = 1u; i < 4u; i++) {
            let another = reduced[thread + i];
            let next = max(highest, another.x);
            let shrink = exp(highest - next);
            let other_shrink = exp(another.x - next);
            highest = next;
            total = total * shrink + another.y * other_shrink;
            weighted = weighted * shrink + another.z * other_shrink;
        }
        let to = 2u * ((sample * p.heads + head) * p.pixels + query);
        statistics[to] = highest + log(total);
        statistics[to + 1u] = weighted / total;
    }
}
