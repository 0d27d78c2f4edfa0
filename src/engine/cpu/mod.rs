//! The native engine: f32 on all cores.

pub(crate) mod buffer;
pub(crate) mod product;
pub(crate) mod simd;

use super::{DeviceInfo, DeviceKind, Engine, Network, WeightCache};
use crate::model::WeightSource;
use crate::plan::Plan;
use crate::{Error, Result};

/// Packed parameters.
#[derive(Default)]
pub(crate) struct PackedWeights {}

/// The host's processor.
pub(crate) struct CpuEngine {
    info: DeviceInfo,
}

impl CpuEngine {
    pub(crate) fn new(threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or(1);
        let info =
            DeviceInfo { name: String::new(), kind: DeviceKind::Cpu, threads, instruction_set: "portable" };
        Ok(Self { info })
    }
}

impl Engine for CpuEngine {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn prepare(&self, _: Plan, _: &dyn WeightSource, _: &WeightCache) -> Result<Box<dyn Network>> {
        Err(Error::Device("the engine is missing".to_owned()))
    }
}

#[cfg(test)]
mod scratch_bench {
    #![allow(unsafe_code)]
    use super::product::*;
    use super::simd::*;
    #[test]
    fn bench() {
        for set in InstructionSet::available() {
            for (m, k, n) in [(64, 192, 192), (64, 384, 384), (64,32,32),(4,192,192), (6,192,192),(8, 192, 192),(11, 192, 192),(12, 192, 192),(13, 192, 192),(14, 192, 192), (28,192,192),(8, 6912, 768), (16,6912,768)] {
                let a = vec![1f32; m * k];
                let b = vec![1f32; k * n];
                let mut c = vec![0f32; m * n];
                let reps = 40_000_000 / (m * k * n) + 1;
                let mut best = 1e9f64;
                for _ in 0..100 {
                    let t = std::time::Instant::now();
                    for _ in 0..reps {
                        let seg = [Segment { start: a.as_ptr(), row_stride: k, len: k }];
                        unsafe { set.run(Product { segments: &seg, rows: m, right: b.as_ptr(), columns: n, bias: std::ptr::null(), accumulate: false, out: c.as_mut_ptr(), out_stride: n }) };
                    }
                    best = best.min(t.elapsed().as_secs_f64());
                }
                let s = best;
                println!("{} {m}x{k}x{n}: {:.1} GFLOP/s {}", set.name(), 2.0 * (m * k * n * reps) as f64 / s / 1e9, c[m*n-1]);
            }
        }
    }
}
