// The rows of a convolution's product, PACK channels a value (`Pack`): for each pixel of the output what lies under its taps, loaded
// into registers a step ahead. A step is a tap and TERMS channels of one of the inputs. Steps of all taps follow one another for the
// same channels, most of whose pixels are in the nearest cache then.
@group(0) @binding(1) var<storage, read_write> input_a: array<Pack>;
@group(0) @binding(2) var<storage, read_write> input_b: array<Pack>;

// Values of a row of terms.
const ROW_PACKS: u32 = TERMS / PACK;

// For each load of a thread: its row's pixel of the input (upper left tap; far outside beyond the last row), the sample's first row of
// pixels, what was loaded, and whether it counts.
#for i in LEFT_LOADS
var<private> row_y_{i}: i32;
var<private> row_x_{i}: i32;
var<private> row_start_{i}: u32;
var<private> left_{i}: Pack;
var<private> inside_{i}: bool;
#end
// The step that is loaded next.
var<private> tap_y: u32;
var<private> tap_x: u32;
var<private> chunk: u32;

// Row of the tile that a thread's load belongs to.
fn row_of(load: u32, thread: u32) -> u32 {
    return load * (THREADS / ROW_PACKS) + thread / ROW_PACKS;
}

fn find_rows(first_row: u32, first_step: u32, thread: u32) {
    let pixels = p.epilogue.height * p.epilogue.width;
    let reach = i32(p.kernel / 2u);
#for i in LEFT_LOADS
    let row_{i} = first_row + row_of({i}u, thread);
    let pixel_{i} = row_{i} % pixels;
    row_y_{i} = select(-1000000000, i32(pixel_{i} / p.epilogue.width * p.stride) - reach, row_{i} < p.rows);
    row_x_{i} = i32(pixel_{i} % p.epilogue.width * p.stride) - reach;
    row_start_{i} = row_{i} / pixels * p.in_height;
#end
    let taps = p.kernel * p.kernel;
    chunk = first_step / taps;
    tap_y = first_step % taps / p.kernel;
    tap_x = first_step % p.kernel;
}

// The weights of a step.
struct StepWeights {
    tap: u32,
    // First of its channels, among those of both inputs.
    channel: u32,
    // How many there are from it on in its input; none beyond the last step.
    left: u32,
}

// Loads the step's pixels, and goes on to the next one; beyond the last step something is loaded that nobody needs. Nothing here
// depends on what is loaded: it arrives while the tile before is multiplied.
fn gather(thread: u32) -> StepWeights {
    let chunks_a = (p.channels_a + TERMS - 1u) / TERMS;
    let second = chunk >= chunks_a;
    let channels = select(p.channels_a, p.channels_b, second);
    let first_channel = select(chunk, chunk - chunks_a, second) * TERMS;
    let left = select(0u, channels - first_channel, channels > first_channel);
    let pack = thread % ROW_PACKS;
    let in_channels = pack * PACK < left;
    let row_packs = channels / PACK;
    let first_pack = first_channel / PACK + pack;
    let height = p.in_height << p.upsampled;
    let width = p.in_width << p.upsampled;
#for i in LEFT_LOADS
    let y_{i} = u32(row_y_{i} + i32(tap_y));
    let x_{i} = u32(row_x_{i} + i32(tap_x));
    inside_{i} = in_channels && y_{i} < height && x_{i} < width;
    let pixel_{i} = (row_start_{i} + (y_{i} >> p.upsampled)) * p.in_width + (x_{i} >> p.upsampled);
    let at_{i} = select(0u, pixel_{i} * row_packs + first_pack, inside_{i});
#end
    if second {
#for i in LEFT_LOADS
        left_{i} = input_b[at_{i}];
#end
    } else {
#for i in LEFT_LOADS
        left_{i} = input_a[at_{i}];
#end
    }
    let weights = StepWeights(tap_y * p.kernel + tap_x, select(0u, p.channels_a, second) + first_channel, left);
    tap_x += 1u;
    if tap_x == p.kernel {
        tap_x = 0u;
        tap_y += 1u;
        if tap_y == p.kernel {
            tap_y = 0u;
            chunk += 1u;
        }
    }
    return weights;
}
