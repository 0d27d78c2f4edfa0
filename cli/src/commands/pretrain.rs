//! `mdm pretrain`: a backbone from images without labels.

use std::path::{Path, PathBuf, absolute};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use mdm::model::{Corruption, CorruptionKind, MaskRule, Model, UnetConfig};
use mdm::{CancelToken, Control, Error};
use mdm_train::loss::{Loss, SsimForm};
use mdm_train::pretrain::{
    Checkpoint, Crops, FileImages, Images, Optimiser, PretrainError, Recipe, Schedule, Start, StepReport,
    Trainer,
};
#[cfg(feature = "mpi")]
use mdm_train::ranks::MpiRanks;
use mdm_train::ranks::{Alone, Ranks};
use serde::Serialize;

use crate::arguments::{NoiseArgument, microns, positive};
use crate::device::{CACHE_HELP, DeviceArguments, UsedDevice, size};
use crate::error::{CliError, Result, failed, usage, warn};
use crate::files::write_file;
use crate::output::{print, print_json};
use crate::progress::TrainingProgress;
use crate::training::{CHECKPOINT, Events, Line, Log, Notes, RunFolder, Sheet};

const EXAMPLES: &str = "\
The network learns to restore images from which patches were hidden (or to which noise was added). Nothing but images is needed; a few hundred are enough to begin with, of the kind that is to be segmented, at one scale. `mdm export` makes a backbone of the run, and `mdm fit` fits heads on it.

The defaults are the recipe of the paper for a network of a third of its width on smaller crops; it wants a GPU. The paper's own: --width 192 --size 256 --batch 128 --ema 0.9999 --learning-rate 1e-4 --warmup 0 --no-turn. To try things on a CPU: --width 32 --size 64 --batch 8 --steps 500.

The run's folder holds:
  checkpoint.safetensors   everything to go on from, replaced as a whole every ten minutes (--save-every)
  log.jsonl                a line for each step
  events.out.tfevents.*    the same for `tensorboard --logdir RUN`
  samples/                 sheets of images: as they are, what the network sees, what it makes of them

Ctrl-C (or SIGTERM) saves and stops. After that, and after a crash, --resume goes on where the last checkpoint was: on the CPU with the same bits as if nothing had happened.

Losses: ssim is mean(clamp(1 - SSIM, 0, 1) / 2), which the paper's authors train on; ssim-full is mean(1 - SSIM), the textbook's; mse and l1 compare pixels. With --corruption gaussian (DDPM), mse or l1 compare the noise.

Examples:
  mdm pretrain images/ -o run/
  mdm pretrain \"slides/**/*.tif\" -o run/ --mpp 0.25 --train-mpp 0.5 --skip-background
  mdm pretrain images/ -o ddpm/ --corruption gaussian --noise cosine
  mdm pretrain images/ -o mae/ --fixed-t 500 --patch 16
  mdm pretrain --resume run/ --steps 20000
  mdm export run/ -o backbone.safetensors";

#[derive(Args, Debug)]
#[command(after_help = format!("{EXAMPLES}\n\n{CACHE_HELP}"))]
pub(crate) struct Arguments {
    /// Images: folders, files, or patterns such as "plate*/*.tif" [with --resume: those of the run]
    #[arg(value_name = "IMAGES")]
    images: Vec<PathBuf>,

    /// Folder of the run, new or empty
    #[arg(short, long = "output", value_name = "RUN", required_unless_present = "resume")]
    output: Option<PathBuf>,

    /// Go on with the run in this folder; only the options given now change, and not all can
    #[arg(long, value_name = "RUN", conflicts_with = "output")]
    resume: Option<PathBuf>,

    /// Text file that lists images, one a line, relative to itself
    #[arg(long, value_name = "FILE")]
    list: Vec<PathBuf>,

    /// Search folders with their subfolders
    #[arg(long)]
    recursive: bool,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    network: NetworkArguments,

    #[command(flatten)]
    corruption: CorruptionArguments,

    #[command(flatten)]
    crops: CropArguments,

    #[command(flatten)]
    training: TrainingArguments,

    #[command(flatten)]
    watching: WatchingArguments,

