//! Seconds of one training step (forward, backward, AdamW and one moving average) of the paper's layout, and where they
//! go.
//!
//! usage: step [WIDTH [SIZE [BATCH [DEVICE [recompute]]]]]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use mdm::engine::cpu::CpuEngine;
use mdm::model::{MapWeights, UnetConfig};
use mdm::{Control, Device, DeviceOptions};
use mdm_train::differentiate::{Gradient, Instruction};
use mdm_train::engine::cpu::CpuLearner;
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (width, size, batch) = (number(0, 32)?, number(1, 128)?, number(2, 8)?);
    let device = Device::select(arguments.get(3).map_or("cpu", String::as_str), &DeviceOptions::default())?;
    let recompute = arguments.iter().any(|word| word == "recompute");
    let unet = UnetConfig { image_size: size, model_channels: width, ..UnetConfig::mdm_paper() };
    let options = LearnerOptions {
        unet,
        microbatch: batch,
        size,
        loss: Loss::default(),
        recompute,
        ema_rates: vec![0.9999],
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
    let engine = device.engine().as_any().downcast_ref::<CpuEngine>().ok_or("only the CPU")?;
    let mut learner = CpuLearner::new(engine, options, &state)?;
    drop(state);
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
    let mut best = f64::INFINITY;
    let repeats = 5;
    // The first step touches memory that the operating system has to find; it counts for nothing.
    let mut warm_up = Vec::new();
    for index in 0..=repeats {
        let start = Instant::now();
        let loss = learner.accumulate(&batch, 1.0, &Control::none())?;
        let passes = start.elapsed().as_secs_f64();
        learner.update(&update)?;
        let total = start.elapsed().as_secs_f64();
        println!("loss {loss:.5}: passes {passes:.3} s, step {total:.3} s");
        if index == 0 {
            warm_up = learner.timings().map(|(_, seconds)| seconds).collect();
        } else {
            best = best.min(total);
        }
    }
    let mut table: BTreeMap<&str, f64> = BTreeMap::new();
    for ((instruction, seconds), first) in learner.timings().zip(warm_up) {
        *table.entry(name(instruction)).or_default() += (seconds - first) / f64::from(repeats);
    }
    for (name, seconds) in table {
        println!("{name:22} {seconds:8.3} s");
    }
    println!("working memory {:.0} MB; best step {best:.3} s", learner.working_bytes() as f64 / 1e6);
    Ok(())
}
