// Windows whose hidden patches are zero. Where a window is no multiple of the patch, patches at its lower and right borders
// are cut off.
#import split

struct Params {
    // Pixels of all samples.
    rows: u32,
    height: u32,
    width: u32,
    channels: u32,
    patch_size: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> input: array<Value>;
// [samples][patches]
@group(0) @binding(2) var<storage, read_write> hidden: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<Value>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.rows * p.channels {
        return;
    }
    let row = at / p.channels;
    let columns = (p.width + p.patch_size - 1u) / p.patch_size;
    let lines = (p.height + p.patch_size - 1u) / p.patch_size;
    let sample = row / (p.height * p.width);
    let y = row / p.width % p.height / p.patch_size;
    let x = row % p.width / p.patch_size;
    output[at] = select(input[at], Value(0.0), hidden[(sample * lines + y) * columns + x] != 0u);
}
