// The same as `attention` on matrix units: f16 factors, f32 sums. A workgroup holds 64 queries of one head, 16 to a subgroup,
// and all its channels. Matrices can be neither compared nor scaled row by row, so the running maximum of `attention`
// is found in a pass of its own: scores are multiplied twice, and the results need no correction.
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
// [samples][pixels][3 * heads * width], eight values each
@group(0) @binding(1) var<storage, read_write> qkv: array<vec4<u32>>;
// [samples][pixels][heads * width], eight values each
@group(0) @binding(2) var<storage, read_write> output: array<vec4<u32>>;

// TERMS (64 or 128) channels are multiplied; those beyond `width` are zeros. Of more channels there are fewer keys.
const WIDE: bool = TERMS > 64u;
const KEYS: u32 = 4096u / TERMS;
const QUERIES: u32 = 64u;
const THREADS: u32 = 4u * SUBGROUP;

// Lengths of rows, of eight f16 or four f32 each: matrices are read and written 8 rows at a time, which lie in different banks.
const TILE_STRIDE: u32 = TERMS / 8u + 1u;
const SCORE_STRIDE: u32 = KEYS / 4u + 2u;
const WEIGHT_STRIDE: u32 = KEYS / 8u + 1u;
const RESULT_STRIDE: u32 = 18u;
// What a subgroup has of `exchange`.
const OWN: u32 = SIZE * RESULT_STRIDE;

// Keys, then values.
var<workgroup> tile: array<vec4<f32>, KEYS * TILE_STRIDE>;
// All queries (f16), a subgroup's scores (f32) and their exponentials (f16), and its results (f32), 64 channels at a time.
var<workgroup> exchange: array<vec4<f32>, 4 * OWN>;
var<workgroup> reduced: array<f32, THREADS>;

// Eight channels of a query (role 0), key (1) or value (2), zero beyond the last.
fn load(image: u32, pixel: u32, first: u32, role: u32, part: u32) -> vec4<u32> {
    var value = vec4(0u);
    if pixel < p.pixels && 8u * part < p.width {
        value = qkv[((image + pixel) * 3u * p.heads * p.width + first + role * p.role_stride) / 8u + part];
    }
    return value;
}

// What a thread loads of a tile: the `i`th of its eight values.
fn load_tile(image: u32, first_key: u32, first: u32, role: u32, i: u32) -> vec4<u32> {
    return load(image, first_key + i / (TERMS / 8u), first, role, i % (TERMS / 8u));
}

fn place(i: u32) -> u32 {
    return i / (TERMS / 8u) * TILE_STRIDE + i % (TERMS / 8u);
}

// Four scores; those of keys that are not there are as low as can be.
fn scores_at(at: u32, key: u32) -> vec4<f32> {
    return select(exchange[at], vec4(-3.0e38), vec4(key) + vec4(0u, 1u, 2u, 3u) >= vec4(p.pixels));
}

// The highest of eight scores and `highest`.
fn highest_of(at: u32, key: u32, half: u32, highest: f32) -> f32 {
    let both = max(scores_at(at + half, key + 4u * half), scores_at(at + 1u - half, key + 4u - 4u * half));
    return max(max(max(both.x, both.y), max(both.z, both.w)), highest);
}

// Exponentials of eight scores as f16, and their sum.
struct Weights {
    values: vec4<u32>,
    sum: f32,
}

fn weights_of(at: u32, key: u32, half: u32, factor: f32, shift: f32) -> Weights {
    // Which four are read first differs between the threads of a row, whose scores would lie in the same bank.
    let a = exp2(fma(scores_at(at + half, key + 4u * half), vec4(factor), vec4(-shift)));
    let b = exp2(fma(scores_at(at + 1u - half, key + 4u - 4u * half), vec4(factor), vec4(-shift)));
    let both = packed(a, b);
    let sum = a + b;
    return Weights(select(both, both.zwxy, half != 0u), (sum.x + sum.y) + (sum.z + sum.w));
}

