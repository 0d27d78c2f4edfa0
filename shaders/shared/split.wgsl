// The part of an operation's workgroups that a dispatch computes. Operations are cut into several submissions where one
// would keep the device busy for too long.
struct Split {
    first: u32,
    end: u32,
}
var<immediate> split: Split;

// Workgroups of a row of the dispatch's grid; the host's `GRID_WIDTH` is the same.
const GRID_WIDTH: u32 = 32768u;

fn group_index(id: vec3<u32>) -> u32 {
    return split.first + id.y * GRID_WIDTH + id.x;
}
