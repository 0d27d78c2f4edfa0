//! What a run is told, and the recipe that follows from it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mdm::IntensityRange;
use mdm::model::{Corruption, CorruptionKind, MaskRule, Model, UnetConfig};
use mdm_train::loss::{Loss, SsimForm};
use mdm_train::pretrain::{Crops, Optimiser, Recipe, Schedule};

use crate::arguments::{NoiseArgument, microns, positive};
use crate::device::{CACHE_HELP, DeviceArguments, size};
use crate::error::{Result, usage};
use crate::intensities::RANGE_HELP;
use crate::planes::PlaneArguments;
use crate::training::Watching;

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
#[command(after_help = format!("{EXAMPLES}\n\n{RANGE_HELP}\n\n{CACHE_HELP}"))]
pub(crate) struct Arguments {
    /// Images: folders, files, or patterns such as "plate*/*.tif" [with --resume: those of the run]
    #[arg(value_name = "IMAGES")]
    pub(super) images: Vec<PathBuf>,

    /// Folder of the run, new or empty
    #[arg(short, long = "output", value_name = "RUN", required_unless_present = "resume")]
    pub(super) output: Option<PathBuf>,

    /// Go on with the run in this folder; only the options given now change, and not all can
    #[arg(long, value_name = "RUN", conflicts_with = "output")]
    pub(super) resume: Option<PathBuf>,

    /// Text file that lists images, one a line, relative to itself
    #[arg(long, value_name = "FILE")]
    pub(super) list: Vec<PathBuf>,

    /// Search folders with their subfolders
    #[arg(long)]
    pub(super) recursive: bool,

