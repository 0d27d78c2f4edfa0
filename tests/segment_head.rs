//! Ensembles of heads against reference values and against a plain implementation.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use mdm::engine::{Inputs, Precision, WeightCache};
use mdm::model::{BatchNorm, Head, Linear, UnetConfig};
use mdm::plan::{
    Combine, Conv, HeadShape, Op, Param, Plan, PlanOptions, Resample, Source, TensorId, TensorInfo,
};
use mdm::segment::{fold_heads, head_shape};
use mdm::{Control, Device};
use serde_json::Value;
use support::{Golden, channels_last, gpus, relative_error, uniform, weight};

/// The CPU and all GPUs, each with the relative error that it may make.
fn devices() -> Vec<(String, f64, Device)> {
    let mut devices = vec![("cpu".to_owned(), 1e-5, Device::cpu(Some(2)).unwrap())];
    for (name, precision, device) in gpus() {
        let allowed = if *precision == Precision::F16 { 1e-2 } else { 1e-5 };
        devices.push((format!("{name} {precision:?}"), allowed, device.clone()));
    }
    devices
}

struct Case {
    about: String,
    height: usize,
    width: usize,
    classes: usize,
    salt: u64,
    blocks: Vec<Block>,
    /// `[height, width, classes]`.
    logits: Vec<f32>,
    logits_normalised: Vec<f32>,
    norm: f32,
}

struct Block {
    height: usize,
    width: usize,
    channels: usize,
    /// `[height, width, channels]`.
    data: Vec<f32>,
}

impl Case {
    fn all() -> Vec<Self> {
        let of_form = |golden: &Golden| golden.meta["cases"][0]["blocks"].is_array();
        let goldens = Golden::all("head").into_iter().filter(of_form);
        let all: Vec<Self> = goldens
            .flat_map(|golden| {
                let cases = golden.meta["cases"].as_array().unwrap().clone();
                cases.iter().enumerate().map(|(i, case)| Self::read(&golden, i, case)).collect::<Vec<_>>()
            })
            .collect();
        assert!(!all.is_empty());
        all
    }

    fn read(golden: &Golden, number: usize, case: &Value) -> Self {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (height, width, classes) = (size("height"), size("width"), size("classes"));
        let values = |name: &str| golden.f32(&format!("{number}.{name}")).unwrap();
        let blocks = case["blocks"].as_array().unwrap().iter().enumerate();
        let blocks = blocks.map(|(i, shape)| {
            let [channels, height, width] = [0, 1, 2].map(|d| shape[d].as_u64().unwrap() as usize);
            let data = channels_last(&values(&format!("feature.{i}")), 1, channels, height * width);
            Block { height, width, channels, data }
        });
        let logits = |name| channels_last(&values(name), 1, classes, height * width);
        Self {
            about: format!("{} {case}", golden.name),
            height,
            width,
            classes,
            salt: golden.salt(),
            blocks: blocks.collect(),
            logits: logits("logits"),
            logits_normalised: logits("logits_normalised"),
            norm: values("norm")[0],
        }
    }

    fn channels(&self) -> usize {
        self.blocks.iter().map(|block| block.channels).sum()
    }

    /// The head whose parameters are generated from their names.
    fn head(&self, salt: u64) -> Head {
        let hidden = if self.classes < 30 { (128, 32) } else { (256, 128) };
        let linear = |layer: usize, inputs: usize, outputs: usize| Linear {
            inputs,
            outputs,
            weight: weight(&format!("layers.{layer}.weight"), &[outputs, inputs], salt),
            bias: weight(&format!("layers.{layer}.bias"), &[outputs], salt),
        };
        let norm = |layer: usize, width: usize| {
            let spread = |name: &str, centre: f64| {
                let name = format!("layers.{layer}.{name}");
                uniform(&name, width, salt).map(|u| (centre + 0.2 * (u - 0.5)) as f32).collect()
            };
            BatchNorm {
                weight: spread("weight", 1.0),
                bias: spread("bias", 0.0),
                running_mean: spread("running_mean", 0.0),
                running_var: spread("running_var", 1.0),
            }
        };
        Head {
            linear: [
                linear(0, self.channels(), hidden.0),
                linear(3, hidden.0, hidden.1),
                linear(6, hidden.1, self.classes),
            ],
            norm: [norm(2, hidden.0), norm(5, hidden.1)],
        }
    }

