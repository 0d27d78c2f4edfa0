//! Golden files and the values that are generated from names.

#![allow(dead_code)]

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

/// A file of reference values.
pub struct Golden {
    pub name: String,
    pub meta: Value,
    bytes: Vec<u8>,
}

impl Golden {
    /// All files of `tests/golden` whose description `has_form`, which must be some.
    pub fn all(has_form: impl Fn(&Value) -> bool) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let found: Vec<Self> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .map(|path| {
                let bytes = std::fs::read(&path).unwrap();
                let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
                let meta = serde_json::from_str(&header.metadata().as_ref().unwrap()["meta"]).unwrap();
                Self { name: path.file_name().unwrap().to_string_lossy().into_owned(), meta, bytes }
            })
            .filter(|golden| has_form(&golden.meta))
            .collect();
        assert!(!found.is_empty(), "no golden file of this form");
        found
    }

    pub fn salt(&self) -> u64 {
        self.meta["salt"].as_u64().unwrap()
    }

    pub fn cases(&self) -> &[Value] {
        self.meta["cases"].as_array().unwrap()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn i64s(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// A case's or a file's number.
pub fn size(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} of {value}")) as usize
}

/// Values in [0, 1): a splitmix64 stream seeded with the name's FNV-1a hash and the salt.
pub fn uniform(name: &str, count: usize, salt: u64) -> Vec<f64> {
    let hash = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let seed = hash.wrapping_add(salt);
    (1..=count as u64)
        .map(|i| {
            let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f64 / (1u64 << 24) as f64
        })
        .collect()
}

/// A parameter: uniform with unit gain if it has two dimensions or more, a norm's scale near 1, anything else near 0.
pub fn weight(name: &str, shape: &[usize], salt: u64) -> Vec<f32> {
    let gain = (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
    uniform(name, shape.iter().product(), salt)
        .into_iter()
        .map(|u| {
            let value = if shape.len() >= 2 {
                gain * (2.0 * u - 1.0)
            } else if name.ends_with(".weight") {
                1.0 + 0.2 * (u - 0.5)
            } else {
                0.2 * (u - 0.5)
            };
            value as f32
        })
        .collect()
}

/// Euclidean distance relative to the length of what is wanted.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
    difference / square(&mut want.iter().map(|w| f64::from(*w)))
}
