//! `mdm bench`: how fast this machine is.

use std::time::Instant;

use clap::Args;
use mdm::engine::{Inputs, Network, WeightCache};
use mdm::model::{Tensor, UnetConfig, WeightSource};
use mdm::plan::{Plan, PlanOptions};
use mdm::{Control, Error};
use serde::Serialize;

use crate::arguments::{DeviceArguments, Numbers, positive};
use crate::demo::Random;
use crate::error::{Result, usage};
use crate::operations::{OperationReport, operations};
use crate::output::{Table, print, print_json};

const EXAMPLES: &str = "\
Times the features of one batch of windows: the network of the masked diffusion paper at the given width with random weights, up to the last of the given decoder blocks. The first run is not counted.

Examples:
  mdm bench
  mdm bench --width 32 --window 128 --batch 4 --threads 1
  mdm bench --width 192 --window 256 --device cpu --json";

/// Kinds of operations that are listed by themselves.
const LONGEST_TABLE: usize = 20;

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Base width of the network, a multiple of 32; the paper's is 192
    #[arg(long, value_name = "CHANNELS", default_value = "192", value_parser = positive)]
    width: usize,

    /// Side of a window in pixels, a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value = "256", value_parser = positive)]
    window: usize,

    /// Windows at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    batch: usize,

    /// Decoder blocks whose activations are wanted
    #[arg(long, value_name = "BLOCKS", default_value = "8..12")]
    blocks: Numbers,

    /// Runs that are timed
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    runs: usize,

    /// List every operation instead of their kinds
    #[arg(long)]
    ops: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArguments,
}

#[derive(Serialize)]
struct Report {
    device: String,
    instruction_set: &'static str,
    threads: usize,
    width: usize,
    window: usize,
    batch: usize,
    blocks: Vec<usize>,
    runs: usize,
    /// Of one batch.
    median_ms: f64,
    min_ms: f64,
    windows_per_second: f64,
    /// Of one batch.
    gflop: f64,
    gflop_per_second: f64,
    /// Largest memory of the process so far; absent where the system does not tell.
    peak_memory_mb: Option<f64>,
    /// Memory of the network's activations.
    arena_mb: f64,
    /// Reading or making the weights and bringing them into the device's layout.
    prepare_ms: f64,
    operations: Vec<OperationReport>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let width = arguments.width;
    let config = UnetConfig {
        model_channels: width,
        num_head_channels: Some(width.min(64)),
        image_size: arguments.window,
        ..UnetConfig::mdm_paper()
    };
    config.validate()?;
    let plan = Plan::new(
        &config,
        PlanOptions {
            batch: arguments.batch,
            height: arguments.window,
            width: arguments.window,
            timestep_slots: 1,
            corruption: None,
            blocks: arguments.blocks.0.clone(),
            image: false,
            head: None,
        },
    )?;
    let device = arguments.device.open()?;
    let began = Instant::now();
    let weights = RandomWeights::of(&plan);
    let mut network = device.engine().prepare(plan, &weights, &WeightCache::default())?;
    drop(weights);
    let prepare_ms = began.elapsed().as_secs_f64() * 1e3;
    let Timing { mut seconds, operations } = time(&mut *network, arguments)?;
    seconds.sort_unstable_by(f64::total_cmp);
    let median = (seconds[(seconds.len() - 1) / 2] + seconds[seconds.len() / 2]) / 2.0;
    let info = device.info();
    let gflop: f64 = operations.iter().filter_map(|operation| operation.gflop).sum();
    let report = Report {
        device: info.name.clone(),
        instruction_set: info.instruction_set,
        threads: info.threads,
        width,
        window: arguments.window,
        batch: arguments.batch,
        blocks: arguments.blocks.0.clone(),
        runs: arguments.runs,
        median_ms: median * 1e3,
        min_ms: seconds[0] * 1e3,
        windows_per_second: arguments.batch as f64 / median,
        gflop,
        gflop_per_second: gflop / median,
        peak_memory_mb: peak_memory_mb(),
        arena_mb: network.plan().arena_bytes() as f64 / 1e6,
        prepare_ms,
        operations,
    };
    if arguments.json { print_json(&report) } else { print(&in_words(&report, arguments.ops)) }
}

struct Timing {
    /// Of each run.
    seconds: Vec<f64>,
    /// With the mean time of each.
    operations: Vec<OperationReport>,
}