    /// The upsampled, concatenated features of all pixels.
    fn features(&self) -> Vec<Vec<f64>> {
        let pixels = (0..self.height).flat_map(|y| (0..self.width).map(move |x| (y, x)));
        pixels
            .map(|(y, x)| {
                let of_block = |block: &Block| -> Vec<f64> {
                    let (top, bottom, down) = between(y, block.height, self.height);
                    let (left, right, across) = between(x, block.width, self.width);
                    let at = |y, x, channel| {
                        f64::from(block.data[(y * block.width + x) * block.channels + channel])
                    };
                    let value = |channel| {
                        let upper =
                            (1.0 - across) * at(top, left, channel) + across * at(top, right, channel);
                        let lower =
                            (1.0 - across) * at(bottom, left, channel) + across * at(bottom, right, channel);
                        (1.0 - down) * upper + down * lower
                    };
                    (0..block.channels).map(value).collect()
                };
                self.blocks.iter().flat_map(of_block).collect()
            })
            .collect()
    }
}

/// The two old pixels that a new one lies between, and how far from the first.
fn between(i: usize, from: usize, to: usize) -> (usize, usize, f64) {
    let position = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
    (position as usize, (position as usize + 1).min(from - 1), position.fract())
}

/// A head in evaluation mode, as it is written down: linear, ReLU, batch norm, linear, ReLU, batch norm, linear.
fn logits(head: &Head, features: &[f64]) -> Vec<f64> {
    let linear = |layer: &Linear, x: &[f64]| -> Vec<f64> {
        let rows = layer.weight.chunks_exact(layer.inputs).zip(&layer.bias);
        rows.map(|(row, bias)| {
            row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias)
        })
        .collect()
    };
    let relu_norm = |norm: &BatchNorm, x: Vec<f64>| -> Vec<f64> {
        let value = |(i, x): (usize, f64)| {
            let centred = x.max(0.0) - f64::from(norm.running_mean[i]);
            centred / (f64::from(norm.running_var[i]) + 1e-5).sqrt() * f64::from(norm.weight[i])
                + f64::from(norm.bias[i])
        };
        x.into_iter().enumerate().map(value).collect()
    };
    let x = relu_norm(&head.norm[0], linear(&head.linear[0], features));
    let x = relu_norm(&head.norm[1], linear(&head.linear[1], &x));
    linear(&head.linear[2], &x)
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|x| x / sum).collect()
}

fn entropy(probabilities: &[f64]) -> f64 {
    probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}

/// What an ensemble says of a pixel: probabilities, then the disagreement.
fn ensemble(heads: &[Head], features: &[f64], combine: Combine) -> Vec<f64> {
    let each: Vec<Vec<f64>> = heads.iter().map(|head| softmax(&logits(head, features))).collect();
    let count = each.len() as f64;
    let classes = each[0].len();
    let mean: Vec<f64> = (0..classes).map(|c| each.iter().map(|p| p[c]).sum::<f64>() / count).collect();
    let disagreement = entropy(&mean) - each.iter().map(|p| entropy(p)).sum::<f64>() / count;
    let mut result = match combine {
        Combine::Mean => mean,
        Combine::Vote => {
            let mut votes = vec![0.0; classes];
            for probabilities in &each {
                let best = (1..classes)
                    .fold(0, |best, c| if probabilities[c] > probabilities[best] { c } else { best });
                votes[best] += 1.0 / count;
            }
            votes
        }
    };
    result.push(disagreement);
    result
}