    /// Print a summary as JSON
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) network: NetworkArguments,

    #[command(flatten)]
    pub(super) corruption: CorruptionArguments,

    #[command(flatten)]
    pub(super) crops: CropArguments,

    #[command(flatten)]
    pub(super) planes: PlaneArguments,

    #[command(flatten)]
    pub(super) training: TrainingArguments,

    #[command(flatten)]
    pub(super) watching: Watching,

    /// Samples at a time, which divides the batch: more may be faster and take more memory [default: up to 8]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Computing")]
    pub(super) microbatch: Option<usize>,

    /// Compute activations again for the backward pass instead of keeping them: a third slower, in a fraction of the memory
    #[arg(long, help_heading = "Computing")]
    pub(super) recompute: bool,

    /// Memory for decoded images that are kept between steps
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1GB", help_heading = "Computing")]
    pub(super) image_memory: u64,

    /// Share the work with the processes that an MPI launcher (mpiexec, srun) started; all of them see the same files
    #[arg(long, help_heading = "Computing")]
    pub(super) mpi: bool,

    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArguments {
    /// Channels of the finest level, a multiple of 32 (the paper's 192: 311 million parameters) [default: 64]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["resume", "init"])]
    pub(super) width: Option<usize>,

    /// Channels of an attention head; the coarser levels' channels are multiples of it [default: 64]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["resume", "init"])]
    pub(super) head_channels: Option<usize>,

    /// Side of the crops in pixels, a multiple of 32 (the paper's 256) [default: 128]
    #[arg(long, value_name = "PIXELS", value_parser = positive, conflicts_with = "resume")]
    pub(super) size: Option<usize>,

    /// Start from this backbone instead of from random parameters
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(super) init: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Corruption")]
pub(super) struct CorruptionArguments {
    /// Hide patches (MDM), or add noise (DDPM) [default: mask]
    #[arg(long, value_enum, value_name = "KIND", conflicts_with = "resume")]
    pub(super) corruption: Option<KindArgument>,

    /// Side of a patch in pixels; the paper tries 4, 8 and 16 [default: 8]
    #[arg(long, value_name = "PIXELS", value_parser = positive, conflicts_with = "resume")]
    pub(super) patch: Option<usize>,

    /// How many patches a timestep hides: the paper's formula, or that of its authors' code [default: paper]
    #[arg(long, value_enum, value_name = "RULE", conflicts_with = "resume")]
    pub(super) mask_rule: Option<RuleArgument>,

    /// Schedule of the noise [default: linear]
    #[arg(long, value_enum, value_name = "SCHEDULE", conflicts_with = "resume")]
    pub(super) noise: Option<NoiseArgument>,

    /// Train one timestep of the 1000 only: a plain masked, or denoising, autoencoder
    #[arg(long, value_name = "T", conflicts_with = "resume")]
    pub(super) fixed_t: Option<u32>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Crops")]
pub(super) struct CropArguments {
    /// Size of an image pixel in micrometres, whatever the files say
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    pub(super) mpp: Option<f64>,

    /// Bring images to this scale, in micrometres a pixel, where theirs is known [default: leave them as they are]
    #[arg(long, value_name = "MICRONS", value_parser = microns)]
    pub(super) train_mpp: Option<f64>,

    /// Stored values that are black and white: LOW,HIGH, "percentile", "declared" or "type", as explained below [default:
    /// declared]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub(super) range: Option<IntensityRange>,

    /// Do not mirror crops
    #[arg(long)]
    pub(super) no_flip: bool,

    /// Do not turn crops by quarter turns
    #[arg(long)]
    pub(super) no_turn: bool,

    /// Take another crop where more than this share of one is white, as slides without tissue are [default if given: 0.9]
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "0.9")]
    pub(super) skip_background: Option<f64>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub(super) struct TrainingArguments {
    /// Steps of the whole run (the paper's 10000 and 5000) [default: 10000]
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<u64>,

    /// Samples a step (the paper's 128) [default: 32]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(super) batch: Option<usize>,

    /// What is minimised [default: ssim, or mse for noise]
    #[arg(long, value_enum, value_name = "LOSS")]
    pub(super) loss: Option<LossArgument>,

    /// AdamW's learning rate [default: the paper's 1e-4, times the root of 192 / width]
    #[arg(long, value_name = "RATE")]
    pub(super) learning_rate: Option<f64>,

    /// What the learning rate does after the warm-up: stay, or fall to zero [default: constant]
    #[arg(long, value_enum, value_name = "SCHEDULE")]
    pub(super) schedule: Option<ScheduleArgument>,

    /// Steps over which the learning rate rises [default: a twentieth of the steps, 500 at most]
    #[arg(long, value_name = "N")]
    pub(super) warmup: Option<u64>,

    /// Weight decay, not part of the paper's recipe [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub(super) weight_decay: Option<f64>,

    /// Scale gradients down whose norm is larger than this; 0 never does [default: 0]
    #[arg(long, value_name = "NORM")]
    pub(super) clip: Option<f64>,

    /// Decay rates of the moving averages of the parameters that are kept; the first is the one exported [default: one over the
    /// last tenth of the steps, 0.9999 (the paper's) at most]
    #[arg(long, value_name = "RATE,RATE...", value_delimiter = ',', conflicts_with = "resume")]
    pub(super) ema: Vec<f64>,

    /// Everything random follows from it [default: 0]
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    pub(super) seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KindArgument {
    Mask,
    Gaussian,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RuleArgument {
    Paper,
    Official,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LossArgument {
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
pub(super) enum ScheduleArgument {
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

impl Arguments {
    /// A new run's recipe. `init` is the configuration and the corruption of the backbone that it starts from.
    pub(super) fn recipe(&self, init: Option<&Model>) -> Recipe {
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

    /// Changes what was asked for. Of a batch each of so many processes computes its share.
    pub(super) fn change(&self, mut recipe: Recipe, processes: usize) -> Recipe {
        let training = &self.training;
        recipe.steps = training.steps.unwrap_or(recipe.steps);
        if let Some(batch) = training.batch {
            recipe.batch = batch;
        }
        recipe.microbatch = match self.microbatch {
            Some(microbatch) => microbatch,
            None if recipe.batch.is_multiple_of(recipe.microbatch * processes) => recipe.microbatch,
            None => Recipe::default_microbatch(recipe.batch / processes),
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
        let Crops { flip, turn, microns_per_pixel, range, skip_background } = recipe.crops;
        recipe.crops = Crops {
            flip: flip && !self.crops.no_flip,
            turn: turn && !self.crops.no_turn,
            microns_per_pixel: self.crops.train_mpp.or(self.crops.mpp).or(microns_per_pixel),
            range: self.crops.range.clone().unwrap_or(range),
            skip_background: self.crops.skip_background.or(skip_background),
        };
        recipe.recompute |= self.recompute;
        recipe
    }

    pub(super) fn check(&self) -> Result<()> {
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
