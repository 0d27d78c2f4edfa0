// What keeps an overflow from turning into ordinary numbers. Compilers may assume that there are no others, and the maximum
// of a number and something that is none is the number, so these look at bits.

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn are_finite(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7f800000u)) != vec4(0x7f800000u);
}

// Not a number, whatever `x` is.
fn not_a_number(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) | 0x7fc00000u);
}

// Negative numbers as zero; infinities and what is not a number as they are.
fn relu(x: f32) -> f32 {
    return select(x, 0.0, bitcast<u32>(x) - 0x80000000u < 0x7f800000u);
}

fn relu4(x: vec4<f32>) -> vec4<f32> {
    return select(x, vec4(0.0), bitcast<vec4<u32>>(x) - vec4(0x80000000u) < vec4(0x7f800000u));
}