/// Runs the part of a plan that follows the decoder blocks, which are given in place of images.
fn run(case: &Case, heads: &[Head], shape: HeadShape, device: &Device) -> Vec<f32> {
    let channels: Vec<usize> = case.blocks.iter().map(|block| block.channels).collect();
    let weights = fold_heads(heads, 1, &channels).unwrap();
    let hidden = shape.heads * shape.hidden.0;
    let (mut tensors, mut arena_len) = (Vec::new(), 0);
    let mut tensor = |height: usize, width: usize, channels: usize| -> TensorId {
        let start = arena_len;
        // Generously apart, whatever an engine's alignment.
        arena_len = (start + height * width * channels).next_multiple_of(64);
        tensors.push(TensorInfo { height, width, channels, range: start..start + height * width * channels });
        tensors.len() - 1
    };
    let images: Vec<TensorId> = case.blocks.iter().map(|b| tensor(b.height, b.width, b.channels)).collect();
    let partial_sums: Vec<TensorId> = case.blocks.iter().map(|b| tensor(b.height, b.width, hidden)).collect();
    let feature_norm = shape.normalise.then(|| tensor(1, 1, 1));
    let output = tensor(case.height, case.width, shape.classes + usize::from(shape.uncertainty));

    let mut params: Vec<Param> = weights
        .0
        .iter()
        .map(|(name, tensor)| Param { name: name.clone(), shape: tensor.shape.clone() })
        .collect();
    params.sort_by(|a, b| a.name.cmp(&b.name));
    let param = |name: &str| params.iter().position(|param| param.name == format!("head.{name}")).unwrap();
    let mut ops = Vec::new();
    for (i, (image, output)) in images.iter().zip(&partial_sums).enumerate() {
        ops.push(Op::Conv(Conv {
            source: Source { parts: vec![*image], norm: None, resample: Resample::None },
            weight: param(&format!("first.{i}.weight")),
            bias: None,
            sample_bias: None,
            residual: None,
            kernel: 1,
            stride: 1,
            output: *output,
        }));
    }
    if let Some(output) = feature_norm {
        ops.push(Op::FeatureNorm { blocks: images.clone(), size: (case.height, case.width), output });
    }
    let names = ["first.bias", "second.weight", "second.bias", "third.weight", "third.bias"];
    ops.push(Op::Head { partial_sums, feature_norm, shape, params: names.map(param), output });
    let options = PlanOptions {
        batch: 1,
        height: case.height,
        width: case.width,
        timestep_slots: 1,
        corruption: None,
        blocks: (0..case.blocks.len()).collect(),
        image: false,
        head: Some(shape),
    };
    let plan = Plan {
        config: UnetConfig::mdm_paper(),
        options,
        tensors,
        params,
        ops,
        images,
        timesteps: Vec::new(),
        outputs: vec![output],
        arena_len,
    };
    let mut network = device.engine().prepare(plan, &weights, &WeightCache::default()).unwrap();
    let images: Vec<&[f32]> = case.blocks.iter().map(|block| block.data.as_slice()).collect();
    let mut result = Vec::new();
    let inputs = Inputs { images: &images, timesteps: &[], classes: &[], noise: &[] };
    network
        .run(&inputs, &Control::none(), &mut |_, values| {
            result.extend_from_slice(values);
            Ok(())
        })
        .unwrap();
    result
}

#[test]
fn the_plain_implementation_gives_the_logits_of_the_reference() {
    for case in Case::all() {
        let head = case.head(case.salt);
        let mut features = case.features();
        let norm = features.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
        assert!((norm / f64::from(case.norm) - 1.0).abs() < 1e-6, "{}: norm {norm}", case.about);
        for want in [&case.logits, &case.logits_normalised] {
            let got: Vec<f32> = features.iter().flat_map(|x| logits(&head, x)).map(|x| x as f32).collect();
            let error = relative_error(&got, want);
            assert!(error < 1e-6, "{}: {error}", case.about);
            features.iter_mut().flatten().for_each(|x| *x /= norm);
        }
    }
}

#[test]
fn the_engine_gives_the_probabilities_of_the_reference() {
    for case in Case::all() {
        let heads = [case.head(case.salt)];
        for (normalise, logits) in [(false, &case.logits), (true, &case.logits_normalised)] {
            let want: Vec<f32> = logits
                .chunks_exact(case.classes)
                .flat_map(|logits| softmax(&logits.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()))
                .map(|x| x as f32)
                .collect();
            let shape = head_shape(&heads, normalise, Combine::Mean, false).unwrap();
            for (name, allowed, device) in devices() {
                let error = relative_error(&run(&case, &heads, shape, &device), &want);
                assert!(error < allowed, "{} on {name}, normalise {normalise}: {error}", case.about);
            }
        }
    }
}

#[test]
fn ensembles_average_vote_and_disagree() {
    for case in Case::all() {
        let heads: Vec<Head> = (0..3).map(|i| case.head(case.salt + i)).collect();
        let features = case.features();
        for combine in [Combine::Mean, Combine::Vote] {
            let want: Vec<f32> = features
                .iter()
                .flat_map(|features| ensemble(&heads, features, combine))
                .map(|x| x as f32)
                .collect();
            let shape = head_shape(&heads, false, combine, true).unwrap();
            for (name, allowed, device) in devices() {
                let got = run(&case, &heads, shape, &device);
                let error = relative_error(&got, &want);
                // A head whose two best classes are equal but for rounding may vote for either.
                let allowed = if combine == Combine::Vote { 1e3 * allowed } else { allowed };
                assert!(error < allowed, "{} on {name}, {combine:?}: {error}", case.about);
                let stride = case.classes + 1;
                let disagreement = |values: &[f32]| -> Vec<f32> {
                    values.iter().skip(case.classes).step_by(stride).copied().collect()
                };
                let error = relative_error(&disagreement(&got), &disagreement(&want));
                assert!(
                    error < 10.0 * allowed,
                    "{} on {name}, {combine:?}: disagreement {error}",
                    case.about
                );
            }
        }
    }
}
