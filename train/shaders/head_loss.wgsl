// Weighted cross entropy of a batch, and its gradient in the place of the logits. A thread a sample; a workgroup's losses
// are added up.
#import split

struct Params {
    rows: u32,
    classes: u32,
    // Where the sums begin.
    to: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [rows]
@group(0) @binding(1) var<storage, read> labels: array<u32>;
// Of each class; they add up to 1 over the batch.
@group(0) @binding(2) var<storage, read> weights: array<f32>;
// [rows][classes]
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    if group >= split.end {
        return;
    }
    let row = group * 64u + thread;
    var loss = 0.0;
    if row < p.rows {
        let first = row * p.classes;
        let label = labels[row];
        let weight = weights[label];
        let wanted = logits[first + label];
        var largest = wanted;
        for (var class_index = 0u; class_index < p.classes; class_index++) {
            largest = max(largest, logits[first + class_index]);
        }
        var sum = 0.0;
        for (var class_index = 0u; class_index < p.classes; class_index++) {
            sum += exp(logits[first + class_index] - largest);
        }
        loss = weight * (log(sum) + (largest - wanted));
        for (var class_index = 0u; class_index < p.classes; class_index++) {
            let probability = exp(logits[first + class_index] - largest) / sum;
            logits[first + class_index] = weight * (probability - select(0.0, 1.0, class_index == label));
        }
    }
    partial[thread] = loss;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] += partial[thread + half];
        }
    }
    if thread == 0u {
        losses[p.to + group] = partial[0];
    }
}