// Eight values as f16.
fn packed(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
    return vec4(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
}

// Writes 64 channels of the results, which were stored to `exchange`.
fn write(thread: u32, image: u32, first_query: u32, head: u32, first_part: u32) {
    for (var i = thread; i < QUERIES * 8u; i += THREADS) {
        let row = i / 8u;
        let part = first_part + i % 8u;
        if first_query + row < p.pixels && 8u * part < p.width {
            let at = row / SIZE * OWN + row % SIZE * RESULT_STRIDE + i % 8u * 2u;
            let share = 1.0 / (reduced[2u * row] + reduced[2u * row + 1u]);
            let pixel = image + first_query + row;
            output[(pixel * p.heads + head) * (p.width / 8u) + part] = packed(exchange[at] * share, exchange[at + 1u] * share);
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    // Not by `group_index`: what a function returns is not known to be the same for all threads, as matrix units demand.
    let group = split.first + id.y * GRID_WIDTH + id.x;
    if group >= split.end {
        return;
    }
    let blocks = (p.pixels + QUERIES - 1u) / QUERIES;
    let first_query = group % blocks * QUERIES;
    let head = group / blocks % p.heads;
    let image = group / (blocks * p.heads) * p.pixels;
    let first = head * p.head_stride;

    for (var i = thread; i < QUERIES * (TERMS / 8u); i += THREADS) {
        let row = i / (TERMS / 8u);
        let part = i % (TERMS / 8u);
        exchange[row * TILE_STRIDE + part] = bitcast<vec4<f32>>(load(image, first_query + row, first, 0u, part));
    }
    workgroupBarrier();
    let own_query = subgroup * SIZE * TILE_STRIDE;
    let q0 = coopLoadT<Left>(&exchange[own_query], TILE_STRIDE);
    let second_query = own_query + 2u;
    let q1 = coopLoadT<Left>(&exchange[second_query], TILE_STRIDE);
    let third_query = own_query + 4u;
    let q2 = coopLoadT<Left>(&exchange[third_query], TILE_STRIDE);
    let fourth_query = own_query + 6u;
    let q3 = coopLoadT<Left>(&exchange[fourth_query], TILE_STRIDE);
    // Of nothing, and unused, where there are 64 channels.
    let fifth_query = own_query + 8u;
    let q4 = coopLoadT<Left>(&exchange[fifth_query], TILE_STRIDE);
    let sixth_query = own_query + 10u;
    let q5 = coopLoadT<Left>(&exchange[sixth_query], TILE_STRIDE);
    let seventh_query = own_query + 12u;
    let q6 = coopLoadT<Left>(&exchange[seventh_query], TILE_STRIDE);
    let eighth_query = own_query + 14u;
    let q7 = coopLoadT<Left>(&exchange[eighth_query], TILE_STRIDE);

    // Results, 16 channels each.
    var o0 = Sums();
    var o1 = Sums();
    var o2 = Sums();
    var o3 = Sums();
    var o4 = Sums();
    var o5 = Sums();
    var o6 = Sums();
    var o7 = Sums();

    // Two threads a query; each has half of a tile's keys.
    let half = thread % 2u;
    let row = thread / 2u;
    let own_keys = half * (KEYS / 2u);
    let own_scores = row / SIZE * OWN + row % SIZE * SCORE_STRIDE + own_keys / 4u;
    let own_weights = row / SIZE * OWN + row % SIZE * WEIGHT_STRIDE + own_keys / 8u;
    let factor = p.scale * 1.4426950408889634;
    var highest = -3.0e38;
    var shift = 0.0;
    var total = 0.0;

    var k0 = load_tile(image, 0u, first, 1u, thread);
    var k1 = load_tile(image, 0u, first, 1u, thread + THREADS);
    var k2 = load_tile(image, 0u, first, 1u, thread + 2u * THREADS);
    var k3 = load_tile(image, 0u, first, 1u, thread + 3u * THREADS);
    // The first time for the highest scores, the second for the results.
    for (var turn = 0u; turn < 2u; turn++) {
        for (var first_key = 0u; first_key < p.pixels; first_key += KEYS) {
            workgroupBarrier();
            tile[place(thread)] = bitcast<vec4<f32>>(k0);
            tile[place(thread + THREADS)] = bitcast<vec4<f32>>(k1);
            tile[place(thread + 2u * THREADS)] = bitcast<vec4<f32>>(k2);
            tile[place(thread + 3u * THREADS)] = bitcast<vec4<f32>>(k3);
            workgroupBarrier();
            var v0 = vec4(0u);
            var v1 = vec4(0u);
            var v2 = vec4(0u);
            var v3 = vec4(0u);
            if turn == 1u {
                v0 = load_tile(image, first_key, first, 2u, thread);
                v1 = load_tile(image, first_key, first, 2u, thread + THREADS);
                v2 = load_tile(image, first_key, first, 2u, thread + 2u * THREADS);
                v3 = load_tile(image, first_key, first, 2u, thread + 3u * THREADS);
            }

            // Keys lie in rows and are multiplied as columns.
            var to = subgroup * OWN;
            for (var keys = 0u; keys < KEYS; keys += 2u * SIZE) {
                var s0 = Sums();
                var s1 = Sums();
                let a0 = keys * TILE_STRIDE;
                let b0 = a0 + SIZE * TILE_STRIDE;
                s0 = coopMultiplyAdd(q0, coopLoad<Right>(&tile[a0], TILE_STRIDE), s0);
                s1 = coopMultiplyAdd(q0, coopLoad<Right>(&tile[b0], TILE_STRIDE), s1);
                let a1 = a0 + 2u;
                let b1 = b0 + 2u;
                s0 = coopMultiplyAdd(q1, coopLoad<Right>(&tile[a1], TILE_STRIDE), s0);
                s1 = coopMultiplyAdd(q1, coopLoad<Right>(&tile[b1], TILE_STRIDE), s1);
                let a2 = a0 + 4u;
                let b2 = b0 + 4u;
                s0 = coopMultiplyAdd(q2, coopLoad<Right>(&tile[a2], TILE_STRIDE), s0);
                s1 = coopMultiplyAdd(q2, coopLoad<Right>(&tile[b2], TILE_STRIDE), s1);
                let a3 = a0 + 6u;
                let b3 = b0 + 6u;
                s0 = coopMultiplyAdd(q3, coopLoad<Right>(&tile[a3], TILE_STRIDE), s0);
                s1 = coopMultiplyAdd(q3, coopLoad<Right>(&tile[b3], TILE_STRIDE), s1);
                if WIDE {
                    let a4 = a0 + 8u;
                    let b4 = b0 + 8u;
                    s0 = coopMultiplyAdd(q4, coopLoad<Right>(&tile[a4], TILE_STRIDE), s0);
                    s1 = coopMultiplyAdd(q4, coopLoad<Right>(&tile[b4], TILE_STRIDE), s1);
                    let a5 = a0 + 10u;
                    let b5 = b0 + 10u;
                    s0 = coopMultiplyAdd(q5, coopLoad<Right>(&tile[a5], TILE_STRIDE), s0);
                    s1 = coopMultiplyAdd(q5, coopLoad<Right>(&tile[b5], TILE_STRIDE), s1);
                    let a6 = a0 + 12u;
                    let b6 = b0 + 12u;
                    s0 = coopMultiplyAdd(q6, coopLoad<Right>(&tile[a6], TILE_STRIDE), s0);
                    s1 = coopMultiplyAdd(q6, coopLoad<Right>(&tile[b6], TILE_STRIDE), s1);
                    let a7 = a0 + 14u;
                    let b7 = b0 + 14u;
                    s0 = coopMultiplyAdd(q7, coopLoad<Right>(&tile[a7], TILE_STRIDE), s0);
                    s1 = coopMultiplyAdd(q7, coopLoad<Right>(&tile[b7], TILE_STRIDE), s1);
                }
                let to0 = to;
                coopStoreT(s0, &exchange[to0], SCORE_STRIDE);
                let to1 = to + SIZE / 4u;
                coopStoreT(s1, &exchange[to1], SCORE_STRIDE);
                to += SIZE / 2u;
            }
            workgroupBarrier();

            let next = select(0u, first_key + KEYS, first_key + KEYS < p.pixels);
            k0 = load_tile(image, next, first, 1u, thread);
            k1 = load_tile(image, next, first, 1u, thread + THREADS);
            k2 = load_tile(image, next, first, 1u, thread + 2u * THREADS);
            k3 = load_tile(image, next, first, 1u, thread + 3u * THREADS);
            let key = first_key + own_keys;
            if turn == 0u {
                highest = highest_of(own_scores, key, half, highest);
                highest = highest_of(own_scores + 2u, key + 8u, half, highest);
                if !WIDE {
                    highest = highest_of(own_scores + 4u, key + 16u, half, highest);
                    highest = highest_of(own_scores + 6u, key + 24u, half, highest);
                }
            } else {
                tile[place(thread)] = bitcast<vec4<f32>>(v0);
                tile[place(thread + THREADS)] = bitcast<vec4<f32>>(v1);
                tile[place(thread + 2u * THREADS)] = bitcast<vec4<f32>>(v2);
                tile[place(thread + 3u * THREADS)] = bitcast<vec4<f32>>(v3);
                let w0 = weights_of(own_scores, key, half, factor, shift);
                let w1 = weights_of(own_scores + 2u, key + 8u, half, factor, shift);
                var w2 = Weights();
                var w3 = Weights();
                if !WIDE {
                    w2 = weights_of(own_scores + 4u, key + 16u, half, factor, shift);
                    w3 = weights_of(own_scores + 6u, key + 24u, half, factor, shift);
                }
                total += (w0.sum + w1.sum) + (w2.sum + w3.sum);
                // The exponentials take the place of the scores.
                workgroupBarrier();
                exchange[own_weights] = bitcast<vec4<f32>>(w0.values);
                exchange[own_weights + 1u] = bitcast<vec4<f32>>(w1.values);
                if !WIDE {
                    exchange[own_weights + 2u] = bitcast<vec4<f32>>(w2.values);
                    exchange[own_weights + 3u] = bitcast<vec4<f32>>(w3.values);
                }
                workgroupBarrier();
            }
            // None the first time. A loop, as the compiler does not know that an `if` would go the same way for all threads.
            for (var keys = 0u; keys < KEYS * turn; keys += SIZE) {
                let here = subgroup * OWN + keys / 8u;
                let weights = coopLoadT<Left>(&exchange[here], WEIGHT_STRIDE);
                let c0 = keys * TILE_STRIDE;
                o0 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c0], TILE_STRIDE), o0);
                let c1 = c0 + 2u;
                o1 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c1], TILE_STRIDE), o1);
                let c2 = c0 + 4u;
                o2 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c2], TILE_STRIDE), o2);
                let c3 = c0 + 6u;
                o3 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c3], TILE_STRIDE), o3);
                if WIDE {
                    let c4 = c0 + 8u;
                    o4 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c4], TILE_STRIDE), o4);
                    let c5 = c0 + 10u;
                    o5 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c5], TILE_STRIDE), o5);
                    let c6 = c0 + 12u;
                    o6 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c6], TILE_STRIDE), o6);
                    let c7 = c0 + 14u;
                    o7 = coopMultiplyAdd(weights, coopLoadT<Right>(&tile[c7], TILE_STRIDE), o7);
                }
            }
        }
        reduced[thread] = select(total, highest, turn == 0u);
        workgroupBarrier();
        if turn == 0u {
            shift = factor * max(reduced[2u * row], reduced[2u * row + 1u]);
        }
    }

    let result = subgroup * OWN;
    coopStoreT(o0, &exchange[result], RESULT_STRIDE);
    let second_result = result + 4u;
    coopStoreT(o1, &exchange[second_result], RESULT_STRIDE);
    let third_result = result + 8u;
    coopStoreT(o2, &exchange[third_result], RESULT_STRIDE);
    let fourth_result = result + 12u;
    coopStoreT(o3, &exchange[fourth_result], RESULT_STRIDE);
    workgroupBarrier();
    write(thread, image, first_query, head, 0u);
    if WIDE {
        workgroupBarrier();
        coopStoreT(o4, &exchange[result], RESULT_STRIDE);
        coopStoreT(o5, &exchange[second_result], RESULT_STRIDE);
        coopStoreT(o6, &exchange[third_result], RESULT_STRIDE);
        coopStoreT(o7, &exchange[fourth_result], RESULT_STRIDE);
        workgroupBarrier();
        write(thread, image, first_query, head, 8u);
    }
}
