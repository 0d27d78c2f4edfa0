//! What a GPU can do at most, measured by the engine itself: a matrix product, and moving memory.

use mdm::engine::{Inputs, WeightCache};
use mdm::model::UnetConfig;
use mdm::plan::{Conv, Op, Param, Plan, Resample, Source, TensorId, TensorInfo};
use mdm::{Control, Device, Result};
use serde::Serialize;

use super::weights::RandomWeights;
use crate::demo::Random;

/// Larger problems are tried until one takes so long.
const LONG_ENOUGH: f64 = 5e-3;

/// Runs of a problem; the best counts.
const RUNS: usize = 4;

/// A problem whose run takes so long is run no more than once.
const TOO_LONG: f64 = 0.5;

/// Rows and columns of a factor, the other one being square.
const PRODUCTS: [(usize, usize); 4] = [(1024, 256), (4096, 1024), (16_384, 2048), (16_384, 4096)];

/// Channels of the maps that are copied, and the rows and columns of the maps.
const COPIED_CHANNELS: usize = 256;
const COPIES: [usize; 3] = [64, 256, 1024];

/// The best that was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ceilings {
    /// Rows, columns and terms of the product.
    pub(super) product: [usize; 3],
    pub(super) product_gflop_per_second: f64,
    /// 10^6 bytes that were read and written.
    pub(super) copy_mb: f64,
    pub(super) copy_gb_per_second: f64,
}

/// Measures a device that has a clock for operations; nothing where there is none.
pub(super) fn measure(device: &Device) -> Option<Ceilings> {
    let value_bytes = super::value_bytes(device.info());
    let mut product: Option<([usize; 3], f64)> = None;
    for (rows, channels) in PRODUCTS {
        // A problem too large for the device ends the search.
        let Some(seconds) = best_seconds(device, &chain(rows, channels, Link::Product)) else { break };
        let rate = 2.0 * (rows * channels * channels) as f64 / seconds / 1e9;
        if product.is_none_or(|(_, best)| rate > best) {
            product = Some(([rows, channels, channels], rate));
        }
        if seconds > LONG_ENOUGH {
            break;
        }
    }
    let mut copy: Option<(f64, f64)> = None;
    for side in COPIES {
        let rows = side * side;
        let Some(seconds) = best_seconds(device, &chain(rows, COPIED_CHANNELS, Link::Copy)) else { break };
        let bytes = (rows * (2 * COPIED_CHANNELS + 1) * value_bytes) as f64;
        // Small maps fit into a cache: the largest counts, not the fastest.
        copy = Some((bytes / 1e6, bytes / seconds / 1e9));
        if seconds > LONG_ENOUGH {
            break;
        }
    }
    let ((product, product_gflop_per_second), (copy_mb, copy_gb_per_second)) = product.zip(copy)?;
    Some(Ceilings { product, product_gflop_per_second, copy_mb, copy_gb_per_second })
}

/// What a chain repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    /// A 1x1 convolution of a map, which is the product of its pixels with the weights.
    Product,
    /// A map copied to another one, with a convolution's result of a single term added on the way.
    Copy,
}

/// Times that a chain repeats its link.
const LINKS: usize = 3;

/// A plan that makes a map of `rows` pixels on the device, does the same to it again and again, and whose result is
/// small, so that neither uploads nor downloads matter.
fn chain(rows: usize, channels: usize, link: Link) -> Result<Plan> {
    let side = rows.isqrt();
    let given_channels = if link == Link::Copy { 1 } else { 8 };
    let mut tensors = vec![TensorInfo::new(rows / side, side, given_channels)];
    let plain = |id: TensorId| Source { parts: vec![id], norm: None, resample: Resample::None };
    let mut ops = Vec::new();
    for index in 0..=LINKS {
        let output = tensors.len();
        tensors.push(TensorInfo::new(rows / side, side, channels));
        let copies = index > 0 && link == Link::Copy;
        let first = index == 0 || copies;
        ops.push(Op::Conv(Conv {
            source: plain(if first { 0 } else { output - 1 }),
            weight: usize::from(!first),
            bias: None,
            sample_bias: None,
            residual: copies.then(|| plain(output - 1)),
            kernel: 1,
            stride: 1,
            output,
        }));
    }
    let output = tensors.len();
    tensors.push(TensorInfo::new(1, 1, 2 * channels));
    ops.push(Op::Moments { input: output - 1, output });
    let params = [("given", given_channels), ("square", channels)]
        .map(|(name, terms)| Param { name: name.to_owned(), shape: vec![channels, terms] });
    Plan::assemble(UnetConfig::mdm_paper(), 1, tensors, params.to_vec(), ops, vec![0], vec![output])
}

/// Seconds of the fastest link of a chain; none where the device does not manage it or has no clock.
fn best_seconds(device: &Device, plan: &Result<Plan>) -> Option<f64> {
    let plan = plan.as_ref().ok()?;
    let mut network =
        device.engine().prepare(plan.clone(), &RandomWeights::of(plan), &WeightCache::default()).ok()?;
    if !network.time_operations() {
        return None;
    }
    let mut random = Random::new(1);
    let image: Vec<f32> = (0..plan.tensors[0].sample_len()).map(|_| random.between(-1.0, 1.0)).collect();
    let inputs = Inputs { images: &[&image], timesteps: &[], classes: &[], noise: &[] };
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        network.run(&inputs, &Control::none(), &mut |_, _| Ok(())).ok()?;
        let seconds = network.op_seconds();
        best = seconds[1..=LINKS].iter().copied().filter(|seconds| *seconds > 0.0).fold(best, f64::min);
        if seconds.iter().sum::<f64>() > TOO_LONG {
            break;
        }
    }
    best.is_finite().then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_run_and_are_timed() {
        let device = Device::cpu(Some(1)).unwrap();
        for link in [Link::Product, Link::Copy] {
            assert!(best_seconds(&device, &chain(256, 32, link)).is_some());
        }
    }
}
