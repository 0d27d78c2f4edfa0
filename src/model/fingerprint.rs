//! Telling whether two backbones compute the same.

use super::WeightSource;
use crate::{Error, Result};

/// A BLAKE3 hash, as 64 hexadecimal digits, over the parameters sorted by name: each one's name, shape and the hash of
/// its values as little-endian f32.
///
/// Neither the order nor the precision in which a file stores them matters, as long as the values are the same.
pub(crate) fn fingerprint(
    source: &dyn WeightSource,
    mut parameters: Vec<(String, Vec<usize>)>,
) -> Result<String> {
    parameters.sort();
    let mut all = blake3::Hasher::new();
    for (name, shape) in &parameters {
        let tensor = source.tensor(name)?;
        if tensor.shape != *shape {
            return Err(Error::tensor(
                name,
                format!("has shape {:?}; the configuration makes it {shape:?}", tensor.shape),
            ));
        }
        let mut values = blake3::Hasher::new();
        if cfg!(target_endian = "little") {
            values.update(bytemuck::cast_slice(&tensor.data));
        } else {
            for value in tensor.data.iter() {
                values.update(&value.to_le_bytes());
            }
        }
        all.update(&(name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(&(shape.len() as u64).to_le_bytes());
        for &size in shape {
            all.update(&(size as u64).to_le_bytes());
        }
        all.update(values.finalize().as_bytes());
        drop(tensor);
    }
    Ok(all.finalize().to_hex().to_string())
}
