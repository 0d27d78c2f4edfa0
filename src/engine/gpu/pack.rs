//! Weights in the order in which shaders read them.

use std::ops::Range;

use super::conv::TERM_PACK;
use crate::engine::winograd::{points as transformed_points, transform_filter};

/// Threads that pack side by side.
const PACKERS: usize = 8;

/// Values below which one thread does it all.
const FEW: usize = 1 << 17;

/// Inputs whose filters are read together: what is written for them stays in a core's cache.
const BLOCK: usize = 8;

/// A kernel `[out, in, taps...]` as `[taps][in][out]`, with rows of zeros up to a multiple of eight.
pub(super) fn taps_first(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let taps: usize = shape[2..].iter().product();
    let mut packed = vec![0.0; (taps * inputs).next_multiple_of(TERM_PACK) * outputs];
    transposed(values, (outputs, inputs), taps, &mut packed[..taps * inputs * outputs], |filter, put| {
        for (tap, &value) in filter.iter().enumerate() {
            put(tap, value);
        }
    });
    packed
}

/// A 3x3 kernel in Winograd's domain, `[36][in][out]`.
pub(super) fn winograd(values: &[f32], shape: &[usize]) -> Vec<f32> {
    const POINTS: usize = transformed_points(4);
    let (outputs, inputs) = (shape[0], shape[1]);
    let mut packed = vec![0.0; POINTS * outputs * inputs];
    transposed(values, (outputs, inputs), 9, &mut packed, |filter, put| transform_filter(4, filter, put));
    packed
}

/// Goes through the filters of `values`, `[out][in][filter]`, and has `transform` put numbered values of each to
/// `[number][in][out]`. Threads have inputs of their own. They are not those of a pool: whoever calls may hold a lock that
/// other work of the pool waits for.
fn transposed(
    values: &[f32],
    (outputs, inputs): (usize, usize),
    filter: usize,
    packed: &mut [f32],
    transform: impl Fn(&[f32], &mut dyn FnMut(usize, f32)) + Sync,
) {
    if values.is_empty() {
        return;
    }
    let threads = if values.len() < FEW {
        1
    } else {
        std::thread::available_parallelism().map_or(1, usize::from).min(PACKERS)
    };
    let share = inputs.div_ceil(threads).next_multiple_of(BLOCK);
    let ranges: Vec<Range<usize>> =
        (0..inputs).step_by(share).map(|first| first..inputs.min(first + share)).collect();
    let mut parts: Vec<Vec<&mut [f32]>> = ranges.iter().map(|_| Vec::new()).collect();
    for plane in packed.chunks_exact_mut(inputs * outputs) {
        for (part, own) in parts.iter_mut().zip(plane.chunks_mut(share * outputs)) {
            part.push(own);
        }
    }
    let work = |range: Range<usize>, mut planes: Vec<&mut [f32]>| {
        for block in range.clone().step_by(BLOCK) {
            for out in 0..outputs {
                for input in block..range.end.min(block + BLOCK) {
                    let start = (out * inputs + input) * filter;
                    let to = (input - range.start) * outputs + out;
                    transform(&values[start..start + filter], &mut |number, value| {
                        planes[number][to] = value;
                    });
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let mut all = ranges.into_iter().zip(parts);
        let own = all.next();
        for (range, planes) in all {
            scope.spawn(|| work(range, planes));
        }
        if let Some((range, planes)) = own {
            work(range, planes);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_transposed_whatever_the_threads() {
        for (outputs, inputs, taps) in [(3, 5, 9), (1, 1, 1), (130, 150, 9), (520, 257, 1)] {
            let values: Vec<f32> = (0..outputs * inputs * taps).map(|i| i as f32).collect();
            let packed = taps_first(&values, &[outputs, inputs, taps]);
            let rows = taps * inputs;
            assert_eq!(packed.len(), rows.next_multiple_of(TERM_PACK) * outputs);
            for (at, &value) in packed.iter().enumerate() {
                let (row, out) = (at / outputs, at % outputs);
                let (tap, input) = (row / inputs, row % inputs);
                let want = if row < rows { ((out * inputs + input) * taps + tap) as f32 } else { 0.0 };
                assert_eq!(value, want, "{outputs} {inputs} {taps}: {at}");
            }
        }
    }

    #[test]
    fn kernels_are_transformed_whatever_the_threads() {
        let (outputs, inputs) = (120, 130);
        let values: Vec<f32> = (0..outputs * inputs * 9).map(|i| (i as f32 * 0.37).sin()).collect();
        let packed = winograd(&values, &[outputs, inputs, 3, 3]);
        for (index, filter) in values.chunks_exact(9).enumerate() {
            let (out, input) = (index / inputs, index % inputs);
            transform_filter(4, filter, |point, value| {
                assert_eq!(packed[(point * inputs + input) * outputs + out], value);
            });
        }
    }
}