fn time(network: &mut dyn Network, arguments: &Arguments) -> Result<Timing> {
    let mut random = Random::new(1);
    let plan = network.plan();
    let mut operations = operations(plan);
    let values = plan.tensors[plan.images[0]].sample_len() * arguments.batch;
    let image: Vec<f32> = (0..values).map(|_| random.between(-1.0, 1.0)).collect();
    let timesteps = vec![50.0; arguments.batch];
    let inputs = Inputs { images: &[&image], timesteps: &[&timesteps], classes: &[], noise: &[] };
    let mut seconds = Vec::with_capacity(arguments.runs);
    for run in 0..=arguments.runs {
        let mut checked = Ok(());
        let began = Instant::now();
        network.run(&inputs, &Control::none(), &mut |_, values| {
            if run == 0 && values.iter().any(|value| !value.is_finite()) {
                checked = Err(usage("the network's result is not finite: the random weights do not suit it"));
            }
            Ok(())
        })?;
        let elapsed = began.elapsed().as_secs_f64();
        checked?;
        if run > 0 {
            seconds.push(elapsed);
            for (operation, seconds) in operations.iter_mut().zip(network.op_seconds()) {
                operation.ms += seconds * 1e3 / arguments.runs as f64;
            }
        }
    }
    Ok(Timing { seconds, operations })
}

/// Weights that keep activations about as large as a trained network's, the same for the same name.
struct RandomWeights {
    shapes: std::collections::HashMap<String, Vec<usize>>,
}

impl RandomWeights {
    fn of(plan: &Plan) -> Self {
        let shapes = plan.params.iter().map(|param| (param.name.clone(), param.shape.clone())).collect();
        Self { shapes }
    }
}

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str) -> mdm::Result<Tensor<'_>> {
        let shape = self.shapes.get(name).ok_or_else(|| Error::tensor(name, "is not in this network"))?;
        let seed =
            name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(0x100_0000_01B3) ^ u64::from(byte));
        let mut random = Random::new(seed);
        let fan_in: usize = shape[1..].iter().product();
        // Vectors are biases and norms.
        let reach = if shape.len() == 1 { 0.1 } else { (fan_in as f32).sqrt().recip() };
        let data = (0..shape.iter().product()).map(|_| random.between(-reach, reach)).collect::<Vec<_>>();
        Ok(Tensor { shape: shape.clone(), data: data.into() })
    }
}

fn in_words(report: &Report, every: bool) -> String {
    let mut lines = vec![
        format!("{}, {} threads, {}", report.device, report.threads, report.instruction_set),
        format!(
            "width {}, window {} x {}, batch {}, blocks {:?}, {} runs",
            report.width, report.window, report.window, report.batch, report.blocks, report.runs
        ),
        format!(
            "median {:.1} ms, best {:.1} ms, {:.3} windows/s, {:.1} GFLOP/s of direct products",
            report.median_ms, report.min_ms, report.windows_per_second, report.gflop_per_second
        ),
        format!(
            "peak memory {}, of it activations {:.0} MB; weights prepared in {:.0} ms",
            report.peak_memory_mb.map_or("unknown".to_owned(), |peak| format!("{peak:.0} MB")),
            report.arena_mb,
            report.prepare_ms
        ),
        String::new(),
    ];
    let grouped;
    let rows = if every {
        &report.operations
    } else {
        grouped = by_kind(&report.operations);
        &grouped
    };
    let total: f64 = report.operations.iter().map(|operation| operation.ms).sum();
    let mut table = Table::new(&["operation", "shape", "count", "ms", "share", "GFLOP", "GFLOP/s"]);
    for row in rows {
        let work =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        table.row(vec![
            row.kind.clone(),
            row.shape.clone(),
            row.count.to_string(),
            format!("{:.2}", row.ms),
            format!("{:.1}%", 100.0 * row.ms / total.max(1e-9)),
            work(row.gflop, 3),
            work(row.gflop.map(|gflop| gflop / (row.ms / 1e3).max(1e-9)), 1),
        ]);
    }
    lines.push(table.to_string());
    lines.join("\n")
}

/// Adds up operations of the same kind and shape, the slowest first, and what is beyond a readable table.
fn by_kind(operations: &[OperationReport]) -> Vec<OperationReport> {
    let mut grouped: Vec<OperationReport> = Vec::new();
    for operation in operations {
        let same =
            |other: &&mut OperationReport| other.kind == operation.kind && other.shape == operation.shape;
        match grouped.iter_mut().find(same) {
            Some(group) => {
                group.count += 1;
                group.ms += operation.ms;
                group.gflop = group.gflop.zip(operation.gflop).map(|(a, b)| a + b);
            }
            None => grouped.push(operation.clone()),
        }
    }
    grouped.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let rest = grouped.split_off(LONGEST_TABLE.min(grouped.len()));
    if !rest.is_empty() {
        grouped.push(OperationReport {
            kind: "everything else".to_owned(),
            shape: String::new(),
            count: rest.iter().map(|group| group.count).sum(),
            ms: rest.iter().map(|group| group.ms).sum(),
            gflop: Some(rest.iter().filter_map(|group| group.gflop).sum()),
        });
    }
    grouped
}

/// Largest resident memory of this process in units of 10^6 bytes.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}
