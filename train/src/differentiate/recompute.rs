//! Which parts of the forward pass are computed again.

use std::ops::Range;

use mdm::plan::{Op, Param, ParamId};

/// Ranges of operations, one a block of the network and in its order. Tensors that leave no range are computed again when
/// the gradients of their range are.
pub(super) fn segments(ops: &[Op], params: &[Param]) -> Vec<Range<usize>> {
    let mut segments: Vec<Range<usize>> = Vec::new();
    let mut current: Option<&str> = None;
    let mut start = 0;
    // Operations without parameters belong to what follows them: moments to their norm, attention to its projection.
    let mut pending = 0;
    for (index, op) in ops.iter().enumerate() {
        let Some(block) = weight(op).map(|id| block(&params[id].name)) else { continue };
        if current.is_some_and(|current| current != block) {
            segments.push(start..pending);
            start = pending;
        }
        current = Some(block);
        pending = index + 1;
    }
    segments.push(start..ops.len());
    segments
}

/// The part of a parameter's name that says which block it belongs to: `output_blocks.3`.
fn block(name: &str) -> &str {
    let end = name.match_indices('.').nth(1).map_or(name.len(), |(at, _)| at);
    &name[..end]
}

fn weight(op: &Op) -> Option<ParamId> {
    match op {
        Op::Linear { weight, .. } | Op::NormCoefficients { weight, .. } => Some(*weight),
        Op::Conv(conv) => Some(conv.weight),
        _ => None,
    }
}
