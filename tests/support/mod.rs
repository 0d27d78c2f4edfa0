//! What several test programs need: golden files and the values that they leave to be generated.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod models;
pub(crate) mod noise;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use mdm::Device;
use mdm::engine::{DeviceKind, DeviceOptions, Precision};
use mdm::model::{Tensor, WeightSource};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Every GPU of this machine, software ones included, in every precision that it has; says so where there is none.
pub(crate) fn gpus() -> &'static [(String, Precision, Device)] {
    static GPUS: LazyLock<Vec<(String, Precision, Device)>> = LazyLock::new(open_gpus);
    &GPUS
}

/// As [`gpus`], but opened for the caller alone.
pub(crate) fn open_gpus() -> Vec<(String, Precision, Device)> {
    let mut found = Vec::new();
    for (number, info) in Device::list().unwrap().iter().enumerate() {
        if info.kind == DeviceKind::Cpu {
            continue;
        }
        for precision in [Precision::F32, Precision::F16] {
            if precision == Precision::F16 && !info.supports.contains(&"f16") {
                continue;
            }
            let options = DeviceOptions { precision, ..DeviceOptions::default() };
            let device = Device::select(&number.to_string(), &options).unwrap();
            found.push((info.name.clone(), precision, device));
        }
    }
    if found.is_empty() {
        eprintln!("no GPU: its engine is not tested");
    }
    found
}

/// `count` values in [0, 1), multiples of 2^-24: a splitmix64 stream seeded with `fnv1a64(name) + salt`.
pub(crate) fn uniform(name: &str, count: usize, salt: u64) -> impl Iterator<Item = f64> {
    let mut state = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    state = state.wrapping_add(salt);
    (0..count).map(move |_| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// A parameter of the golden networks.
pub(crate) fn weight(name: &str, shape: &[usize], salt: u64) -> Vec<f32> {
    let count = shape.iter().product();
    let gain = (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
    uniform(name, count, salt)
        .map(|u| match shape.len() {
            2.. => gain * (2.0 * u - 1.0),
            _ if name.ends_with(".weight") => 1.0 + 0.2 * (u - 0.5),
            _ => 0.2 * (u - 0.5),
        } as f32)
        .collect()
}

/// An input in [-1, 1].
pub(crate) fn image(name: &str, count: usize, salt: u64) -> Vec<f32> {
    uniform(name, count, salt).map(|u| (2.0 * u - 1.0) as f32).collect()
}

/// Parameters generated from their names; the shapes are those of the plan that asks.
pub(crate) struct Seeded<'a> {
    pub(crate) shapes: HashMap<&'a str, &'a [usize]>,
    pub(crate) salt: u64,
}

impl<'a> Seeded<'a> {
    pub(crate) fn new(plan: &'a mdm::plan::Plan, salt: u64) -> Self {
        let shapes = plan.params.iter().map(|param| (param.name.as_str(), param.shape.as_slice())).collect();
        Self { shapes, salt }
    }
}

impl WeightSource for Seeded<'_> {
    fn tensor(&self, name: &str) -> mdm::Result<Tensor<'_>> {
        let shape = self.shapes[name];
        Ok(Tensor { shape: shape.to_vec(), data: Cow::Owned(weight(name, shape, self.salt)) })
    }
}

/// The package's folder: the one that the test's runner names, which need not be where it was built.
pub(crate) fn manifest_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// A golden file: its metadata entry and its tensors.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) meta: Value,
    bytes: Vec<u8>,
}

impl Golden {
    pub(crate) fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let meta = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["meta"]).unwrap();
        Self { name: path.file_stem().unwrap().to_string_lossy().into_owned(), meta, bytes }
    }

    /// All files of `tests/golden` whose name starts with `prefix`; there must be one.
    pub(crate) fn all(prefix: &str) -> Vec<Self> {
        let folder = manifest_folder().join("tests/golden");
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "no golden file starts with {prefix}");
        paths.iter().map(|path| Self::open(path)).collect()
    }

    pub(crate) fn salt(&self) -> u64 {
        self.meta["salt"].as_u64().unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        tensors.names().into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub(crate) fn f32(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        Some(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    pub(crate) fn i64(&self, name: &str) -> Option<Vec<i64>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        Some(tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
    }
}

/// `[n, c, h, w]` as `[n, h, w, c]`.
pub(crate) fn channels_last(values: &[f32], n: usize, c: usize, pixels: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for sample in 0..n {
        for channel in 0..c {
            for p in 0..pixels {
                out[(sample * pixels + p) * c + channel] = values[(sample * c + channel) * pixels + p];
            }
        }
    }
    out
}

/// `|a - b| / |b|`.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    (difference / norm).sqrt()
}

/// The CPU with products of bf16 values, where it has them.
pub(crate) fn bf16_cpu(threads: usize) -> Option<Device> {
    let options =
        DeviceOptions { threads: Some(threads), precision: Precision::Bf16, ..DeviceOptions::default() };
    let device = Device::select("cpu", &options).unwrap();
    if device.info().precision != "bf16" {
        assert_eq!(device.info().precision, "f32");
        return None;
    }
    Some(device)
}
