// The rows of a convolution's product: for each pixel of the output what lies under its taps.
#import conv_params

// Upper left tap of each row of the tile, and its sample; -1 beyond the last row.
var<workgroup> places: array<vec3<i32>, TILE_ROWS>;

fn find_places(first_row: u32, thread: u32) {
    let pixels = p.epilogue.height * p.epilogue.width;
    let reach = i32(p.kernel / 2u);
    for (var i = thread; i < TILE_ROWS; i += THREADS) {
        let row = first_row + i;
        let y = i32(row % pixels / p.epilogue.width * p.stride) - reach;
        let x = i32(row % p.epilogue.width * p.stride) - reach;
        places[i] = select(vec3(0, 0, -1), vec3(y, x, i32(row / pixels)), row < p.rows);
    }
}

// The input's pixel under tap (`dy`, `dx`) of a row of the tile; -1 outside of the image.
fn pixel_under(row: u32, dy: i32, dx: i32) -> i32 {
    let place = places[row];
    let y = place.x + dy;
    let x = place.y + dx;
    let inside = place.z >= 0 && y >= 0 && x >= 0 && y < i32(p.in_height << p.upsampled) && x < i32(p.in_width << p.upsampled);
    let pixel = (place.z * i32(p.in_height) + (y >> p.upsampled)) * i32(p.in_width) + (x >> p.upsampled);
    return select(-1, pixel, inside);
}

// What one step through the terms multiplies: a tap's channels of one of the two inputs.
struct Step {
    dy: i32,
    dx: i32,
    second: bool,
    // Channels of that input, and the first of the step.
    channels: u32,
    first_channel: u32,
    // Row of the weights that it begins with.
    weight_row: u32,
}

fn step_at(index: u32) -> Step {
    let steps = tap_steps();
    let steps_a = (p.channels_a + TERMS - 1u) / TERMS;
    let tap = index / steps;
    let chunk = index % steps;
    let second = chunk >= steps_a;
    let first_channel = select(chunk, chunk - steps_a, second) * TERMS;
    return Step(
        i32(tap / p.kernel),
        i32(tap % p.kernel),
        second,
        select(p.channels_a, p.channels_b, second),
        first_channel,
        tap * (p.channels_a + p.channels_b) + select(0u, p.channels_a, second) + first_channel,
    );
}
