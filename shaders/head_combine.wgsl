// Softmax of each head's logits, and what the ensemble makes of them: mean probabilities or votes, and the uncertainty
// (entropy of the mean minus mean of the entropies, in nats).
#import split
#import finite

struct Params {
    rows: u32,
    classes: u32,
    // Of the ensemble, and those whose logits are here.
    heads: u32,
    here: u32,
    // Whether they are the first, and whether they are the last.
    first: u32,
    last: u32,
    vote: u32,
    uncertainty: u32,
    // Where votes [rows][classes] and entropies [rows] lie in `scratch`, after the logits [here][rows][classes].
    votes: u32,
    entropies: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>;
// [rows][classes + uncertainty]
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

// The limit of `x ln x` at 0 is 0.
fn entropy_term(x: f32) -> f32 {
    return select(0.0, -x * log(max(x, 1e-37)), x > 0.0);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let row = group * 64u + thread;
    if group >= split.end || row >= p.rows {
        return;
    }
    let to = row * (p.classes + p.uncertainty);
    let votes = p.votes + row * p.classes;
    if p.first != 0u {
        for (var label = 0u; label < p.classes; label++) {
            output[to + label] = 0.0;
            if p.vote != 0u {
                scratch[votes + label] = 0.0;
            }
        }
    }
    var entropy = 0.0;
    if p.first == 0u && p.uncertainty != 0u {
        entropy = scratch[p.entropies + row];
    }
    for (var head = 0u; head < p.here; head++) {
        let start = (head * p.rows + row) * p.classes;
        var highest = scratch[start];
        var best = 0u;
        var finite = is_finite(highest);
        for (var label = 1u; label < p.classes; label++) {
            finite &= is_finite(scratch[start + label]);
            if scratch[start + label] > highest {
                highest = scratch[start + label];
                best = label;
            }
        }
        var sum = 0.0;
        for (var label = 0u; label < p.classes; label++) {
            sum += exp(scratch[start + label] - highest);
        }
        for (var label = 0u; label < p.classes; label++) {
            var probability = exp(scratch[start + label] - highest) / sum;
            if !finite {
                probability = not_a_number(probability);
            }
            output[to + label] += probability;
            if p.uncertainty != 0u {
                entropy += entropy_term(probability);
            }
        }
        if p.vote != 0u {
            var vote = 1.0;
            if !finite {
                vote = not_a_number(vote);
            }
            scratch[votes + best] += vote;
        }
    }
    if p.last == 0u {
        if p.uncertainty != 0u {
            scratch[p.entropies + row] = entropy;
        }
        return;
    }
    let share = 1.0 / f32(p.heads);
    var mean_entropy = 0.0;
    for (var label = 0u; label < p.classes; label++) {
        let probability = output[to + label] * share;
        mean_entropy += entropy_term(probability);
        output[to + label] = probability;
        if p.vote != 0u {
            output[to + label] = scratch[votes + label] * share;
        }
    }
    if p.uncertainty != 0u {
        // Not negative but for rounding.
        output[to + p.classes] = max(mean_entropy - entropy * share, 0.0);
    }
}
