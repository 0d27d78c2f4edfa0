// What is added to a convolution's sums before they are written, four columns at a time; see `epilogue`.
struct Epilogue {
    height: u32,
    width: u32,
    // Channels of the output, a multiple of four.
    columns: u32,
    has_bias: u32,
    // 0, or one more than the place of the samples' biases among the vectors.
    sample_bias: u32,
    // 0 none, 1 as it is, 2 each pixel for 2 x 2, 3 the mean of 2 x 2.
    residual: u32,
    // Multiples of four.
    residual_a: u32,
    residual_b: u32,
}

@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(6) var<storage, read_write> residual_a: array<vec4<Value>>;
@group(0) @binding(7) var<storage, read_write> residual_b: array<vec4<Value>>;

fn residual_at(e: Epilogue, pixel: u32, column: u32) -> vec4<f32> {
    if column < e.residual_a {
        return vec4<f32>(residual_a[(pixel * e.residual_a + column) / 4u]);
    }
    return vec4<f32>(residual_b[(pixel * e.residual_b + column - e.residual_a) / 4u]);
}

// `row` counts pixels of all samples.
fn finish(e: Epilogue, row: u32, column: u32, sum: vec4<f32>) -> vec4<f32> {
    var value = sum;
    if e.has_bias != 0u {
        value += bias[column / 4u];
    }
    if e.sample_bias != 0u {
        let at = e.sample_bias - 1u + row / (e.height * e.width) * e.columns + column;
        value += vec4(vectors[at], vectors[at + 1u], vectors[at + 2u], vectors[at + 3u]);
    }
    if e.residual == 1u {
        value += residual_at(e, row, column);
    } else if e.residual != 0u {
        let pixels = e.height * e.width;
        let sample = row / pixels;
        let y = row % pixels / e.width;
        let x = row % e.width;
        if e.residual == 2u {
            let pixel = (sample * (e.height / 2u) + y / 2u) * (e.width / 2u) + x / 2u;
            value += residual_at(e, pixel, column);
        } else {
            let pixel = (sample * 2u * e.height + 2u * y) * 2u * e.width + 2u * x;
            let upper = residual_at(e, pixel, column) + residual_at(e, pixel + 1u, column);
            let below = pixel + 2u * e.width;
            value += 0.25 * (upper + residual_at(e, below, column) + residual_at(e, below + 1u, column));
        }
    }
    return value;
}