    /// Samples at a time, which divides the batch: more may be faster and take more memory [default: up to 8]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Computing")]
    microbatch: Option<usize>,

    /// Compute activations again for the backward pass instead of keeping them: a third slower, in a fraction of the memory
    #[arg(long, help_heading = "Computing")]
    recompute: bool,

    /// Memory for decoded images that are kept between steps
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1GB", help_heading = "Computing")]
    image_memory: u64,

    /// Share the work with the processes that an MPI launcher (mpiexec, srun) started; all of them see the same files
    #[arg(long, help_heading = "Computing")]
    mpi: bool,

    #[command(flatten)]
    device: DeviceArguments,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Network")]
struct NetworkArguments {
    /// Channels of the finest level, a multiple of 32 (the paper's 192: 311 million parameters) [default: 64]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["resume", "init"])]
    width: Option<usize>,

    /// Channels of an attention head; the coarser levels' channels are multiples of it [default: 64]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["resume", "init"])]
    head_channels: Option<usize>,

    /// Side of the crops in pixels, a multiple of 32 (the paper's 256) [default: 128]
    #[arg(long, value_name = "PIXELS", value_parser = positive, conflicts_with = "resume")]
    size: Option<usize>,

    /// Start from this backbone instead of from random parameters
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    init: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Corruption")]
struct CorruptionArguments {
    /// Hide patches (MDM), or add noise (DDPM) [default: mask]
    #[arg(long, value_enum, value_name = "KIND", conflicts_with = "resume")]
    corruption: Option<KindArgument>,

    /// Side of a patch in pixels; the paper tries 4, 8 and 16 [default: 8]
    #[arg(long, value_name = "PIXELS", value_parser = positive, conflicts_with = "resume")]
    patch: Option<usize>,

    /// How many patches a timestep hides: the paper's formula, or that of its authors' code [default: paper]
    #[arg(long, value_enum, value_name = "RULE", conflicts_with = "resume")]
    mask_rule: Option<RuleArgument>,

    /// Schedule of the noise [default: linear]
    #[arg(long, value_enum, value_name = "SCHEDULE", conflicts_with = "resume")]
    noise: Option<NoiseArgument>,

    /// Train one timestep of the 1000 only: a plain masked, or denoising, autoencoder
    #[arg(long, value_name = "T", conflicts_with = "resume")]
    fixed_t: Option<u32>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Crops")]
struct CropArguments {
    /// Size of an image pixel in micrometres, whatever the files say
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    mpp: Option<f64>,

    /// Bring images to this scale, in micrometres a pixel, where theirs is known [default: leave them as they are]
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    train_mpp: Option<f64>,

    /// Do not mirror crops
    #[arg(long)]
    no_flip: bool,

    /// Do not turn crops by quarter turns
    #[arg(long)]
    no_turn: bool,

    /// Take another crop where more than this share of one is white, as slides without tissue are [default if given: 0.9]
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "0.9")]
    skip_background: Option<f64>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
struct TrainingArguments {
    /// Steps of the whole run (the paper's 10000 and 5000) [default: 10000]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Samples a step (the paper's 128) [default: 32]
    #[arg(long, value_name = "N", value_parser = positive)]
    batch: Option<usize>,

    /// What is minimised [default: ssim, or mse for noise]
    #[arg(long, value_enum, value_name = "LOSS")]
    loss: Option<LossArgument>,

    /// AdamW's learning rate [default: the paper's 1e-4, times the root of 192 / width]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,

    /// What the learning rate does after the warm-up: stay, or fall to zero [default: constant]
    #[arg(long, value_enum, value_name = "SCHEDULE")]
    schedule: Option<ScheduleArgument>,

    /// Steps over which the learning rate rises [default: a twentieth of the steps, 500 at most]
    #[arg(long, value_name = "N")]
    warmup: Option<u64>,

    /// Weight decay, not part of the paper's recipe [default: 0]
    #[arg(long, value_name = "SHARE")]
    weight_decay: Option<f64>,

    /// Scale gradients down whose norm is larger than this; 0 never does [default: 0]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,

