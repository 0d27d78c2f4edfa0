//! Runs of a tiny network on images in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mdm::model::{Corruption, CorruptionKind, MapWeights, Metadata, Model, NoiseSchedule, UnetConfig};
use mdm::{CancelToken, Control, Device, DeviceOptions, Error, ImageView, PixelFormat, Result};
use mdm_train::loss::Loss;
use mdm_train::pretrain::{Checkpoint, Images, Optimiser, PretrainError, Recipe, Schedule, Start, Trainer};

const SIDE: usize = 40;

/// Images of stripes, one of which may be broken.
struct Stripes {
    count: usize,
    broken: Option<usize>,
    reads: AtomicUsize,
}

impl Stripes {
    fn new(count: usize, broken: Option<usize>) -> Arc<Self> {
        Arc::new(Self { count, broken, reads: AtomicUsize::new(0) })
    }
}

impl Images for Stripes {
    fn count(&self) -> usize {
        self.count
    }

    fn name(&self, index: usize) -> String {
        format!("stripes {index}")
    }

    fn read(&self, index: usize, take: &mut dyn FnMut(&ImageView<'_>) -> Result<()>) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.broken == Some(index) {
            return Err(Error::Image("is broken".into()));
        }
        let pixels: Vec<u8> = (0..SIDE * SIDE)
            .map(|i| if ((i % SIDE + i / SIDE * index) / 4).is_multiple_of(2) { 220 } else { 60 })
            .collect();
        take(&ImageView::new(&pixels, SIDE, SIDE, PixelFormat::Grey8)?)
    }
}

fn tiny() -> Recipe {
    Recipe {
        unet: UnetConfig {
            image_size: 16,
            in_channels: 1,
            out_channels: 1,
            model_channels: 32,
            channel_mult: vec![1, 1],
            num_res_blocks: 1,
            attention_ds: vec![2],
            num_head_channels: Some(32),
            ..UnetConfig::mdm_paper()
        },
        corruption: Corruption {
            kind: CorruptionKind::Mask { patch: 4, rule: mdm::model::MaskRule::Paper },
            ..Corruption::default()
        },
        steps: 8,
        batch: 4,
        microbatch: 2,
        optimiser: Optimiser {
            learning_rate: 1e-3,
            warmup: 2,
            schedule: Schedule::Cosine,
            clip: Some(1.0),
            ..Optimiser::default()
        },
        ema_rates: vec![0.9, 0.5],
        seed: 3,
        ..Recipe::default()
    }
}

fn device() -> Device {
    Device::cpu(Some(2)).unwrap()
}

fn trainer(recipe: Recipe) -> Trainer {
    Trainer::new(&device(), Start::New(recipe), Stripes::new(5, None)).unwrap()
}

fn saved(trainer: &mut Trainer) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    trainer.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

/// The tensors of a checkpoint: what is before them says how long it took.
fn tensors(checkpoint: &[u8]) -> &[u8] {
    let header = u64::from_le_bytes(checkpoint[..8].try_into().unwrap());
    &checkpoint[8 + header as usize..]
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let mut whole = trainer(tiny());
    let losses: Vec<f64> = (0..6).map(|_| whole.step(&Control::none()).unwrap().loss).collect();
    let mut first = trainer(tiny());
    first.run(3, &Control::none()).unwrap();
    // Looking at examples changes nothing.
    assert_eq!(first.examples(3, &Control::none()).unwrap().len(), 3);
    first.save(&path).unwrap();
    drop(first);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.step(), 3);
    let mut second = Trainer::new(&device(), Start::Resume(&checkpoint), Stripes::new(5, None)).unwrap();
    let rest: Vec<f64> = (0..3).map(|_| second.step(&Control::none()).unwrap().loss).collect();
    assert_eq!(losses[3..], rest);
    assert_eq!(tensors(&saved(&mut whole)), tensors(&saved(&mut second)));
}

#[test]
fn a_cancelled_step_is_as_if_it_had_not_begun() {
    let mut whole = trainer(tiny());
    whole.run(2, &Control::none()).unwrap();
    let mut stopped = trainer(tiny());
    stopped.step(&Control::none()).unwrap();
    let token = CancelToken::new();
    token.cancel();
    for _ in 0..2 {
        let error = stopped.step(&Control::none().with_cancel(&token)).unwrap_err();
        assert!(matches!(error, PretrainError::Library(Error::Cancelled)), "{error}");
    }
    stopped.step(&Control::none()).unwrap();
    assert_eq!(tensors(&saved(&mut whole)), tensors(&saved(&mut stopped)));
}

#[test]
fn micro_batches_make_the_same_step_to_rounding() {
    let loss = |microbatch| {
        let mut trainer = trainer(Recipe { microbatch, ..tiny() });
        (0..3).map(|_| trainer.step(&Control::none()).unwrap().loss).collect::<Vec<_>>()
    };
    let whole = loss(4);
    for microbatch in [1, 2] {
        for (one, other) in whole.iter().zip(loss(microbatch)) {
            assert!((one / other - 1.0).abs() < 1e-5, "{one} {other}");
        }
    }
}

