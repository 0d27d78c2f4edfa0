// The same as `head_patches` with the second layer on matrix units: f16 factors, f32 sums. Four subgroups have 32 pixels each.
#import split
#import finite
#import bilinear
#import head

const THREADS: u32 = 4u * SUBGROUP;
const PIXELS: u32 = PATCH_HEIGHT * PATCH_WIDTH;
// Activations of the second layer at a time; of the first it is TERMS.
const OUTPUTS: u32 = 32u;
const BIASES: u32 = TERMS / 4u;
// Lengths of rows, of eight f16 or four f32 each, so that neighbouring rows begin in different banks.
const LEFT_STRIDE: u32 = TERMS / 8u + 1u;
const RIGHT_STRIDE: u32 = OUTPUTS / 8u + 1u;
const RESULT_STRIDE: u32 = OUTPUTS / 4u + 2u;

// [pixels][activations of the first layer] in f16, then [pixels][activations of the second] in f32
var<workgroup> exchange: array<vec4<f32>, PIXELS * RESULT_STRIDE>;
// [first][second]
var<workgroup> tile: array<vec4<f32>, TERMS * RIGHT_STRIDE>;

// Eight values as f16, numbers beyond its range as its largest.
fn packed(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
    let x = select(a, clamp(a, vec4(-65504.0), vec4(65504.0)), are_finite(a));
    let y = select(b, clamp(b, vec4(-65504.0), vec4(65504.0)), are_finite(b));
    return vec4(pack2x16float(x.xy), pack2x16float(x.zw), pack2x16float(y.xy), pack2x16float(y.zw));
}

fn fill_left(head: u32, chunk: u32, scale: f32, thread: u32) {
    for (var i = thread; i < PIXELS * TERMS / 8u; i += THREADS) {
        let pixel = i / (TERMS / 8u);
        let part = i % (TERMS / 8u);
        let channel = head * p.hidden_first + chunk + 8u * part;
        var a = vec4(0.0);
        var b = vec4(0.0);
        if chunk + 8u * part < p.hidden_first {
            a = activations(channel, 2u * part, pixel / PATCH_WIDTH, pixel % PATCH_WIDTH, scale);
        }
        if chunk + 8u * part + 4u < p.hidden_first {
            b = activations(channel + 4u, 2u * part + 1u, pixel / PATCH_WIDTH, pixel % PATCH_WIDTH, scale);
        }
        exchange[pixel * LEFT_STRIDE + part] = bitcast<vec4<f32>>(packed(a, b));
    }
}

// Weights from one of the first layer's activations to four of the second's.
fn column_of_weights(at: u32, output: u32) -> vec4<f32> {
    return vec4(
        weight_at(at, output),
        weight_at(at + p.hidden_first, output + 1u),
        weight_at(at + 2u * p.hidden_first, output + 2u),
        weight_at(at + 3u * p.hidden_first, output + 3u),
    );
}

fn fill_right(start: u32, chunk: u32, second: u32, thread: u32) {
    for (var i = thread; i < TERMS * OUTPUTS / 8u; i += THREADS) {
        let term = i % TERMS;
        let output = second + i / TERMS * 8u;
        let at = start + output * p.hidden_first + chunk + term;
        var value = vec4(0u);
        if chunk + term < p.hidden_first {
            value = packed(column_of_weights(at, output), column_of_weights(at + 4u * p.hidden_first, output + 4u));
        }
        tile[term * RIGHT_STRIDE + i / TERMS] = bitcast<vec4<f32>>(value);
    }
}

// A pixel's four activations of the second layer.
fn activated(at: u32, start: u32, output: u32) -> vec4<f32> {
    return relu4(exchange[at] + four_weights(start, output));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    // Not by `group_index`: what a function returns is not known to be the same for all threads, as matrix units demand.
    let index = split.first + id.y * GRID_WIDTH + id.x;
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

    let y = top + thread / PATCH_WIDTH;
    let x = left + thread % PATCH_WIDTH;
    let to = (local_head * p.rows + (sample * p.height + y) * p.width + x) * p.classes;
    for (var second = 0u; second < p.hidden_second; second += OUTPUTS) {
        var s00 = Sums();
        var s01 = Sums();
        var s10 = Sums();
        var s11 = Sums();
        for (var chunk = 0u; chunk < p.hidden_first; chunk += TERMS) {
            find_biases(head, chunk, thread);
            workgroupBarrier();
            fill_left(head, chunk, scale, thread);
            fill_right(second_weight + head * p.hidden_second * p.hidden_first, chunk, second, thread);
            workgroupBarrier();
            for (var term = 0u; term < TERMS; term += SIZE) {
                let first_row = subgroup * 2u * SIZE * LEFT_STRIDE + term / 8u;
                let second_row = first_row + SIZE * LEFT_STRIDE;
                let a0 = coopLoadT<Left>(&exchange[first_row], LEFT_STRIDE);
                let a1 = coopLoadT<Left>(&exchange[second_row], LEFT_STRIDE);
                let first_column = term * RIGHT_STRIDE;
                let b0 = coopLoadT<Right>(&tile[first_column], RIGHT_STRIDE);
                s00 = coopMultiplyAdd(a0, b0, s00);
                s10 = coopMultiplyAdd(a1, b0, s10);
                let second_column = first_column + SIZE / 8u;
                let b1 = coopLoadT<Right>(&tile[second_column], RIGHT_STRIDE);
                s01 = coopMultiplyAdd(a0, b1, s01);
                s11 = coopMultiplyAdd(a1, b1, s11);
            }
        }
        workgroupBarrier();
        let to00 = subgroup * 2u * SIZE * RESULT_STRIDE;
        coopStoreT(s00, &exchange[to00], RESULT_STRIDE);
        let to01 = to00 + SIZE / 4u;
        coopStoreT(s01, &exchange[to01], RESULT_STRIDE);
        let to10 = to00 + SIZE * RESULT_STRIDE;
        coopStoreT(s10, &exchange[to10], RESULT_STRIDE);
        let to11 = to10 + SIZE / 4u;
        coopStoreT(s11, &exchange[to11], RESULT_STRIDE);
        workgroupBarrier();

        // A thread a pixel.
        if y < p.height && x < p.width {
            let bias = second_bias + head * p.hidden_second;
            let own = thread * RESULT_STRIDE;
            let v0 = activated(own, bias, second);
            let v1 = activated(own + 1u, bias, second + 4u);
            let v2 = activated(own + 2u, bias, second + 8u);
            let v3 = activated(own + 3u, bias, second + 12u);
            let v4 = activated(own + 4u, bias, second + 16u);
            let v5 = activated(own + 5u, bias, second + 20u);
            let v6 = activated(own + 6u, bias, second + 24u);
            let v7 = activated(own + 7u, bias, second + 28u);
            for (var label = 0u; label < p.classes; label++) {
                let start = third_weight + (head * p.classes + label) * p.hidden_second;
                var sum = dot(v0, four_weights(start, second));
                sum += dot(v1, four_weights(start, second + 4u));
                sum += dot(v2, four_weights(start, second + 8u));
                sum += dot(v3, four_weights(start, second + 12u));
                sum += dot(v4, four_weights(start, second + 16u));
                sum += dot(v5, four_weights(start, second + 20u));
                sum += dot(v6, four_weights(start, second + 24u));
                sum += dot(v7, four_weights(start, second + 28u));
                if second == 0u {
                    sum += weights[third_bias + head * p.classes + label];
                } else {
                    sum += logits[to + label];
                }
                logits[to + label] = sum;
            }
        }
    }
}
