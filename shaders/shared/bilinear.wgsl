// Where an output position lies between two input positions (align_corners = false), in exact integer arithmetic.
struct Between {
    first: u32,
    second: u32,
    // Share of the second.
    share: f32,
}

fn between(at: u32, size: u32, own: u32) -> Between {
    let position = i32((2u * at + 1u) * own) - i32(size);
    if position <= 0 {
        return Between(0u, 0u, 0.0);
    }
    let whole = 2u * size;
    let first = min(u32(position) / whole, own - 1u);
    return Between(first, min(first + 1u, own - 1u), f32(u32(position) - first * whole) / f32(whole));
}
