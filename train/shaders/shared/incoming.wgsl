// What a reader sends back into a tensor that it read as it is or resampled, normalised or not.
struct Reader {
    // Of the gradient of what was read.
    height: u32,
    width: u32,
    channels: u32,
    // Where the tensor's channels begin in it.
    first_channel: u32,
    // How the tensor was read: 0 as it is, 1 each pixel for 2 x 2, 2 the mean of 2 x 2.
    resample: u32,
    // 0, or one more than the place of the norm's coefficients among the vectors.
    coefficients: u32,
    silu: u32,
    // Which of several gradients it is.
    buffer: u32,
}

// The gradient of what was read, at row `y` and column `x` of the tensor. `gradient_at` is the shader's own.
fn incoming(r: Reader, sample: u32, y: u32, x: u32, channel: u32) -> f32 {
    let first = r.first_channel + channel;
    if r.resample == 0u {
        return gradient_at(r.buffer, ((sample * r.height + y) * r.width + x) * r.channels + first);
    }
    if r.resample == 1u {
        let at = ((sample * r.height + 2u * y) * r.width + 2u * x) * r.channels + first;
        let below = at + r.width * r.channels;
        let upper = gradient_at(r.buffer, at) + gradient_at(r.buffer, at + r.channels);
        return upper + (gradient_at(r.buffer, below) + gradient_at(r.buffer, below + r.channels));
    }
    return 0.25 * gradient_at(r.buffer, ((sample * r.height + y / 2u) * r.width + x / 2u) * r.channels + first);
}

// Where the multiplier of a channel lies among the vectors; its summand comes `r.channels` later.
fn coefficients_at(r: Reader, sample: u32, channel: u32) -> u32 {
    return r.coefficients - 1u + sample * 2u * r.channels + r.first_channel + channel;
}