    /// Decay rates of the moving averages of the parameters that are kept; the first is the one exported [default: one over the
    /// last tenth of the steps, 0.9999 (the paper's) at most]
    #[arg(long, value_name = "RATE,RATE...", value_delimiter = ',', conflicts_with = "resume")]
    ema: Vec<f64>,

    /// Everything random follows from it [default: 0]
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    seed: Option<u64>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Watching")]
struct WatchingArguments {
    /// How often a checkpoint is written: after so many steps (500), minutes (10m) or hours (2h)
    #[arg(long, value_name = "INTERVAL", default_value = "10m")]
    save_every: Interval,

    /// Steps between two sheets of samples; 0 draws none [default: a twentieth of the steps]
    #[arg(long, value_name = "N")]
    samples_every: Option<u64>,

    /// Images on a sheet of samples
    #[arg(long, value_name = "N", value_parser = positive, default_value = "8")]
    samples: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArgument {
    Mask,
    Gaussian,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RuleArgument {
    Paper,
    Official,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LossArgument {
    Ssim,
    SsimFull,
    Mse,
    L1,
}

impl LossArgument {
    fn loss(self) -> Loss {
        let ssim = |form| Loss::Ssim { window: 5, sigma: 1.5, dynamic_range: 1.0, form };
        match self {
            Self::Ssim => ssim(SsimForm::ClampedHalf),
            Self::SsimFull => ssim(SsimForm::OneMinus),
            Self::Mse => Loss::MeanSquare,
            Self::L1 => Loss::MeanAbsolute,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScheduleArgument {
    Constant,
    Linear,
    Cosine,
}

impl ScheduleArgument {
    fn schedule(self) -> Schedule {
        match self {
            Self::Constant => Schedule::Constant,
            Self::Linear => Schedule::Linear,
            Self::Cosine => Schedule::Cosine,
        }
    }
}

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interval {
    Steps(u64),
    Time(Duration),
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "must be steps (500), seconds (90s), minutes (10m) or hours (2h), 1 or more".to_owned();
        let (number, seconds) = match text.as_bytes().last() {
            Some(b's') => (&text[..text.len() - 1], 1),
            Some(b'm') => (&text[..text.len() - 1], 60),
            Some(b'h') => (&text[..text.len() - 1], 3600),
            _ => (text, 0),
        };
        match number.parse::<u32>() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(number) if seconds == 0 => Ok(Self::Steps(number.into())),
            Ok(number) => Ok(Self::Time(Duration::from_secs(u64::from(number) * seconds))),
        }
    }
}

/// The largest divisor of `batch` up to 8.
fn default_microbatch(batch: usize) -> usize {
    (1..=batch.min(8)).rev().find(|microbatch| batch.is_multiple_of(*microbatch)).unwrap_or(1)
}

impl Arguments {
    /// A new run's recipe. `init` is the configuration and the corruption of the backbone that it starts from.
    fn recipe(&self, init: Option<&Model>) -> Recipe {
        let unet = match init {
            Some(model) => {
                let unet = model.metadata().unet.clone();
                UnetConfig { image_size: self.network.size.unwrap_or(unet.image_size), ..unet }
            }
            None => UnetConfig {
                image_size: self.network.size.unwrap_or(128),
                model_channels: self.network.width.unwrap_or(64),
                num_head_channels: self.network.head_channels.or(UnetConfig::mdm_paper().num_head_channels),
                ..UnetConfig::mdm_paper()
            },
        };
        let arguments = &self.corruption;
        let patch = arguments.patch.unwrap_or(8);
        let kind = match arguments.corruption {
            Some(KindArgument::Gaussian) => CorruptionKind::Gaussian {
                schedule: arguments.noise.unwrap_or(NoiseArgument::Linear).schedule(),
            },
            _ => CorruptionKind::Mask {
                patch,
                rule: match arguments.mask_rule {
                    Some(RuleArgument::Official) => MaskRule::Official,
                    _ => MaskRule::Paper,
                },
            },
        };
        let loss = match kind {
            CorruptionKind::Gaussian { .. } => Loss::MeanSquare,
            CorruptionKind::Mask { .. } => Loss::default(),
        };
        let steps = self.training.steps.unwrap_or(10_000);
        let ema_rates = if self.training.ema.is_empty() {
            vec![(1.0 - 10.0 / steps as f64).clamp(0.9, 0.9999)]
        } else {
            self.training.ema.clone()
        };
        let learning_rate = 1e-4 * (192.0 / unet.model_channels as f64).sqrt();
        Recipe {
            corruption: Corruption { kind, ..Corruption::default() },
            fixed_timestep: arguments.fixed_t,
            loss,
            steps,
            batch: 32,
            optimiser: Optimiser { learning_rate, warmup: (steps / 20).min(500), ..Optimiser::default() },
            ema_rates,
            seed: self.training.seed.unwrap_or(0),
            unet,
            ..Recipe::default()
        }
    }

    /// Changes what was asked for.
    fn change(&self, mut recipe: Recipe) -> Recipe {
        let training = &self.training;
        recipe.steps = training.steps.unwrap_or(recipe.steps);
        if let Some(batch) = training.batch {
            recipe.batch = batch;
        }
        recipe.microbatch = match self.microbatch {
            Some(microbatch) => microbatch,
            None if recipe.batch.is_multiple_of(recipe.microbatch) => recipe.microbatch,
            None => default_microbatch(recipe.batch),
        };
        if let Some(loss) = training.loss {
            recipe.loss = loss.loss();
        }
        let optimiser = &mut recipe.optimiser;
        optimiser.learning_rate = training.learning_rate.unwrap_or(optimiser.learning_rate);
        optimiser.warmup = training.warmup.unwrap_or(optimiser.warmup);
        optimiser.weight_decay = training.weight_decay.unwrap_or(optimiser.weight_decay);
        if let Some(schedule) = training.schedule {
            optimiser.schedule = schedule.schedule();
        }
        if let Some(clip) = training.clip {
            optimiser.clip = Some(clip).filter(|clip| *clip != 0.0);
        }
        let Crops { flip, turn, microns_per_pixel, skip_background } = recipe.crops;
        recipe.crops = Crops {
            flip: flip && !self.crops.no_flip,
            turn: turn && !self.crops.no_turn,
            microns_per_pixel: self.crops.train_mpp.or(self.crops.mpp).or(microns_per_pixel),
            skip_background: self.crops.skip_background.or(skip_background),
        };
        recipe.recompute |= self.recompute;
        recipe
    }

    fn check(&self) -> Result<()> {
        let arguments = &self.corruption;
        let gaussian = arguments.corruption == Some(KindArgument::Gaussian);
        if gaussian && (arguments.patch.is_some() || arguments.mask_rule.is_some()) {
            return Err(usage("--patch and --mask-rule are for --corruption mask"));
        }
        if !gaussian && arguments.noise.is_some() {
            return Err(usage("--noise is for --corruption gaussian"));
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Report<'a> {
    run: &'a Path,
    /// Steps that are done, of `steps`.
    step: u64,
    steps: u64,
    images: usize,
    /// Mean over about the last hundred steps.
    loss: Option<f64>,
    /// Spent in steps since the run began.
    seconds: f64,
    /// Since this command began.
    images_per_second: f64,
    /// Share of the time in which the device waited for images, since this command began.
    waited: f64,
    /// Images that could not be used.
    left_out: usize,
    interrupted: bool,
    #[serde(flatten)]
    used: UsedDevice,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.mpi { with_others(arguments) } else { pretrain(arguments, &Alone) }
}

#[cfg(feature = "mpi")]
fn with_others(arguments: &Arguments) -> Result<()> {
    let ranks = MpiRanks::new()?;
    let outcome = pretrain(arguments, &ranks);
    if let Err(error) = &outcome
        && !matches!(error, CliError::Reported)
    {
        // The others may be waiting for this one.
        eprintln!("error: process {} of {}: {error}", ranks.rank(), ranks.count());
        ranks.abort(error.exit_code().into());
    }
    outcome
}

#[cfg(not(feature = "mpi"))]
fn with_others(_: &Arguments) -> Result<()> {
    Err(usage("--mpi: this mdm was built without MPI; build it with --features mpi"))
}

fn pretrain(arguments: &Arguments, ranks: &dyn Ranks) -> Result<()> {
    arguments.check()?;
    let path = arguments.resume.as_ref().or(arguments.output.as_ref());
    let path = path.ok_or_else(|| usage("name the run's folder with -o, or with --resume"))?;
    if arguments.resume.is_some() && !path.is_dir() {
        return Err(usage(format!("{}: there is no such folder to resume a run in", path.display())));
    }
    let mut notes = Notes {
        inputs: absolutes(&arguments.images)?,
        lists: absolutes(&arguments.list)?,
        recursive: arguments.recursive,
        mpp: arguments.crops.mpp,
        init: arguments.network.init.clone(),
    };
    if arguments.resume.is_none() {
        // Before a folder is made for nothing.
        notes.files()?;
    }
    let folder = if ranks.rank() == 0 { Some(RunFolder::open(path)?) } else { None };
    let checkpoint_path = path.join(CHECKPOINT);
    let checkpoint = if arguments.resume.is_some() {
        if !checkpoint_path.exists() {
            return Err(usage(format!("{}: there is no checkpoint of a run to resume", path.display())));
        }
        let checkpoint = Checkpoint::open(&checkpoint_path)?;
        let before = Notes::of(&checkpoint);
        if notes.inputs.is_empty() && notes.lists.is_empty() {
            (notes.inputs, notes.lists, notes.recursive) =
                (before.inputs, before.lists, before.recursive || notes.recursive);
        }
        notes.mpp = notes.mpp.or(before.mpp);
        notes.init = before.init;
        let recipe = arguments.change(checkpoint.recipe().clone());
        Some(checkpoint.with_recipe(recipe)?)
    } else if checkpoint_path.exists() {
        return Err(usage(format!(
            "{}: holds a run already; go on with it (--resume {}), or choose another folder",
            path.display(),
            path.display()
        )));
    } else {
        None
    };
    let files = notes.files()?;
    let images = Arc::new(
        FileImages::new(files)
            .with_microns_per_pixel(notes.mpp)
            .with_capacity(usize::try_from(arguments.image_memory).unwrap_or(usize::MAX)),
    );
    if let Some(checkpoint) = &checkpoint
        && checkpoint.image_identity() != images.identity()
    {
        warn("the images are not those that the run had; it goes on with these");
    }
    let device = arguments.device.open()?;
    let init = arguments.network.init.as_deref().map(Model::open).transpose()?;
    let start = match (&checkpoint, &init) {
        (Some(checkpoint), _) => Start::Resume(checkpoint),
        (None, Some(model)) => Start::From(arguments.change(arguments.recipe(Some(model))), model),
        (None, None) => Start::New(arguments.change(arguments.recipe(None))),
    };
    let count = images.count();
    let mut trainer = Trainer::among(ranks, &device, start, images)?;
    drop(checkpoint);
    trainer.set_notes(serde_json::to_value(&notes).unwrap_or_default());
    let outcome = Run::new(arguments, ranks, folder.as_ref(), &mut trainer)?.all_steps()?;
    let report = Report {
        run: path,
        step: trainer.steps_done(),
        steps: trainer.recipe().steps,
        images: count,
        loss: trainer.mean_loss(),
        seconds: trainer.seconds(),
        images_per_second: outcome.images_per_second,
        waited: outcome.waited,
        left_out: outcome.left_out,
        interrupted: outcome.interrupted,
        used: UsedDevice::of(&device),
    };
    if ranks.rank() == 0 {
        if arguments.json { print_json(&report) } else { print(&in_words(&report)) }?;
    }
    if outcome.interrupted { Err(CliError::Reported) } else { Ok(()) }
}

fn absolutes(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    paths.iter().map(|path| absolute(path).map_err(|error| failed(path, error))).collect()
}

fn in_words(report: &Report<'_>) -> String {
    let run = report.run.display();
    let loss = report.loss.map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
    let next = if report.step < report.steps {
        format!("go on with: mdm pretrain --resume {run}")
    } else {
        format!("make a backbone of it with: mdm export {run} -o backbone.safetensors")
    };
    format!(
        "{} of {} steps on {} images{loss}; {:.1} images/s, {:.1} % of the time waited for images\n{next}",
        report.step,
        report.steps,
        report.images - report.left_out,
        report.images_per_second,
        100.0 * report.waited
    )
}

/// What is written of a run.
struct Records<'a> {
    folder: &'a RunFolder,
    log: Log,
    events: Events,
    progress: TrainingProgress,
}

/// A run that is under way.
struct Run<'a> {
    arguments: &'a Arguments,
    ranks: &'a dyn Ranks,
    trainer: &'a mut Trainer,
    /// The first process keeps them for all.
    records: Option<Records<'a>>,
    /// Step of the checkpoint in the folder.
    saved: Option<u64>,
    saved_at: Instant,
    speed: f64,
    time: Duration,
    waited: Duration,
    steps: u64,
    left_out: usize,
}

struct Outcome {
    interrupted: bool,
    images_per_second: f64,
    waited: f64,
    left_out: usize,
}

impl<'a> Run<'a> {
    fn new(
        arguments: &'a Arguments,
        ranks: &'a dyn Ranks,
        folder: Option<&'a RunFolder>,
        trainer: &'a mut Trainer,
    ) -> Result<Self> {
        let done = trainer.steps_done();
        let records = |folder: &'a RunFolder| -> Result<Records<'a>> {
            Ok(Records {
                log: Log::open(folder.path(), done)?,
                events: Events::create(folder.path(), done)?,
                progress: TrainingProgress::new(done, trainer.recipe().steps),
                folder,
            })
        };
        Ok(Self {
            records: folder.map(records).transpose()?,
            saved: arguments.resume.is_some().then_some(done),
            saved_at: Instant::now(),
            speed: 0.0,
            time: Duration::ZERO,
            waited: Duration::ZERO,
            steps: 0,
            left_out: 0,
            arguments,
            ranks,
            trainer,
        })
    }

    /// Runs all steps, or up to an interruption. Whatever ends it, the folder has a good checkpoint afterwards, if it ever had
    /// one.
    fn all_steps(mut self) -> Result<Outcome> {
        let token = interruption();
        let ended = self.steps(&Control::none().with_cancel(&token));
        self.tell_left_out();
        if let Some(records) = &self.records {
            records.progress.finish();
        }
        let interrupted = match ended {
            Ok(()) => false,
            Err(CliError::Library(Error::Cancelled)) => true,
            Err(error) => return Err(self.failed(error)),
        };
        if self.saved != Some(self.trainer.steps_done())
            && let Err(error) = self.save()
        {
            return Err(self.failed(error));
        }
        let seconds = self.time.as_secs_f64().max(1e-9);
        Ok(Outcome {
            interrupted,
            images_per_second: self.steps as f64 * self.trainer.recipe().batch as f64 / seconds,
            waited: self.waited.as_secs_f64() / seconds,
            left_out: self.left_out,
        })
    }

    fn steps(&mut self, control: &Control<'_>) -> Result<()> {
        let steps = self.trainer.recipe().steps;
        let samples_every = self.arguments.watching.samples_every.unwrap_or((steps / 20).max(1));
        while !self.trainer.finished() {
            let report = self.trainer.step_among(self.ranks, control)?;
            self.tell_left_out();
            self.record(&report)?;
            if samples_every > 0 && (report.step % samples_every == 0 || report.step == steps) {
                self.draw(report.step, control)?;
            }
            let due = match self.arguments.watching.save_every {
                Interval::Steps(steps) => report.step % steps == 0,
                Interval::Time(time) => self.saved_at.elapsed() >= time,
            };
            if due {
                self.save()?;
            }
        }
        Ok(())
    }

    fn record(&mut self, report: &StepReport) -> Result<()> {
        let batch = self.trainer.recipe().batch as f64;
        let seconds = report.time.as_secs_f64().max(1e-9);
        self.time += report.time;
        self.waited += report.waited;
        self.steps += 1;
        let images_per_second = batch / seconds;
        let weight = 1.0 / (self.steps as f64).min(20.0);
        self.speed += weight * (images_per_second - self.speed);
        let Some(records) = &mut self.records else { return Ok(()) };
        records.log.write(&Line {
            step: report.step,
            loss: report.loss,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            images_per_second,
            seconds: self.trainer.seconds(),
            waited: report.waited.as_secs_f64(),
            applied: report.applied,
        })?;
        records.events.scalars(
            report.step,
            &[
                ("loss", report.loss),
                ("gradient norm", report.gradient_norm),
                ("learning rate", report.learning_rate),
                ("images per second", images_per_second),
                ("part of time waited for images", report.waited.as_secs_f64() / seconds),
            ],
        )?;
        let loss = self.trainer.mean_loss().unwrap_or(report.loss);
        let message = format!("loss {loss:.4}, {:.1} images/s", self.speed);
        records.progress.report(report.step, self.trainer.recipe().steps, message);
        Ok(())
    }

    fn draw(&mut self, step: u64, control: &Control<'_>) -> Result<()> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let examples = self.trainer.examples(self.arguments.watching.samples, control)?;
        let recipe = self.trainer.recipe();
        let sheet = Sheet::new(&examples, recipe.size(), recipe.unet.in_channels)?;
        let folder = records.folder.path().join("samples");
        std::fs::create_dir_all(&folder)
            .map_err(|error| failed(&folder, format!("cannot be created: {error}")))?;
        write_file(&folder.join(format!("step-{step:08}.png")), &sheet.png)?;
        records.events.image(step, "samples", (sheet.width, sheet.height), &sheet.png)
    }

    fn save(&mut self) -> Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        self.trainer.save(&records.folder.checkpoint())?;
        self.saved = Some(self.trainer.steps_done());
        self.saved_at = Instant::now();
        Ok(())
    }

    fn tell_left_out(&mut self) {
        for (name, reason) in self.trainer.left_out() {
            self.left_out += 1;
            let reason = if reason.contains(&name) { reason } else { format!("{name}: {reason}") };
            let say = || warn(format!("left out: {reason}"));
            match &self.records {
                Some(records) => records.progress.suspend(say),
                None => say(),
            }
        }
    }

    /// Says what is left of the run that `error` ended.
    fn failed(&self, error: CliError) -> CliError {
        let Some(records) = &self.records else { return error };
        let hint = match (&error, self.saved) {
            (CliError::Library(Error::Invalid { .. } | Error::Device(_)), _) => return error,
            (_, None) => "no checkpoint was written yet".to_owned(),
            (_, Some(step)) => format!(
                "the checkpoint of step {step} is intact: go on with `mdm pretrain --resume {}`",
                records.folder.path().display()
            ),
        };
        match error {
            CliError::Pretrain(PretrainError::Diverged { .. }) | CliError::File(_) | CliError::Library(_) => {
                CliError::Failed(format!("{error}\n{hint}"))
            }
            CliError::Failed(reason) => CliError::Failed(format!("{reason}\n{hint}")),
            other => other,
        }
    }
}

/// Raised by Ctrl-C and by being asked to terminate. The second time ends the process.
fn interruption() -> CancelToken {
    let token = CancelToken::new();
    let raised = token.clone();
    let set = ctrlc::set_handler(move || {
        if raised.is_cancelled() {
            std::process::exit(130);
        }
        eprintln!("saving; once more to stop at once");
        raised.cancel();
    });
    if let Err(error) = set {
        warn(format!("Ctrl-C will stop without saving: {error}"));
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_steps_or_times() {
        assert_eq!("500".parse(), Ok(Interval::Steps(500)));
        assert_eq!("90s".parse(), Ok(Interval::Time(Duration::from_secs(90))));
        assert_eq!("10m".parse(), Ok(Interval::Time(Duration::from_secs(600))));
        assert_eq!("2h".parse(), Ok(Interval::Time(Duration::from_secs(7200))));
        for bad in ["", "m", "0", "0m", "-1", "1.5h", "ten"] {
            assert!(bad.parse::<Interval>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn micro_batches_divide_the_batch() {
        assert_eq!([1, 7, 8, 12, 32, 34, 11].map(default_microbatch), [1, 7, 8, 6, 8, 2, 1]);
    }
}
