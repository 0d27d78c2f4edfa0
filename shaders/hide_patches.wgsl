// Which patches are hidden: those with the largest numbers, the later of equals first. Each thread counts the patches that
// come before its own.
#import split

struct Params {
    samples: u32,
    patches: u32,
    hidden: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [samples][patches]
@group(0) @binding(1) var<storage, read_write> noise: array<u32>;
// [samples][patches], 1 where it is hidden.
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 64u + thread;
    if group >= split.end || at >= p.samples * p.patches {
        return;
    }
    let first = at / p.patches * p.patches;
    let own = noise[at];
    var before = 0u;
    for (var other = first; other < first + p.patches; other++) {
        let value = noise[other];
        before += u32(value > own || (value == own && other > at));
    }
    output[at] = u32(before < p.hidden);
}
