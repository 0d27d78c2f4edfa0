//! `mdm bench`: how fast this machine is.

mod ceilings;
mod report;
mod weights;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use mdm::engine::{DeviceInfo, DeviceKind, Inputs, Network, WeightCache};
use mdm::model::UnetConfig;
use mdm::plan::{Plan, PlanOptions};
use mdm::{Control, Device, Error};

use crate::arguments::{Numbers, positive};
use crate::demo::Random;
use crate::device::{CACHE_HELP, DeviceArguments, UsedDevice, pipeline_cache};
use crate::error::{Result, usage};
use crate::files::write_file;
use crate::operations::{OperationReport, operations};
use crate::output::{print, print_json};
use report::Report;
use weights::RandomWeights;

const EXAMPLES: &str = "\
Times the features of one batch of windows: the network of the masked diffusion paper at the given width with random weights, up to the last of the given decoder blocks. The first run is not counted.

On a GPU, features stay in its memory. Its operations are timed by its own clock in runs of their own, beside what it can do at most by the engine's own measure, a matrix product and a copy. GB are what an operation has to read and write at least.

Examples:
  mdm bench
  mdm bench --width 32 --window 128 --batch 4 --threads 1
  mdm bench --width 192 --window 256 --device cpu --json
  mdm bench --device gpu --precision f16 --batch 1,8,16";

/// How long a GPU is kept busy before its runs are timed: clocks rise, and submissions find their size.
const WARM_UP: Duration = Duration::from_millis(300);

/// Most runs in which operations are timed, or features brought to the host.
const FEW_RUNS: usize = 5;

#[derive(Args, Debug)]
#[command(after_help = format!("{EXAMPLES}\n\n{CACHE_HELP}"))]
pub(crate) struct Arguments {
    /// Base width of the network, a multiple of 32; the paper's is 192
    #[arg(long, value_name = "CHANNELS", default_value = "192", value_parser = positive)]
    width: usize,

    /// Side of a window in pixels, a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value = "256", value_parser = positive)]
    window: usize,

    /// Windows at a time; a list is measured one after another with the weights prepared once
    #[arg(long, value_name = "N,N...", default_value = "1", value_parser = batches)]
    batch: Numbers,

    /// Decoder blocks whose activations are wanted
    #[arg(long, value_name = "BLOCKS", default_value = "8..12")]
    blocks: Numbers,

    /// Runs that are timed
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    runs: usize,

    /// List every operation instead of their kinds
    #[arg(long)]
    ops: bool,

    /// Write the features of the first run, of the first batch in a list: f32, little endian, one block after another,
    /// channels last
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,

    /// Do not measure what a GPU can do at most
    #[arg(long)]
    no_ceilings: bool,

    /// Print JSON: an object, or an array of one for each batch in a list, each as soon as it is known
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceArguments,
}

/// What is measured with all batches.
struct Setting<'a> {
    arguments: &'a Arguments,
    device: Device,
    open: Duration,
    cache_state: &'static str,
    weights: RandomWeights,
    cache: WeightCache,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let batches = &arguments.batch.0;
    let mut plans = batches.iter().map(|&batch| plan(arguments, batch)).collect::<Result<Vec<_>>>()?;
    let cache_state =
        pipeline_cache().map_or("off", |folder| if is_filled(&folder) { "warm" } else { "cold" });
    let began = Instant::now();
    let device = arguments.device.open()?;
    let open = began.elapsed();
    let (weights, cache) = (RandomWeights::of(&plans[0]), WeightCache::default());
    let mut setting = Setting { arguments, device, open, cache_state, weights, cache };
    let several = plans.len() > 1;
    if several && arguments.json {
        print("[")?;
    }
    for (index, plan) in plans.drain(..).enumerate() {
        let mut report = setting.measure(plan, arguments.features.as_deref().filter(|_| index == 0))?;
        let last = index + 1 == batches.len();
        if last && report.on_gpu() && !arguments.no_ceilings {
            // The weights' memory is free for larger problems.
            setting.cache = WeightCache::default();
            report.ceilings = ceilings::measure(&setting.device);
        }
        if arguments.json {
            print_json(&report)?;
        } else {
            print(&report.in_words(arguments.ops))?;
        }
        match (several, arguments.json, last) {
            (true, true, false) => print(",")?,
            (true, true, true) => print("]")?,
            (true, false, false) => print("")?,
            _ => {}
        }
    }
    Ok(())
}

