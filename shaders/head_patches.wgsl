// The same as `head_logits` where the first layers' channels are multiples of four, which are read at a time. A workgroup has
// 16 x 8 pixels of one head: where they lie in each map is found once for each row and column.
#import split
#import finite
#import bilinear
#import head

const THREADS: u32 = 64u;
// Activations of the first and of the second layer at a time.
const CHUNK: u32 = 16u;
const BIASES: u32 = CHUNK / 4u;
const OUTPUTS: u32 = 32u;
// Labels whose logits are added up at a time.
const LABELS: u32 = 4u;
// Vectors of four pixels in a row of `tile`, one of them of nothing, so that rows begin in different banks.
const GROUPS: u32 = PATCH_HEIGHT * PATCH_WIDTH / 4u;
const STRIDE: u32 = GROUPS + 1u;

// [activations of the first layer][pixels], later a quarter of the logits each
var<workgroup> tile: array<vec4<f32>, 16 * 33>;
// [first][second]
var<workgroup> weight_tile: array<vec4<f32>, 16 * 8>;

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
            let row = group / (PATCH_WIDTH / 4u);
            let column = group % (PATCH_WIDTH / 4u) * 4u;
            v0 = activations(channel, quad, row, column, scale);
            v1 = activations(channel, quad, row, column + 1u, scale);
            v2 = activations(channel, quad, row, column + 2u, scale);
            v3 = activations(channel, quad, row, column + 3u, scale);
        }
        let to = 4u * quad * STRIDE + group;
        tile[to] = vec4(v0.x, v1.x, v2.x, v3.x);
        tile[to + STRIDE] = vec4(v0.y, v1.y, v2.y, v3.y);
        tile[to + 2u * STRIDE] = vec4(v0.z, v1.z, v2.z, v3.z);
        tile[to + 3u * STRIDE] = vec4(v0.w, v1.w, v2.w, v3.w);
    }
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
            find_biases(head, chunk, thread);
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
        a0 = relu4(a0 + bias_a);
        b0 = relu4(b0 + bias_b);
        a1 = relu4(a1 + bias_a);
        b1 = relu4(b1 + bias_b);
        a2 = relu4(a2 + bias_a);
        b2 = relu4(b2 + bias_b);
        a3 = relu4(a3 + bias_a);
        b3 = relu4(b3 + bias_b);
        a4 = relu4(a4 + bias_a);
        b4 = relu4(b4 + bias_b);
        a5 = relu4(a5 + bias_a);
        b5 = relu4(b5 + bias_b);
        a6 = relu4(a6 + bias_a);
        b6 = relu4(b6 + bias_b);
        a7 = relu4(a7 + bias_a);
        b7 = relu4(b7 + bias_b);

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
