//! Trainers of heads, on the host and on every GPU of the machine, software ones included.

use std::ops::Range;

#[cfg(feature = "gpu")]
use mdm::engine::{DeviceKind, DeviceOptions};
use mdm::model::Head;
use mdm::{Control, Device};

use super::parameters::{Layout, Shape};
#[cfg(feature = "gpu")]
use super::place::Place;
use super::samples::{Parts, Samples};
use super::standardise::Standardisation;
use super::state::HeadState;
use super::trainer::{HeadTrainer, Trainer};
use crate::support::{Golden, weight};

/// Every GPU of the machine, software ones included.
#[cfg(feature = "gpu")]
pub(super) fn gpus() -> Vec<Device> {
    let list = Device::list().unwrap();
    let numbers = (0..list.len()).filter(|&number| list[number].kind != DeviceKind::Cpu);
    let open = |number: usize| Device::select(&number.to_string(), &DeviceOptions::default()).unwrap();
    let gpus: Vec<Device> = numbers.map(open).collect();
    if gpus.is_empty() {
        eprintln!("no GPU: training heads on one is not tested");
    }
    gpus
}

#[cfg(not(feature = "gpu"))]
fn gpus() -> Vec<Device> {
    Vec::new()
}

/// Relative error in the L2 norm.
pub(super) fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |value: f64| value * value;
    let wrong: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
    (wrong / want.iter().map(|&value| square(f64::from(value))).sum::<f64>()).sqrt()
}

/// Names and values of all that a head consists of.
pub(super) fn tensors(head: &Head) -> Vec<(String, &[f32])> {
    let mut all: Vec<(String, &[f32])> = Vec::new();
    for (layer, linear) in head.linear.iter().enumerate() {
        all.push((format!("{}.weight", 3 * layer), &linear.weight));
        all.push((format!("{}.bias", 3 * layer), &linear.bias));
    }
    for (layer, norm) in head.norm.iter().enumerate() {
        all.push((format!("{}.weight", 3 * layer + 2), &norm.weight));
        all.push((format!("{}.bias", 3 * layer + 2), &norm.bias));
        all.push((format!("{}.running_mean", 3 * layer + 2), &norm.running_mean));
        all.push((format!("{}.running_var", 3 * layer + 2), &norm.running_var));
    }
    all
}

/// Calls `work` with a trainer on `device`; a GPU's samples lie in pages of `page` bytes.
pub(super) fn with_trainer<T>(
    device: Option<&Device>,
    samples: &Parts<'_>,
    (state, batch, class_weights, page): (HeadState, usize, Vec<f32>, usize),
    work: impl FnOnce(&mut dyn HeadTrainer) -> T,
) -> T {
    #[cfg(feature = "gpu")]
    if let Some(device) = device {
        let engine = Place::even_software(device).gpu().unwrap();
        let heads = super::gpu::GpuHeads::with_pages(engine, samples, state.shape, &[batch], page);
        return work(heads.unwrap().start(state, batch, class_weights).unwrap());
    }
    let _ = (device, page);
    work(&mut Trainer::new(samples, state, batch, class_weights))
}

/// The host, and every GPU.
fn everywhere(devices: &[Device]) -> impl Iterator<Item = Option<&Device>> {
    std::iter::once(None).chain(devices.iter().map(Some))
}

#[test]
fn golden_steps() {
    for golden in Golden::all("head_training") {
        let number = |key: &str| golden.meta[key].as_u64().unwrap() as usize;
        let (dim, batch, steps) = (number("dim"), number("batch"), number("steps"));
        let salt = golden.meta["salt"].as_u64().unwrap();
        let shape = Shape::new(dim, number("classes"));
        let layout = Layout::new(&shape);
        let mut parameters = vec![0.0; layout.len];
        let mut set = |range: &Range<usize>, name: &str, dims: &[usize]| {
            parameters[range.clone()].copy_from_slice(&weight(name, dims, salt));
        };
        for (layer, (inputs, outputs)) in shape.linear().into_iter().enumerate() {
            set(&layout.weight[layer], &format!("layers.{}.weight", 3 * layer), &[outputs, inputs]);
            set(&layout.bias[layer], &format!("layers.{}.bias", 3 * layer), &[outputs]);
        }
        for (layer, channels) in shape.hidden.into_iter().enumerate() {
            set(&layout.scale[layer], &format!("layers.{}.weight", 3 * layer + 2), &[channels]);
            set(&layout.shift[layer], &format!("layers.{}.bias", 3 * layer + 2), &[channels]);
        }
        let mut samples = Samples::new(dim).unwrap();
        for (row, label) in golden.floats("x").chunks_exact(dim).zip(golden.integers("y")) {
            samples.push(label as u8, false, |features| features.copy_from_slice(row));
        }
        let picked: Vec<u32> = (0..steps * batch).map(|row| (row % samples.len()) as u32).collect();
        let state = HeadState::new(shape, Standardisation::none(dim), parameters);
        for device in everywhere(&gpus()) {
            let how = (state.clone(), batch, vec![1.0; shape.classes], usize::MAX);
            let (losses, head) = with_trainer(device, &Parts::from(&samples), how, |trainer| {
                let losses = trainer.steps(&picked, &vec![1e-3; steps], &Control::none()).unwrap();
                (losses.into_iter().map(|loss| loss as f32).collect::<Vec<_>>(), trainer.head().unwrap())
            });
            let on = device.map_or("the host", |device| &device.info().name);
            let worst = tensors(&head)
                .into_iter()
                .map(|(name, got)| (error(got, &golden.floats(&format!("final.layers.{name}"))), name))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .unwrap();
            assert!(error(&losses, &golden.floats("losses")) < 1e-6, "{on}: {losses:?}");
            assert!(worst.0 < 1e-5, "{on}: relative error {worst:?}");
        }
    }
}
