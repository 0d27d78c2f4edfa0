//! Milliseconds for one window, random weights.
use mdm::engine::{Inputs, WeightCache};
use mdm::model::{Tensor, UnetConfig, WeightSource};
use mdm::plan::{Op, Plan, PlanOptions};
use mdm::{Control, Device};
use std::borrow::Cow;

struct Random<'a>(&'a Plan);
impl WeightSource for Random<'_> {
    fn tensor(&self, name: &str) -> mdm::Result<Tensor<'_>> {
        let shape = self.0.params[self.0.param(name)?].shape.clone();
        let count: usize = shape.iter().product();
        let gain = (3.0 / (count / shape[0]) as f32).sqrt();
        let mut s = 12345u32;
        let data = (0..count)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                gain * ((s >> 8) as f32 / 8388608.0 - 1.0)
            })
            .collect();
        Ok(Tensor { shape, data: Cow::Owned(data) })
    }
}

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let width = args.first().copied().unwrap_or(192);
    let window = args.get(1).copied().unwrap_or(256);
    let runs = args.get(2).copied().unwrap_or(5);
    let threads = args.get(3).copied();
    let config = UnetConfig {
        model_channels: width,
        num_head_channels: Some(width.min(64)),
        ..UnetConfig::mdm_paper()
    };
    let plan = Plan::new(
        &config,
        PlanOptions {
            batch: args.get(4).copied().unwrap_or(1),
            height: window,
            width: window,
            timestep_slots: 1,
            blocks: (8..=12).collect(),
            image: false,
            head: None,
        },
    )
    .unwrap();
    let device = Device::cpu(threads).unwrap();
    let t = std::time::Instant::now();
    let mut network = device.engine().prepare(plan.clone(), &Random(&plan), &WeightCache::default()).unwrap();
    println!("prepare {:.2} s, arena {} MB", t.elapsed().as_secs_f64(), plan.arena_bytes() >> 20);
    let batch = plan.options.batch;
    let x: Vec<f32> =
        (0..3 * window * window * batch).map(|i| ((i * 7919) % 256) as f32 / 127.5 - 1.0).collect();
    let ts = vec![50.0; batch];
    let mut times = vec![];
    let mut best = vec![f64::MAX; plan.ops.len()];
    for _ in 0..runs {
        let t = std::time::Instant::now();
        network
            .run(&Inputs { images: &[&x], timesteps: &[&ts], classes: &[] }, &Control::none(), &mut |_, _| {
                Ok(())
            })
            .unwrap();
        times.push(t.elapsed().as_secs_f64() * 1e3);
        for (b, s) in best.iter_mut().zip(network.op_seconds()) {
            *b = b.min(*s);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("median {:.1} ms min {:.1} ms", times[times.len() / 2], times[0]);
    let mut groups: Vec<(String, f64, f64, usize)> = vec![];
    for (op, s) in plan.ops.iter().zip(&best) {
        let o = &plan.tensors[op.output()];
        let (key, flop) = match op {
            Op::Conv(c) => {
                let cin: usize = c.source.parts.iter().map(|&p| plan.tensors[p].channels).sum();
                (
                    format!(
                        "conv{} {}px {}->{}{}",
                        c.kernel,
                        o.height,
                        cin,
                        o.channels,
                        if c.residual.is_some() { " +res" } else { "" }
                    ),
                    2.0 * (o.height * o.width * o.channels * cin * c.kernel * c.kernel * batch) as f64,
                )
            }
            Op::Moments { input, .. } => {
                let i = &plan.tensors[*input];
                (format!("moments {}px", i.height), i.sample_len() as f64)
            }
            Op::Attention { .. } => (
                format!("attention {}px {}", o.height, o.channels),
                4.0 * ((o.height * o.width).pow(2) * o.channels) as f64,
            ),
            Op::Linear { .. } => ("linear".into(), 0.0),
            Op::NormCoefficients { .. } => ("normcoef".into(), 0.0),
            _ => ("other".into(), 0.0),
        };
        match groups.iter_mut().find(|g| g.0 == key) {
            Some(g) => {
                g.1 += s;
                g.2 += flop;
                g.3 += 1
            }
            None => groups.push((key, *s, flop, 1)),
        }
    }
    groups.sort_by(|a, b| b.1.total_cmp(&a.1));
    let total: f64 = best.iter().sum();
    println!("sum of minima {:.1} ms", total * 1e3);
    for (k, s, f, n) in groups.iter().take(40) {
        println!("{k:32} x{n:2} {:8.2} ms {:5.1}% {:7.1} GFLOP/s", s * 1e3, s / total * 100.0, f / s / 1e9);
    }
}