#[test]
fn the_loss_falls_for_every_kind_of_run() {
    let gaussian =
        |schedule| Corruption { kind: CorruptionKind::Gaussian { schedule }, ..Corruption::default() };
    let recipes = [
        tiny(),
        Recipe { loss: Loss::MeanAbsolute, fixed_timestep: Some(300), ..tiny() },
        Recipe { loss: Loss::MeanSquare, corruption: gaussian(NoiseSchedule::Linear), ..tiny() },
        Recipe { loss: Loss::MeanSquare, corruption: gaussian(NoiseSchedule::Cosine), ..tiny() },
    ];
    for recipe in recipes {
        let mut trainer = trainer(Recipe { steps: 40, ..recipe });
        let losses: Vec<f64> = (0..40).map(|_| trainer.step(&Control::none()).unwrap().loss).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..8]), mean(&losses[32..]));
        assert!(last < 0.8 * first, "{:?}: {first} to {last}", trainer.recipe().loss);
    }
}

#[test]
fn images_that_cannot_be_used_are_reported_once_and_left_out() {
    let images = Stripes::new(3, Some(1));
    let mut trainer = Trainer::new(&device(), Start::New(tiny()), images).unwrap();
    trainer.run(4, &Control::none()).unwrap();
    let left_out = trainer.left_out();
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    assert_eq!(left_out[0].0, "stripes 1");
    assert!(trainer.left_out().is_empty());

    let mut hopeless = Trainer::new(&device(), Start::New(tiny()), Stripes::new(1, Some(0))).unwrap();
    let error = hopeless.step(&Control::none()).unwrap_err().to_string();
    assert!(error.contains("none of 1 images") && error.contains("is broken"), "{error}");
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let mut weights = MapWeights::default();
    for (name, shape) in tiny().unet.parameters() {
        weights.insert(name, &shape, vec![1e30; shape.iter().product()]);
    }
    let large = Model::from_parts(Metadata::new(tiny().unet), Arc::new(weights), Vec::new()).unwrap();
    let start = Start::From(tiny(), &large);
    let mut trainer = Trainer::new(&device(), start, Stripes::new(5, None)).unwrap();
    let error = trainer.step(&Control::none()).unwrap_err();
    assert_eq!(trainer.steps_done(), 0);
    assert!(matches!(error, PretrainError::Diverged { .. }), "{error}");
}

/// A GPU that goes away ends a run; its checkpoint stays, and the run goes on from it on a GPU that is there.
#[cfg(feature = "gpu")]
#[test]
fn a_lost_device_leaves_the_checkpoint() {
    use mdm::engine::gpu::GpuEngine;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    for (name, precision, _) in support::gpus() {
        let options = DeviceOptions { precision: *precision, ..DeviceOptions::default() };
        let device = Device::select(name, &options).unwrap();
        let mut lost = Trainer::new(&device, Start::New(tiny()), Stripes::new(5, None)).unwrap();
        lost.run(2, &Control::none()).unwrap();
        lost.save(&path).unwrap();
        let kept = std::fs::read(&path).unwrap();

        device
            .engine()
            .as_any()
            .downcast_ref::<GpuEngine>()
            .unwrap()
            .context()
            .unwrap()
            .give_up("it is a test");
        let result = lost.step(&Control::none());
        assert!(matches!(result, Err(PretrainError::Library(Error::DeviceLost(_)))), "{result:?}");
        assert_eq!(lost.steps_done(), 2);
        let result = lost.save(&path);
        assert!(matches!(result, Err(PretrainError::Library(Error::DeviceLost(_)))), "{result:?}");
        assert_eq!(std::fs::read(&path).unwrap(), kept);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut next = Trainer::new(&device, Start::Resume(&checkpoint), Stripes::new(5, None)).unwrap();
        next.run(2, &Control::none()).unwrap();
        assert_eq!(next.steps_done(), 4);
    }
}

#[test]
fn a_backbone_is_the_moving_average_with_what_is_known_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let mut trainer = trainer(tiny());
    trainer.run(2, &Control::none()).unwrap();
    trainer.save(&path).unwrap();
    let now = trainer.backbone(Some(1), "").unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let stored = checkpoint.backbone(Some(1), "stripes").unwrap();
    let of_parameters = checkpoint.backbone(None, "stripes").unwrap();
    assert_eq!(now.fingerprint().unwrap(), stored.fingerprint().unwrap());
    assert_ne!(of_parameters.fingerprint().unwrap(), stored.fingerprint().unwrap());
    assert_eq!(stored.metadata().corruption, tiny().corruption);
    assert_eq!(stored.metadata().description, "stripes");
    assert!(checkpoint.backbone(Some(2), "").is_err());

    // A run that starts from it.
    let start = Start::From(tiny(), &stored);
    let mut next = Trainer::new(&device(), start, Stripes::new(5, None)).unwrap();
    let name = "middle_block.0.in_layers.2.weight";
    let (from, to) = (stored.backbone().unwrap(), next.backbone(None, "").unwrap());
    assert_eq!(from.tensor(name).unwrap().data, to.backbone().unwrap().tensor(name).unwrap().data);
    assert!(next.step(&Control::none()).unwrap().loss.is_finite());
}
