//! Seconds of one training step (forward, backward, AdamW and one moving average) of the paper's layout, and where they
//! go.
//!
//! usage: step [WIDTH [SIZE [BATCH [DEVICE [f16 | f32] [recompute]]]]]
//!
//! A GPU computes in f16 where it can unless told otherwise. Where it has a clock, it tells where the time of one more step goes;
//! timing each instruction costs some of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use mdm::engine::Precision;
use mdm::engine::cpu::CpuEngine;
use mdm::engine::gpu::GpuEngine;
use mdm::model::{MapWeights, UnetConfig};
use mdm::{Control, Device, DeviceOptions};
use mdm_train::differentiate::{Gradient, Instruction};
use mdm_train::engine::cpu::CpuLearner;
use mdm_train::engine::gpu::GpuLearner;
use mdm_train::learner::{Learner, LearnerOptions, LearnerState, Microbatch, Update};
use mdm_train::loss::Loss;

fn name(instruction: &Instruction) -> &'static str {
    match instruction {
        Instruction::Network(mdm::plan::Op::Conv(conv)) if conv.bias.is_none() => "conv input gradient",
        Instruction::Network(mdm::plan::Op::Conv(_)) => "conv",
        Instruction::Network(mdm::plan::Op::Attention { .. }) => "attention",
        Instruction::Network(_) => "norms and vectors",
        Instruction::Gradient(gradient) => match gradient {
            Gradient::Loss { .. } => "loss",
            Gradient::ConvWeight { .. } => "conv weight gradient",
            Gradient::ChannelSums { .. } => "bias gradient",
            Gradient::NormSums { .. } => "norm sums",
            Gradient::Sum { .. } => "sums",
            Gradient::Attention { .. } => "attention gradient",
            _ => "vector gradients",
        },
    }
}

/// Steps that count for nothing, so that memory is there, clocks have risen and a loss scale is found, and steps that do.
#[derive(Clone, Copy)]
struct Counts {
    warm_up: usize,
    timed: usize,
}

/// A scale of the loss that is too large for f16 costs a few steps, which change nothing.
const MOST_STEPS: usize = 40;

/// Times steps and returns the best and the median; `warm` is called after those that do not count.
fn steps<L: Learner + ?Sized>(
    learner: &mut L,
    counts: Counts,
    mut warm: impl FnMut(&L),
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let (size, batch) = (learner.options().size, learner.options().microbatch);
    let input: Vec<f32> =
        (0..batch * size * size * 3).map(|i| ((i * 37 % 255) as f32) / 127.5 - 1.0).collect();
    let timesteps = vec![500.0; batch];
    let batch = Microbatch { input: &input, target: &input, timesteps: &timesteps };
    let update = Update {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip: None,
    };
    let mut applied = 0;
    let mut times = Vec::new();
    for _ in 0..MOST_STEPS {
        // What a GPU has not finished of a step, the next one waits for.
        let start = Instant::now();
        let loss = learner.accumulate(&batch, 1.0, &Control::none())?;
        let passes = start.elapsed().as_secs_f64();
        let report = learner.update(&update)?;
        let total = start.elapsed().as_secs_f64();
        if !report.applied {
            println!("loss {loss:.5}: not applied, the scale of the loss falls to {}", learner.position().1);
            continue;
        }
        println!("loss {loss:.5}: passes {passes:.4} s, step {total:.4} s");
        applied += 1;
        if applied == counts.warm_up {
            warm(learner);
        } else if applied > counts.warm_up {
            times.push(total);
        }
        if times.len() == counts.timed {
            times.sort_unstable_by(f64::total_cmp);
            return Ok((times[0], times[times.len() / 2]));
        }
    }
    Err("the gradient is not finite".into())
}

fn print_times(times: impl Iterator<Item = (&'static str, f64)>) {
    let mut table: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, seconds) in times {
        *table.entry(name).or_default() += seconds;
    }
    for (name, seconds) in table {
        println!("{name:22} {:10.3} ms", 1e3 * seconds);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (width, size, batch) = (number(0, 32)?, number(1, 128)?, number(2, 8)?);
    let word = |word: &str| arguments.iter().skip(4).any(|argument| argument == word);
    let precision = match (word("f16"), word("f32")) {
        (true, _) => Precision::F16,
        (_, true) => Precision::F32,
        _ => Precision::Auto,
    };
    let device = Device::select(
        arguments.get(3).map_or("cpu", String::as_str),
        &DeviceOptions { precision, ..DeviceOptions::default() },
    )?;
    println!("{}, {}", device.info().name, device.info().precision);
    let unet = UnetConfig { image_size: size, model_channels: width, ..UnetConfig::mdm_paper() };
    let options = LearnerOptions {
        unet,
        microbatch: batch,
        size,
        loss: Loss::default(),
        recompute: word("recompute"),
        ema_rates: vec![0.9999],
        blocks: Vec::new(),
    };
    let mut parameters = MapWeights::default();
    for (name, shape) in options.unet.parameters() {
        let count = shape.iter().product::<usize>();
        let scale = (1.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let values = (0..count as u32)
            .map(|i| scale * ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0));
        parameters.insert(&name, &shape, values.collect());
    }
    let state = LearnerState::fresh(Arc::new(parameters), 1);
    let engine = device.engine().as_any();
    if let Some(engine) = engine.downcast_ref::<GpuEngine>() {
        let mut learner = GpuLearner::new(engine, options, &state)?;
        drop(state);
        let (best, median) = steps(&mut learner, Counts { warm_up: 3, timed: 8 }, |_| ())?;
        if learner.time_instructions()? {
            steps(&mut learner, Counts { warm_up: 0, timed: 1 }, |_| ())?;
            print_times(
                learner.timings()?.into_iter().map(|(instruction, seconds)| (name(instruction), seconds)),
            );
        }
        println!("best step {best:.4} s, median {median:.4} s");
        return Ok(());
    }
    let engine = engine.downcast_ref::<CpuEngine>().ok_or("an engine that is not known here")?;
    let mut learner = CpuLearner::new(engine, options, &state)?;
    drop(state);
    let counts = Counts { warm_up: 1, timed: 5 };
    let mut first = Vec::new();
    let (best, median) = steps(&mut learner, counts, |learner| {
        first = learner.timings().map(|(_, seconds)| seconds).collect();
    })?;
    print_times(
        learner.timings().zip(first).map(|((instruction, seconds), first)| {
            (name(instruction), (seconds - first) / counts.timed as f64)
        }),
    );
    println!("working memory {:.0} MB", learner.working_bytes() as f64 / 1e6);
    println!("best step {best:.3} s, median {median:.3} s");
    Ok(())
}
