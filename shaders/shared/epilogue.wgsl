// What is added to a convolution's sums before they are written: biases and the residual.
struct Epilogue {
    height: u32,
    width: u32,
    // Channels of the output.
    columns: u32,
    has_bias: u32,
    // 0, or one more than the place of the samples' biases among the vectors.
    sample_bias: u32,
    // 0 none, 1 as it is, 2 each pixel for 2 x 2, 3 the mean of 2 x 2.
    residual: u32,
    residual_a: u32,
    residual_b: u32,
}

@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(6) var<storage, read_write> residual_a: array<Value>;
@group(0) @binding(7) var<storage, read_write> residual_b: array<Value>;

fn residual_at(e: Epilogue, pixel: u32, column: u32) -> f32 {
    if column < e.residual_a {
        return f32(residual_a[pixel * e.residual_a + column]);
    }
    return f32(residual_b[pixel * e.residual_b + column - e.residual_a]);
}

// `row` counts pixels of all samples.
fn finish(e: Epilogue, row: u32, column: u32, sum: f32) -> f32 {
    var value = sum;
    if e.has_bias != 0u {
        value += bias[column];
    }
    let pixels = e.height * e.width;
    if e.sample_bias != 0u {
        value += vectors[e.sample_bias - 1u + row / pixels * e.columns + column];
    }
    if e.residual == 1u {
        value += residual_at(e, row, column);
    } else if e.residual != 0u {
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
