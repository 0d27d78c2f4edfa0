// `softmax(Q K^T / sqrt(channels a head)) V` with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022):
// the matrix of scores never exists. A workgroup holds 64 queries of one head and 64 of its output channels; wider heads
// compute their scores once for every 64 channels. A thread has eight queries, and four keys or channels.
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
// [samples][pixels][3 * heads * width], four values each
@group(0) @binding(1) var<storage, read_write> qkv: array<vec4<Value>>;
// [samples][pixels][heads * width]
@group(0) @binding(2) var<storage, read_write> output: array<Value>;

const QUERIES: u32 = 64u;
const KEYS: u32 = 64u;
const SLICE: u32 = 64u;
// Channels of queries and keys, or keys and their values, that are multiplied at a time.
const CHUNK: u32 = 16u;
const THREADS: u32 = 128u;
// Vectors in a row of a tile; the last is of nothing, so that rows begin in different banks.
const STRIDE: u32 = 17u;

// [channels][queries], or [keys][queries] with the exponentials of scores.
var<workgroup> left: array<vec4<f32>, 16 * 17>;
// [channels][keys], or [keys][channels] with values.
var<workgroup> right: array<vec4<f32>, 16 * 17>;
// [queries][16], and what halves of its rows come to.
var<workgroup> reduced: array<f32, 64 * 17>;
var<workgroup> halves: array<f32, 128>;

fn one(at: u32, channel: u32) -> f32 {
    var value = 0.0;
    if channel < p.width {
        value = f32(qkv[at / 4u][at % 4u]);
    }
    return value;
}

// Four channels of a query (role 0), key (1) or value (2), zero beyond the last.
fn load(image: u32, pixel: u32, first: u32, role: u32, channel: u32) -> vec4<f32> {
    if pixel >= p.pixels || channel >= p.width {
        return vec4(0.0);
    }
    let at = (image + pixel) * 3u * p.heads * p.width + first + role * p.role_stride + channel;
    if p.width % 4u == 0u {
        return vec4<f32>(qkv[at / 4u]);
    }
    return vec4(one(at, channel), one(at + 1u, channel + 1u), one(at + 2u, channel + 2u), one(at + 3u, channel + 3u));
}

