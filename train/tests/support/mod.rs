//! What several tests need: golden files and the values they are generated from.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

/// The package's folder: the one that the test's runner names, which need not be where it was built.
pub(crate) fn manifest_folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// A file of reference values.
pub(crate) struct Golden {
    bytes: Vec<u8>,
    /// Its own description.
    pub(crate) meta: serde_json::Value,
}

impl Golden {
    /// All files in `tests/golden` whose name starts with `form`; at least one.
    pub(crate) fn all(form: &str) -> Vec<Self> {
        let folder = manifest_folder().join("tests/golden");
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(form));
        paths.sort();
        assert!(!paths.is_empty(), "no golden file {form}*");
        let read = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            let meta = serde_json::from_str(&header.metadata().as_ref().unwrap()["meta"]).unwrap();
            Self { bytes, meta }
        };
        paths.iter().map(read).collect()
    }

    /// A tensor of f32.
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let words = self.bytes(name, Dtype::F32);
        words.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// A tensor of i64.
    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let words = self.bytes(name, Dtype::I64);
        words.chunks_exact(8).map(|word| i64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), dtype);
        tensor.data().to_vec()
    }
}

/// `count` values in [0, 1), multiples of 2^-24: a splitmix64 stream seeded with FNV-1a of `name`, plus `salt`.
pub(crate) fn uniform(name: &str, count: usize, salt: u64) -> Vec<f64> {
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let value = |index: u64| {
        let mut z = hash.wrapping_add(salt).wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    };
    (1..=count as u64).map(value).collect()
}

/// A parameter: uniform with unit gain if it has two dimensions or more, a norm's scale near 1, a bias near 0.
pub(crate) fn weight(name: &str, shape: &[usize], salt: u64) -> Vec<f32> {
    let values = uniform(name, shape.iter().product(), salt);
    let fan_in: usize = shape.iter().skip(1).product();
    let scaled = |value: f64| match shape.len() {
        0 | 1 if name.ends_with(".weight") => 1.0 + 0.2 * (value - 0.5),
        0 | 1 => 0.2 * (value - 0.5),
        _ => (3.0 / fan_in as f64).sqrt() * (2.0 * value - 1.0),
    };
    values.into_iter().map(|value| scaled(value) as f32).collect()
}