impl Setting<'_> {
    /// Times the network of one plan; `features` is where the results of its first run go.
    fn measure(&self, plan: Plan, features: Option<&Path>) -> Result<Report> {
        let Self { arguments, device, weights, cache, .. } = self;
        let info = device.info();
        let on_gpu = info.kind != DeviceKind::Cpu;
        let batch = plan.options.batch;
        let (began, spent) = (Instant::now(), weights.spent());
        let mut network = device.engine().prepare(plan.clone(), weights, cache)?;
        let (prepare, random_weights) = (began.elapsed(), weights.spent().saturating_sub(spent));
        let bench = Bench::new(&plan);
        let first = bench.first_run(&mut *network, features)?;

        let mut operations = operations(&plan, value_bytes(info));
        let mut with_results = None;
        let (mut cost, mut host_ms) = (None, None);
        let mut arena_mb = plan.arena_bytes() as f64 / 1e6;
        let mut device_memory = network.device_bytes();
        let mut seconds;
        if on_gpu {
            with_results = Some(median(&mut bench.runs(&mut *network, arguments.runs.min(FEW_RUNS))?));
            let (resident, activations) = without_results(device, plan, weights, cache, network)?;
            network = resident;
            arena_mb = activations as f64 / 1e6;
            device_memory = device_memory.max(network.device_bytes());
            bench.warm_up(&mut *network)?;
            let mut host_seconds = Vec::with_capacity(arguments.runs);
            seconds = Vec::with_capacity(arguments.runs);
            for _ in 0..arguments.runs {
                seconds.push(bench.run(&mut *network)?);
                cost = network.run_cost();
                host_seconds.extend(cost.map(|cost| cost.host_seconds));
            }
            host_ms = (!host_seconds.is_empty()).then(|| 1e3 * median(&mut host_seconds));
            bench.time_operations(&mut *network, arguments.runs.min(FEW_RUNS), &mut operations)?;
        } else {
            let mut sums = vec![0.0; operations.len()];
            seconds = Vec::with_capacity(arguments.runs);
            for _ in 0..arguments.runs {
                seconds.push(bench.run(&mut *network)?);
                add(&mut sums, network.op_seconds());
            }
            note(&mut operations, &sums, arguments.runs);
        }

        let median = median(&mut seconds);
        let gflop: f64 = operations.iter().filter_map(|operation| operation.gflop).sum();
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        Ok(Report {
            used: UsedDevice::of(device),
            width: arguments.width,
            window: arguments.window,
            batch,
            blocks: arguments.blocks.0.clone(),
            runs: arguments.runs,
            median_ms: median * 1e3,
            min_ms: seconds[0] * 1e3,
            windows_per_second: batch as f64 / median,
            with_results_ms: with_results.map(|seconds| seconds * 1e3),
            dispatches: cost.map(|cost| cost.dispatches),
            submissions: cost.map(|cost| cost.submissions),
            host_ms,
            gflop,
            gflop_per_second: gflop / median,
            peak_memory_mb: peak_memory_mb(),
            arena_mb,
            device_memory_mb: on_gpu.then_some(device_memory as f64 / 1e6),
            open_ms: milliseconds(self.open),
            prepare_ms: milliseconds(prepare),
            random_weights_ms: milliseconds(random_weights),
            first_run_ms: milliseconds(first),
            pipeline_cache: info.supports.contains(&"pipeline cache").then_some(self.cache_state),
            operations,
            ceilings: None,
        })
    }
}

/// How many windows at a time, as an argument.
fn batches(text: &str) -> std::result::Result<Numbers, String> {
    match text.parse::<Numbers>()? {
        Numbers(batches) if batches[0] == 0 => Err("must be 1 or more".to_owned()),
        batches => Ok(batches),
    }
}

fn plan(arguments: &Arguments, batch: usize) -> Result<Plan> {
    let config = UnetConfig {
        model_channels: arguments.width,
        num_head_channels: Some(arguments.width.min(64)),
        image_size: arguments.window,
        ..UnetConfig::mdm_paper()
    };
    config.validate()?;
    let options = PlanOptions {
        batch,
        height: arguments.window,
        width: arguments.window,
        timestep_slots: 1,
        corruption: None,
        blocks: arguments.blocks.0.clone(),
        image: false,
        head: None,
    };
    Ok(Plan::new(&config, options)?)
}

