// One step of AdamW (Loshchilov and Hutter 2019). Gradients are forgotten.
#import split

struct Params {
    values: u32,
}

// What differs from step to step.
struct Update {
    // What gradients are multiplied by.
    scale: f32,
    beta1: f32,
    // One less beta1.
    rest1: f32,
    beta2: f32,
    rest2: f32,
    // The learning rate, freed from the bias of the first mean.
    rate: f32,
    // Root of the second mean's bias.
    root: f32,
    epsilon: f32,
    // What weight decay leaves.
    kept: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> update: Update;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradients: array<f32>;
@group(0) @binding(4) var<storage, read_write> first: array<f32>;
@group(0) @binding(5) var<storage, read_write> second: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let at = group * 256u + thread;
    if group >= split.end || at >= p.values {
        return;
    }
    let gradient = gradients[at] * update.scale;
    let mean = fma(update.beta1, first[at], update.rest1 * gradient);
    let square = fma(update.beta2, second[at], update.rest2 * gradient * gradient);
    first[at] = mean;
    second[at] = square;
    values[at] = values[at] * update.kept - update.rate * mean / (sqrt(square) / update.root + update.epsilon);
    gradients[at] = 0.0;
}
