// The same as `conv_cooperative` with Metal's matrices of 8 x 8 values, which are loaded from scalars. Eight subgroups, two along
// the rows and four along the columns, each with 4 x 2 matrices of SIZE x SIZE sums. The next step's factors are on their way
// while this one's are multiplied.
#import split
#import epilogue

const SUBGROUPS: u32 = 8u;
const THREADS: u32 = SUBGROUPS * SUBGROUP;
const TILE_ROWS: u32 = 8u * SIZE;
const TILE_COLUMNS: u32 = 8u * SIZE;
#import rows

@group(0) @binding(1) var<storage, read_write> input_a: array<f16>;
@group(0) @binding(2) var<storage, read_write> input_b: array<f16>;
// [taps][channels][columns]
@group(0) @binding(3) var<storage, read> weight: array<f16>;
@group(0) @binding(8) var<storage, read_write> output: array<Result>;

// Rows in workgroup memory end with a few values of nothing, so that neighbouring rows lie in different banks.
const LEFT_STRIDE: u32 = (TERMS + 8u) / PACK;
const RIGHT_STRIDE: u32 = (TILE_COLUMNS + 8u) / PACK;
var<workgroup> left: array<f16, TILE_ROWS * LEFT_STRIDE>;
var<workgroup> right: array<f16, TERMS * RIGHT_STRIDE>;
var<workgroup> finished: array<f32, SUBGROUPS * SIZE * SIZE>;

// Loads of a thread for one step.
#for i in LEFT_LOADS
var<private> next_left_{i}: f16;
#end
#for i in RIGHT_LOADS
var<private> next_right_{i}: f16;
#end

fn fetch(index: u32, first_column: u32, thread: u32) {
    let step = step_at(index);
#for i in LEFT_LOADS
    {
        let load = {i}u * THREADS + thread;
        let channel = step.first_channel + load % (TERMS / PACK) * PACK;
        let pixel = pixel_under(load / (TERMS / PACK), step.dy, step.dx);
        var value = f16();
        if pixel >= 0 && channel < step.channels {
            let at = (u32(pixel) * step.channels + channel) / PACK;
            if step.second {
                value = input_b[at];
            } else {
                value = input_a[at];
            }
        }
        next_left_{i} = value;
    }
#end
#for i in RIGHT_LOADS
    {
        let load = {i}u * THREADS + thread;
        let term = load / (TILE_COLUMNS / PACK);
        let column = first_column + load % (TILE_COLUMNS / PACK) * PACK;
        var value = f16();
        if step.first_channel + term < step.channels && column < p.epilogue.columns {
            value = weight[((step.weight_row + term) * p.epilogue.columns + column) / PACK];
        }
        next_right_{i} = value;
    }
#end
}

fn store(thread: u32) {
#for i in LEFT_LOADS
    {
        let load = {i}u * THREADS + thread;
        left[load / (TERMS / PACK) * LEFT_STRIDE + load % (TERMS / PACK)] = next_left_{i};
    }
#end
#for i in RIGHT_LOADS
    {
        let load = {i}u * THREADS + thread;
        right[load / (TILE_COLUMNS / PACK) * RIGHT_STRIDE + load % (TILE_COLUMNS / PACK)] = next_right_{i};
    }
#end
}

// Writes the subgroup's matrix that was stored to `finished`, whose first sum belongs to (`row`, `column`).
fn write(subgroup: u32, lane: u32, part: u32, row: u32, column: u32) {
    let columns = p.epilogue.columns;
    workgroupBarrier();
    for (var i = lane; i < SIZE * SIZE; i += SUBGROUP) {
        let y = row + i / SIZE;
        let x = column + i % SIZE;
        if y < p.rows && x < columns {
            let sum = finished[subgroup * SIZE * SIZE + i];
            if p.splits > 1u {
                output[(part * p.rows + y) * columns + x] = Result(sum);
            } else {
                output[y * columns + x] = Result(finish(p.epilogue, y, x, sum));
            }
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // Not by `group_index`: what a function returns is not known to be the same for all threads, as matrix units demand.
    let group = split.first + id.y * GRID_WIDTH + id.x;
    if group >= split.end {
        return;
    }
    let column_tiles = (p.epilogue.columns + TILE_COLUMNS - 1u) / TILE_COLUMNS;
    let row_tiles = (p.rows + TILE_ROWS - 1u) / TILE_ROWS;
    let first_column = group % column_tiles * TILE_COLUMNS;
    let first_row = group / column_tiles % row_tiles * TILE_ROWS;
    let part = group / (column_tiles * row_tiles);

    find_places(first_row, thread);
    workgroupBarrier();
    var c00 = Sums();
    var c01 = Sums();
    var c10 = Sums();
    var c11 = Sums();
    var c20 = Sums();
    var c21 = Sums();
    var c30 = Sums();
    var c31 = Sums();
    let own_row = subgroup / 4u * 4u * SIZE;
    let own_column = subgroup % 4u * 2u * SIZE;
    let steps = p.kernel * p.kernel * tap_steps();
    let share = (steps + p.splits - 1u) / p.splits;
    let end = min(steps, (part + 1u) * share);
    fetch(min(part * share, steps - 1u), first_column, thread);
    for (var index = part * share; index < end; index++) {
        workgroupBarrier();
        store(thread);
        workgroupBarrier();
        if index + 1u < end {
            fetch(index + 1u, first_column, thread);
        }
        for (var term = 0u; term < TERMS; term += SIZE) {
            let from_left = own_row * LEFT_STRIDE + term / PACK;
            let from_right = term * RIGHT_STRIDE + own_column / PACK;
            let second_right = from_right + SIZE / PACK;
            let b0 = coopLoadT<Right>(&right[from_right], RIGHT_STRIDE);
            let b1 = coopLoadT<Right>(&right[second_right], RIGHT_STRIDE);
            let a0 = coopLoadT<Left>(&left[from_left], LEFT_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            let second_left = from_left + SIZE * LEFT_STRIDE;
            let a1 = coopLoadT<Left>(&left[second_left], LEFT_STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            let third_left = second_left + SIZE * LEFT_STRIDE;
            let a2 = coopLoadT<Left>(&left[third_left], LEFT_STRIDE);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            let fourth_left = third_left + SIZE * LEFT_STRIDE;
            let a3 = coopLoadT<Left>(&left[fourth_left], LEFT_STRIDE);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
    }

    let to = subgroup * SIZE * SIZE;
    let row = first_row + own_row;
    let column = first_column + own_column;
    coopStoreT(c00, &finished[to], SIZE);
    write(subgroup, lane, part, row, column);
    coopStoreT(c01, &finished[to], SIZE);
    write(subgroup, lane, part, row, column + SIZE);
    coopStoreT(c10, &finished[to], SIZE);
    write(subgroup, lane, part, row + SIZE, column);
    coopStoreT(c11, &finished[to], SIZE);
    write(subgroup, lane, part, row + SIZE, column + SIZE);
    coopStoreT(c20, &finished[to], SIZE);
    write(subgroup, lane, part, row + 2u * SIZE, column);
    coopStoreT(c21, &finished[to], SIZE);
    write(subgroup, lane, part, row + 2u * SIZE, column + SIZE);
    coopStoreT(c30, &finished[to], SIZE);
    write(subgroup, lane, part, row + 3u * SIZE, column);
    coopStoreT(c31, &finished[to], SIZE);
    write(subgroup, lane, part, row + 3u * SIZE, column + SIZE);
}
