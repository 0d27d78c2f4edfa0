// The derivative of `u * sigmoid(u)`.
fn silu_slope(u: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + exp(-u));
    return sigmoid * fma(u, 1.0 - sigmoid, 1.0);
}
