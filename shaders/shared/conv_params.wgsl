// A convolution as a product: its rows are the pixels of all samples, its columns the output's channels, its terms the channels
// under each tap.
struct Params {
    epilogue: Epilogue,
    rows: u32,
    // Input before it is upsampled.
    in_height: u32,
    in_width: u32,
    channels_a: u32,
    channels_b: u32,
    // 1 or 3.
    kernel: u32,
    stride: u32,
    // 1 where each pixel of the input stands for 2 x 2.
    upsampled: u32,
    splits: u32,
}
@group(0) @binding(0) var<uniform> p: Params;

// Steps for each tap.
fn tap_steps() -> u32 {
    return (p.channels_a + TERMS - 1u) / TERMS + (p.channels_b + TERMS - 1u) / TERMS;
}