/// Bytes of a value of a map or a weight.
fn value_bytes(info: &DeviceInfo) -> usize {
    if info.precision == "f16" { 2 } else { 4 }
}

fn is_filled(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}

/// The same network with its features left on the device, as when heads read them there, in place of `network`, and the
/// bytes of its activations.
fn without_results(
    device: &Device,
    mut plan: Plan,
    weights: &RandomWeights,
    cache: &WeightCache,
    network: Box<dyn Network>,
) -> Result<(Box<dyn Network>, u64)> {
    plan.outputs.clear();
    let before = network.device_bytes();
    match device.engine().prepare(plan.clone(), weights, cache) {
        Ok(resident) => {
            let activations = resident.device_bytes().saturating_sub(before);
            Ok((resident, activations))
        }
        Err(Error::OutOfMemory(_)) => {
            let arena = plan.arena_bytes() * value_bytes(device.info()) / size_of::<f32>();
            drop(network);
            Ok((device.engine().prepare(plan, weights, cache)?, arena as u64))
        }
        Err(error) => Err(error.into()),
    }
}

/// The windows, and ways to run a network on them.
struct Bench {
    image: Vec<f32>,
    timesteps: Vec<f32>,
}

impl Bench {
    fn new(plan: &Plan) -> Self {
        let mut random = Random::new(1);
        let batch = plan.options.batch;
        let values = plan.tensors[plan.images[0]].sample_len() * batch;
        let image = (0..values).map(|_| random.between(-1.0, 1.0)).collect();
        Self { image, timesteps: vec![50.0; batch] }
    }

    /// Seconds of a run; `read` gets its results.
    fn run_with(
        &self,
        network: &mut dyn Network,
        read: &mut dyn FnMut(usize, &[f32]) -> mdm::Result<()>,
    ) -> Result<f64> {
        let inputs =
            Inputs { images: &[&self.image], timesteps: &[&self.timesteps], classes: &[], noise: &[] };
        let began = Instant::now();
        network.run(&inputs, &Control::none(), read)?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn run(&self, network: &mut dyn Network) -> Result<f64> {
        self.run_with(network, &mut |_, _| Ok(()))
    }

    fn runs(&self, network: &mut dyn Network, runs: usize) -> Result<Vec<f64>> {
        (0..runs).map(|_| self.run(network)).collect()
    }

    /// The first run, whose results are checked and kept if that is wanted.
    fn first_run(&self, network: &mut dyn Network, file: Option<&Path>) -> Result<Duration> {
        let mut finite = true;
        let mut kept = Vec::new();
        let seconds = self.run_with(network, &mut |_, values| {
            finite &= values.iter().all(|value| value.is_finite());
            if file.is_some() {
                kept.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Ok(())
        })?;
        if !finite {
            return Err(usage("the network's result is not finite: the random weights do not suit it"));
        }
        if let Some(file) = file {
            write_file(file, &kept)?;
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    fn warm_up(&self, network: &mut dyn Network) -> Result<()> {
        let began = Instant::now();
        self.run(network)?;
        while began.elapsed() < WARM_UP {
            self.run(network)?;
        }
        Ok(())
    }

    /// Times each operation by the device's clock, where it has one.
    fn time_operations(
        &self,
        network: &mut dyn Network,
        runs: usize,
        operations: &mut [OperationReport],
    ) -> Result<()> {
        if !network.time_operations() {
            return Ok(());
        }
        self.run(network)?;
        let mut sums = vec![0.0; operations.len()];
        for _ in 0..runs {
            self.run(network)?;
            add(&mut sums, network.op_seconds());
        }
        note(operations, &sums, runs);
        Ok(())
    }
}

fn add(sums: &mut [f64], seconds: &[f64]) {
    sums.iter_mut().zip(seconds).for_each(|(sum, seconds)| *sum += seconds);
}

/// Writes down the mean times of operations.
fn note(operations: &mut [OperationReport], sums: &[f64], runs: usize) {
    for (operation, sum) in operations.iter_mut().zip(sums) {
        operation.ms = Some(sum * 1e3 / runs as f64);
    }
}

/// The median of at least one value, which are sorted.
fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    (seconds[(seconds.len() - 1) / 2] + seconds[seconds.len() / 2]) / 2.0
}

/// Largest resident memory of this process in units of 10^6 bytes.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}