fn highest_of(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum_of(x: vec4<f32>) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

// Gives `reduced` what a thread knows of its eight queries.
fn reduce(query: u32, lane: u32, a: vec4<f32>, b: vec4<f32>) {
    let to = query * STRIDE + lane;
    reduced[to] = a.x;
    reduced[to + STRIDE] = a.y;
    reduced[to + 2u * STRIDE] = a.z;
    reduced[to + 3u * STRIDE] = a.w;
    reduced[to + 4u * STRIDE] = b.x;
    reduced[to + 5u * STRIDE] = b.y;
    reduced[to + 6u * STRIDE] = b.z;
    reduced[to + 7u * STRIDE] = b.w;
}

// Writes four channels of a query's result.
fn write(image: u32, pixel: u32, head: u32, channel: u32, value: vec4<f32>) {
    if pixel >= p.pixels {
        return;
    }
    let to = ((image + pixel) * p.heads + head) * p.width + channel;
    if channel < p.width {
        output[to] = Value(value.x);
    }
    if channel + 1u < p.width {
        output[to + 1u] = Value(value.y);
    }
    if channel + 2u < p.width {
        output[to + 2u] = Value(value.z);
    }
    if channel + 3u < p.width {
        output[to + 3u] = Value(value.w);
    }
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

    let query = thread / 16u * 8u;
    let lane = thread % 16u;
    // Half of the threads load queries, half keys: four neighbours' four channels each.
    let role = thread / 64u;
    let neighbours = thread % 64u / 4u;
    let quad = thread % 4u;
    // Half a row of `reduced`.
    let half_row = thread / 2u * STRIDE + thread % 2u * 8u;

    var highest_a = vec4(-3.0e38);
    var highest_b = vec4(-3.0e38);
    var total_a = vec4(0.0);
    var total_b = vec4(0.0);
    var o0 = vec4(0.0);
    var o1 = vec4(0.0);
    var o2 = vec4(0.0);
    var o3 = vec4(0.0);
    var o4 = vec4(0.0);
    var o5 = vec4(0.0);
    var o6 = vec4(0.0);
    var o7 = vec4(0.0);
    for (var first_key = 0u; first_key < p.pixels; first_key += KEYS) {
        var s0 = vec4(0.0);
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        var s3 = vec4(0.0);
        var s4 = vec4(0.0);
        var s5 = vec4(0.0);
        var s6 = vec4(0.0);
        var s7 = vec4(0.0);
        for (var chunk = 0u; chunk < p.width; chunk += CHUNK) {
            let pixel = select(first_query, first_key, role == 1u) + 4u * neighbours;
            let channel = chunk + 4u * quad;
            let v0 = load(image, pixel, first, role, channel);
            let v1 = load(image, pixel + 1u, first, role, channel);
            let v2 = load(image, pixel + 2u, first, role, channel);
            let v3 = load(image, pixel + 3u, first, role, channel);
            let to = 4u * quad * STRIDE + neighbours;
            workgroupBarrier();
            if role == 0u {
                left[to] = vec4(v0.x, v1.x, v2.x, v3.x);
                left[to + STRIDE] = vec4(v0.y, v1.y, v2.y, v3.y);
                left[to + 2u * STRIDE] = vec4(v0.z, v1.z, v2.z, v3.z);
                left[to + 3u * STRIDE] = vec4(v0.w, v1.w, v2.w, v3.w);
            } else {
                right[to] = vec4(v0.x, v1.x, v2.x, v3.x);
                right[to + STRIDE] = vec4(v0.y, v1.y, v2.y, v3.y);
                right[to + 2u * STRIDE] = vec4(v0.z, v1.z, v2.z, v3.z);
                right[to + 3u * STRIDE] = vec4(v0.w, v1.w, v2.w, v3.w);
            }
            workgroupBarrier();
            for (var k = 0u; k < CHUNK; k++) {
                let a0 = left[k * STRIDE + query / 4u];
                let a1 = left[k * STRIDE + query / 4u + 1u];
                let b = right[k * STRIDE + lane];
                s0 = fma(vec4(a0.x), b, s0);
                s1 = fma(vec4(a0.y), b, s1);
                s2 = fma(vec4(a0.z), b, s2);
                s3 = fma(vec4(a0.w), b, s3);
                s4 = fma(vec4(a1.x), b, s4);
                s5 = fma(vec4(a1.y), b, s5);
                s6 = fma(vec4(a1.z), b, s6);
                s7 = fma(vec4(a1.w), b, s7);
            }
        }

        let missing = vec4(first_key + 4u * lane) + vec4(0u, 1u, 2u, 3u) >= vec4(p.pixels);
        s0 = select(s0 * p.scale, vec4(-3.0e38), missing);
        s1 = select(s1 * p.scale, vec4(-3.0e38), missing);
        s2 = select(s2 * p.scale, vec4(-3.0e38), missing);
        s3 = select(s3 * p.scale, vec4(-3.0e38), missing);
        s4 = select(s4 * p.scale, vec4(-3.0e38), missing);
        s5 = select(s5 * p.scale, vec4(-3.0e38), missing);
        s6 = select(s6 * p.scale, vec4(-3.0e38), missing);
        s7 = select(s7 * p.scale, vec4(-3.0e38), missing);
        let own_a = vec4(highest_of(s0), highest_of(s1), highest_of(s2), highest_of(s3));
        let own_b = vec4(highest_of(s4), highest_of(s5), highest_of(s6), highest_of(s7));
        reduce(query, lane, own_a, own_b);
        workgroupBarrier();
        var half_highest = reduced[half_row];
        for (var i = 1u; i < 8u; i++) {
            half_highest = max(half_highest, reduced[half_row + i]);
        }
        halves[thread] = half_highest;
        workgroupBarrier();
        let next_a = max(highest_a, vec4(
            max(halves[2u * query + 0u], halves[2u * query + 1u]),
            max(halves[2u * query + 2u], halves[2u * query + 3u]),
            max(halves[2u * query + 4u], halves[2u * query + 5u]),
            max(halves[2u * query + 6u], halves[2u * query + 7u]),
        ));
        let next_b = max(highest_b, vec4(
            max(halves[2u * query + 8u], halves[2u * query + 9u]),
            max(halves[2u * query + 10u], halves[2u * query + 11u]),
            max(halves[2u * query + 12u], halves[2u * query + 13u]),
            max(halves[2u * query + 14u], halves[2u * query + 15u]),
        ));
        let shrink_a = exp(highest_a - next_a);
        let shrink_b = exp(highest_b - next_b);
        highest_a = next_a;
        highest_b = next_b;
        s0 = exp(s0 - vec4(next_a.x));
        s1 = exp(s1 - vec4(next_a.y));
        s2 = exp(s2 - vec4(next_a.z));
        s3 = exp(s3 - vec4(next_a.w));
        s4 = exp(s4 - vec4(next_b.x));
        s5 = exp(s5 - vec4(next_b.y));
        s6 = exp(s6 - vec4(next_b.z));
        s7 = exp(s7 - vec4(next_b.w));
        total_a = fma(total_a, shrink_a, vec4(sum_of(s0), sum_of(s1), sum_of(s2), sum_of(s3)));
        total_b = fma(total_b, shrink_b, vec4(sum_of(s4), sum_of(s5), sum_of(s6), sum_of(s7)));
        o0 *= shrink_a.x;
        o1 *= shrink_a.y;
        o2 *= shrink_a.z;
        o3 *= shrink_a.w;
        o4 *= shrink_b.x;
        o5 *= shrink_b.y;
        o6 *= shrink_b.z;
        o7 *= shrink_b.w;

        for (var chunk = 0u; chunk < KEYS && first_key + chunk < p.pixels; chunk += CHUNK) {
            let key = first_key + chunk + thread / 16u;
            let v0 = load(image, key, first, 2u, slice + 4u * lane);
            let v1 = load(image, key + 8u, first, 2u, slice + 4u * lane);
            workgroupBarrier();
            right[thread / 16u * STRIDE + lane] = v0;
            right[(thread / 16u + 8u) * STRIDE + lane] = v1;
            if lane / 4u == chunk / CHUNK {
                let to = lane % 4u * 4u * STRIDE + query / 4u;
                left[to] = vec4(s0.x, s1.x, s2.x, s3.x);
                left[to + 1u] = vec4(s4.x, s5.x, s6.x, s7.x);
                left[to + STRIDE] = vec4(s0.y, s1.y, s2.y, s3.y);
                left[to + STRIDE + 1u] = vec4(s4.y, s5.y, s6.y, s7.y);
                left[to + 2u * STRIDE] = vec4(s0.z, s1.z, s2.z, s3.z);
                left[to + 2u * STRIDE + 1u] = vec4(s4.z, s5.z, s6.z, s7.z);
                left[to + 3u * STRIDE] = vec4(s0.w, s1.w, s2.w, s3.w);
                left[to + 3u * STRIDE + 1u] = vec4(s4.w, s5.w, s6.w, s7.w);
            }
            workgroupBarrier();
            for (var k = 0u; k < CHUNK; k++) {
                let a0 = left[k * STRIDE + query / 4u];
                let a1 = left[k * STRIDE + query / 4u + 1u];
                let b = right[k * STRIDE + lane];
                o0 = fma(vec4(a0.x), b, o0);
                o1 = fma(vec4(a0.y), b, o1);
                o2 = fma(vec4(a0.z), b, o2);
                o3 = fma(vec4(a0.w), b, o3);
                o4 = fma(vec4(a1.x), b, o4);
                o5 = fma(vec4(a1.y), b, o5);
                o6 = fma(vec4(a1.z), b, o6);
                o7 = fma(vec4(a1.w), b, o7);
            }
        }
    }

    reduce(query, lane, total_a, total_b);
    workgroupBarrier();
    var half_total = reduced[half_row];
    for (var i = 1u; i < 8u; i++) {
        half_total += reduced[half_row + i];
    }
    halves[thread] = half_total;
    workgroupBarrier();
    let at = first_query + query;
    let channel = slice + 4u * lane;
    write(image, at, head, channel, o0 / (halves[2u * query + 0u] + halves[2u * query + 1u]));
    write(image, at + 1u, head, channel, o1 / (halves[2u * query + 2u] + halves[2u * query + 3u]));
    write(image, at + 2u, head, channel, o2 / (halves[2u * query + 4u] + halves[2u * query + 5u]));
    write(image, at + 3u, head, channel, o3 / (halves[2u * query + 6u] + halves[2u * query + 7u]));
    write(image, at + 4u, head, channel, o4 / (halves[2u * query + 8u] + halves[2u * query + 9u]));
    write(image, at + 5u, head, channel, o5 / (halves[2u * query + 10u] + halves[2u * query + 11u]));
    write(image, at + 6u, head, channel, o6 / (halves[2u * query + 12u] + halves[2u * query + 13u]));
    write(image, at + 7u, head, channel, o7 / (halves[2u * query + 14u] + halves[2u * query + 15u]));
}
