// The gradient of attention without the matrix of scores: with P the probabilities, g the gradient of P V and D the mean of
// `g . v` under P, dV = P^T g, dS = P (g V^T - D), dQ = dS K scale, dK = dS^T Q scale (Dao et al. 2022).
//
// A workgroup holds 32 queries of one head (or 32 keys with their values) and 64 channels of their gradient, and goes
// through all keys (or queries); wider heads compute their probabilities once for every 64 channels.
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
    // 1 for the gradients of keys and values, 0 for that of queries.
    keys: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples][pixels][3 * heads * width]
@group(0) @binding(1) var<storage, read_write> qkv: array<Value>;
// [samples][pixels][heads * width]
@group(0) @binding(2) var<storage, read_write> gradient: array<Value>;
// [samples][heads][pixels][2]
@group(0) @binding(3) var<storage, read_write> statistics: array<f32>;
// [samples][pixels][3 * heads * width]
@group(0) @binding(4) var<storage, read_write> output: array<Value>;

const OWN: u32 = 32u;
const OTHERS: u32 = 16u;
// Channels that are multiplied at a time.
const CHUNK: u32 = 32u;
const SLICE: u32 = 64u;
const THREADS: u32 = 128u;

var<workgroup> own_tile: array<f32, 32 * 33>;
var<workgroup> other_tile: array<f32, 16 * 33>;
var<workgroup> slice_tile: array<f32, 16 * 64>;
var<workgroup> probabilities: array<f32, 32 * 17>;
var<workgroup> slopes: array<f32, 32 * 17>;

// Whose head this is: where its channels begin, and its image.
struct Head {
    qkv: u32,
    gradient: u32,
    image: u32,
}

// A query (role 0), key (1), value (2) or the gradient of a query's result (3); zero beyond the last.
fn load(head: Head, role: u32, pixel: u32, channel: u32) -> f32 {
    if pixel >= p.pixels || channel >= p.width {
        return 0.0;
    }
    let stride = p.heads * p.width;
    if role == 3u {
        return f32(gradient[(head.image + pixel) * stride + head.gradient + channel]);
    }
    return f32(qkv[(head.image + pixel) * 3u * stride + head.qkv + role * p.role_stride + channel]);
}

// Products of each of the workgroup's own with four of the others.
fn products(thread: u32, head: Head, first_own: u32, own_role: u32, first_other: u32, other_role: u32) -> vec4<f32> {
    let own = thread / 4u;
    let lane = thread % 4u;
    var sums = vec4(0.0);
    for (var chunk = 0u; chunk < p.width; chunk += CHUNK) {
        workgroupBarrier();
        for (var i = thread; i < OWN * CHUNK; i += THREADS) {
            own_tile[i / CHUNK * 33u + i % CHUNK] = load(head, own_role, first_own + i / CHUNK, chunk + i % CHUNK);
        }
        for (var i = thread; i < OTHERS * CHUNK; i += THREADS) {
            other_tile[i / CHUNK * 33u + i % CHUNK] = load(head, other_role, first_other + i / CHUNK, chunk + i % CHUNK);
        }
        workgroupBarrier();
        for (var c = 0u; c < CHUNK; c++) {
            let value = own_tile[own * 33u + c];
            sums.x = fma(value, other_tile[lane * 33u + c], sums.x);
            sums.y = fma(value, other_tile[(lane + 4u) * 33u + c], sums.y);
            sums.z = fma(value, other_tile[(lane + 8u) * 33u + c], sums.z);
            sums.w = fma(value, other_tile[(lane + 12u) * 33u + c], sums.w);
        }
    }
    return sums;
}

fn load_slice(thread: u32, head: Head, role: u32, first: u32, slice: u32) {
    for (var i = thread; i < OTHERS * SLICE; i += THREADS) {
        slice_tile[i] = load(head, role, first + i / SLICE, slice + i % SLICE);
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let blocks = (p.pixels + OWN - 1u) / OWN;
    let slices = (p.width + SLICE - 1u) / SLICE;
    let first_own = group % blocks * OWN;
    let slice = group / blocks % slices * SLICE;
    let index = group / (blocks * slices) % p.heads;
    let sample = group / (blocks * slices * p.heads);
    let head = Head(index * p.head_stride, index * p.width, sample * p.pixels);
    let known = 2u * (sample * p.heads + index) * p.pixels;
    let of_keys = p.keys != 0u;
    let own_first = select(0u, 1u, of_keys);
    let other_first = 1u - own_first;
    let own_second = select(3u, 2u, of_keys);
    let other_second = 5u - own_second;

    let own = thread / 4u;
    let lane = thread % 4u;
    // Gradients of queries or keys, and of values.
    var first_sums: array<f32, 16>;
    var second_sums: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        first_sums[i] = 0.0;
        second_sums[i] = 0.0;
    }

    for (var first_other = 0u; first_other < p.pixels; first_other += OTHERS) {
        let scores = products(thread, head, first_own, own_first, first_other, other_first);
        let heard = products(thread, head, first_own, own_second, first_other, other_second);
        load_slice(thread, head, other_first, first_other, slice);
        for (var j = 0u; j < 4u; j++) {
            let other = lane + 4u * j;
            let query = select(first_own + own, first_other + other, of_keys);
            var probability = 0.0;
            var slope = 0.0;
            if first_own + own < p.pixels && first_other + other < p.pixels {
                probability = exp(p.scale * scores[j] - statistics[known + 2u * query]);
                slope = p.scale * probability * (heard[j] - statistics[known + 2u * query + 1u]);
            }
            probabilities[own * 17u + other] = probability;
            slopes[own * 17u + other] = slope;
        }
        workgroupBarrier();
        for (var other = 0u; other < OTHERS; other++) {
            let weight = slopes[own * 17u + other];
            for (var i = 0u; i < 16u; i++) {
                first_sums[i] = fma(weight, slice_tile[other * SLICE + lane + 4u * i], first_sums[i]);
            }
        }
        if of_keys {
            workgroupBarrier();
            load_slice(thread, head, other_second, first_other, slice);
            workgroupBarrier();
            for (var other = 0u; other < OTHERS; other++) {
                let weight = probabilities[own * 17u + other];
                for (var i = 0u; i < 16u; i++) {
                    second_sums[i] = fma(weight, slice_tile[other * SLICE + lane + 4u * i], second_sums[i]);
                }
            }
        }
    }

    if first_own + own < p.pixels {
        let to = (head.image + first_own + own) * 3u * p.heads * p.width + head.qkv;
        for (var i = 0u; i < 16u; i++) {
            let channel = slice + lane + 4u * i;
            if channel < p.width {
                output[to + own_first * p.role_stride + channel] = Value(first_sums[i]);
                if of_keys {
                    output[to + 2u * p.role_stride + channel] = Value(second_sums[i]);
                }
            }
        }
    }
}
