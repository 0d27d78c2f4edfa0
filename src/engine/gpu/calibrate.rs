//! How fast a device multiplies with each division of its work among matrix units. What suits one card does not suit the next: it is
//! measured once a driver, on one convolution as the network has them.

use std::time::Instant;

use super::call::word;
use super::context::Context;
use super::self_test::numbers;
use super::shader::{BindingKind, Cooperative, Fragments, Permutation, Shader, ValueType};
use super::submit::{Bound, Dispatch, Encoder};
use super::weights::upload;
use crate::Result;
use crate::control::Control;

/// Speeds of all fragments relative to the first; 0 for what the device cannot run or nobody should choose.
pub(super) type Rates = [f64; Fragments::ALL.len()];

/// Those where nothing was measured: of all convolutions of the paper's network on an H200. Sixteen subgroups are only taken
/// where they were found to be faster.
pub(super) const UNMEASURED: Rates = [1.0, 0.8, 0.57, 0.31, 0.0];

/// Samples, rows and columns, and channels of the convolution, which fills large devices several times.
const SAMPLES: usize = 16;
const SIDE: usize = 64;
const CHANNELS: usize = 384;

/// Multiplications of it.
const WORK: usize = 9 * SAMPLES * SIDE * SIDE * CHANNELS * CHANNELS;

/// Runs, of which the fastest counts.
const RUNS: usize = 3;

/// Runs before the first of these.
const WARM_UP: usize = 8;

/// Measures those of all fragments that are `right`.
///
/// # Errors
/// Those of the device, also that it has no memory for it.
pub(super) fn rates(context: &Context, unit: Cooperative, right: &[Fragments]) -> Result<Rates> {
    let seconds = seconds(context, unit, right)?;
    Ok(seconds.map(|own| seconds[0] / own))
}

/// [`UNMEASURED`] where only these fragments are `right`.
pub(super) fn unmeasured(right: &[Fragments]) -> Rates {
    let mut rates = UNMEASURED;
    for (rate, fragments) in rates.iter_mut().zip(Fragments::ALL) {
        if !right.contains(&fragments) {
            *rate = 0.0;
        }
    }
    rates
}

fn permutation(unit: Cooperative, fragments: Fragments) -> Permutation {
    let plain = Permutation::plain(Shader::ConvCooperative, ValueType::F16);
    Permutation { cooperative: Some(unit), fragments, ..plain }.with_own_terms()
}

/// Seconds that the convolution takes with each of the fragments; infinite for those that the device cannot run, or not rightly.
fn seconds(context: &Context, unit: Cooperative, right: &[Fragments]) -> Result<[f64; Fragments::ALL.len()]> {
    use wgpu::BufferUsages as Usage;
    let rows = SAMPLES * SIDE * SIDE;
    let values = |count, seed| upload(context, "calibration", &numbers(count, seed), ValueType::F16);
    let input = values(rows * CHANNELS, 1)?;
    let weight = values(9 * CHANNELS * CHANNELS, 2)?;
    let output = context.buffer("calibration", (2 * rows * CHANNELS) as u64, Usage::STORAGE)?;
    let nothing =
        [context.buffer("nothing", 16, Usage::STORAGE)?, context.buffer("nothing", 16, Usage::STORAGE)?];
    let mut words =
        [SIDE, SIDE, CHANNELS, 0, 0, 0, 0, 0].map(word).into_iter().collect::<Result<Vec<_>>>()?;
    for value in [rows, SIDE, SIDE, CHANNELS, 0, 3, 1, 0, 1] {
        words.push(word(value)?);
    }
    words.resize(words.len().next_multiple_of(4), 0);
    let params = context.buffer("calibration", 4 * words.len() as u64, Usage::UNIFORM | Usage::COPY_DST)?;
    context.queue.write_buffer(&params.buffer, 0, bytemuck::cast_slice(&words));

    let mut seconds = [f64::INFINITY; Fragments::ALL.len()];
    let mut known = false;
    let all = seconds.iter_mut().zip(Fragments::ALL);
    let can = |fragments: &Fragments| fragments.fits(unit, &context.limits) && right.contains(fragments);
    for (best, fragments) in all.filter(|(_, fragments)| can(fragments)) {
        let permutation = permutation(unit, fragments);
        let (tile_rows, tile_columns) = fragments.tile(unit);
        let tiles = rows.div_ceil(tile_rows as usize) * CHANNELS.div_ceil(tile_columns as usize);
        let dispatch = Dispatch::new(context, permutation, word(tiles)?, WORK as f64, |number, kind| {
            Bound::whole(match (kind, number) {
                (BindingKind::Uniform, _) => &params,
                (_, 1) => &input,
                (_, 3) => &weight,
                (_, 8) => &output,
                (BindingKind::Read, _) => &nothing[0],
                (BindingKind::ReadWrite, _) => &nothing[1],
            })
        })?;
        // The first ones raise the clocks, and the pace at which work is handed over.
        let warm_up = if std::mem::replace(&mut known, true) { 1 } else { WARM_UP };
        for run in 0..warm_up + RUNS {
            let control = Control::none();
            let mut encoder = Encoder::new(context, &control, None);
            let began = Instant::now();
            encoder.operation(std::iter::once(&dispatch), None)?;
            encoder.submit(|_| ())?;
            encoder.wait()?;
            if run >= warm_up {
                *best = best.min(began.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds)
}

/// Rates as they are kept in a file.
pub(super) fn written(rates: &Rates) -> String {
    rates.map(|rate| format!("{rate:.3}")).join(" ")
}

/// What [`written`] wrote; nothing else.
pub(super) fn read(text: &str) -> Option<Rates> {
    let mut rates = UNMEASURED;
    let mut words = text.split(' ');
    for rate in &mut rates {
        *rate = words.next()?.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0)?;
    }
    (words.next().is_none() && rates[0] > 0.0).then_some(rates)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::{GpuEngine, adapters};
    use super::*;
    use crate::engine::{DeviceOptions, Precision};

    /// Where there are matrix units, all divisions can be measured; `--nocapture` shows how fast they are.
    #[test]
    fn all_fragments_are_measured() {
        let options = DeviceOptions { precision: Precision::F16, ..DeviceOptions::default() };
        for adapter in adapters() {
            let Some(unit) = adapter.cooperative().filter(|unit| *unit != Cooperative::METAL) else {
                continue;
            };
            let context = GpuEngine::new(adapter, &options).and_then(|engine| engine.context()).unwrap();
            let all = Fragments::ALL.into_iter().filter(|own| own.fits(unit, &context.limits));
            let shaders: Vec<_> = all.map(|own| permutation(unit, own)).collect();
            context.pipelines.compile(&context.device, &shaders).unwrap();
            let seconds = context.checked(|| seconds(&context, unit, &Fragments::ALL)).unwrap();
            for (fragments, seconds) in Fragments::ALL.iter().zip(seconds) {
                println!("{fragments:?}: {:.1} TFLOP/s", 2e-12 * WORK as f64 / seconds);
            }
        }
    }

    #[test]
    fn rates_are_read_as_they_are_written() {
        assert_eq!(read(&written(&UNMEASURED)), Some(UNMEASURED));
        for damaged in
            ["", "1 2 3 4", "1 2 3 4 five", "1 2 3 4 NaN", "1 2 3 4 -5", "0 2 3 4 5", "1 2 3 4 5 6"]
        {
            assert_eq!(read(damaged), None);
        }
    }
}
