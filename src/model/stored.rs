//! Tensors as they lie in a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::content::Content;
use super::{Precision, Tensor, WeightSource};
use crate::{Error, Result};

/// What a tensor's values are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
    F64,
    /// Something that cannot be a weight, by its name.
    Other(&'static str),
}

impl Element {
    fn size(self) -> Option<usize> {
        match self {
            Self::F64 => Some(8),
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::Other(_) => None,
        }
    }
}

/// Where a tensor lies and how it is read.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) element: Element,
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file, from the tensor's first value to the end of what it may touch.
    pub(crate) bytes: Range<usize>,
    /// Distance of neighbours along each dimension, in values; row-major where absent.
    pub(crate) strides: Option<Vec<usize>>,
}

impl StoredTensor {
    /// Number of values, where it can be expressed.
    pub(crate) fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// Whether all values lie within the bytes, and are no more than the bytes hold: a view that repeats values could
    /// claim any size.
    fn fits(&self) -> bool {
        let Some(size) = self.element.size() else { return true };
        let held = self.bytes.len() / size;
        let Some(count) = self.count() else { return false };
        if count == 0 {
            return true;
        }
        let last = match &self.strides {
            None => Some(count - 1),
            Some(strides) if strides.len() == self.shape.len() => {
                self.shape.iter().zip(strides).try_fold(0usize, |last, (&size, &stride)| {
                    last.checked_add((size - 1).checked_mul(stride)?)
                })
            }
            Some(_) => None,
        };
        count <= held && last.is_some_and(|last| last < held)
    }
}

/// The tensors of one file.
pub(crate) struct StoredTensors {
    content: Arc<Content>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl StoredTensors {
    /// # Errors
    /// [`Error::Tensor`] where one reaches outside of the file or claims more values than its bytes hold.
    pub(crate) fn new(content: Arc<Content>, tensors: BTreeMap<String, StoredTensor>) -> Result<Self> {
        let length = content.len();
        for (name, tensor) in &tensors {
            if tensor.bytes.end > length || tensor.bytes.start > tensor.bytes.end || !tensor.fits() {
                return Err(Error::tensor(
                    name,
                    format!(
                        "in {}: shape {:?} does not fit the bytes that are there; the file is damaged, get it again",
                        content.path().display(),
                        tensor.shape
                    ),
                ));
            }
        }
        Ok(Self { content, tensors })
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    pub(crate) fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &tensor.shape[..])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (&name[..], tensor))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensors whose names start with `prefix`, without it.
    pub(crate) fn below(&self, prefix: &str) -> Self {
        let named = |(name, tensor): (&String, &StoredTensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        Self { content: self.content.clone(), tensors: self.tensors.iter().filter_map(named).collect() }
    }

    fn error(&self, name: &str, reason: &str) -> Error {
        Error::tensor(name, format!("{reason} (in {})", self.content.path().display()))
    }
}

impl StoredTensors {
    fn read_f32(&self, range: Range<usize>, count: usize) -> Result<Cow<'_, [f32]>> {
        if let Some(bytes) = self.content.in_memory() {
            let bytes = bytes.get(range).unwrap_or_default();
            return Ok(match bytemuck::try_cast_slice(bytes) {
                Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
                _ => Cow::Owned(bytes.chunks_exact(4).map(|b| read_one(Element::F32, b)).collect()),
            });
        }
        let mut values = vec![0f32; count];
        self.content.read(range.start, bytemuck::cast_slice_mut(&mut values))?;
        if cfg!(target_endian = "big") {
            for value in &mut values {
                *value = f32::from_bits(value.to_bits().swap_bytes());
            }
        }
        Ok(Cow::Owned(values))
    }
}

impl WeightSource for StoredTensors {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let tensor = self.get(name).ok_or_else(|| {
            self.error(name, "is missing; the file is incomplete or not the model it is taken for")
        })?;
        let count = tensor.count().ok_or_else(|| self.error(name, "is larger than can be expressed"))?;
        let Some(size) = tensor.element.size() else {
            let Element::Other(what) = tensor.element else { unreachable!("only these have no size") };
            return Err(self.error(
                name,
                &format!("is stored as {what}; weights must be f32, f16 or bf16, convert the file"),
            ));
        };
        let range = tensor.bytes.start..tensor.bytes.start + size * count;
        let data = match (tensor.element, &tensor.strides) {
            (_, Some(strides)) => {
                Cow::Owned(gather(tensor, strides, &self.content.bytes(tensor.bytes.clone())?, count))
            }
            (Element::F32, None) => self.read_f32(range, count)?,
            (element, None) => {
                let mut values = Vec::with_capacity(count);
                self.content.pieces(range, |bytes| append(&mut values, element, bytes))?;
                Cow::Owned(values)
            }
        };
        if !all_finite(&data) {
            let bad = data.iter().filter(|value| !value.is_finite()).count();
            return Err(self.error(
                name,
                &format!(
                    "{bad} of its {count} values are infinite or not a number; the file is damaged or its training diverged, \
                     use another one"
                ),
            ));
        }
        Ok(Tensor { shape: tensor.shape.clone(), data })
    }

    fn precision(&self, name: &str) -> Precision {
        match self.get(name).map(|tensor| tensor.element) {
            Some(Element::F16) => Precision::F16,
            Some(Element::Bf16) => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

/// Whether no value is infinite or not a number.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    // Without an early exit inside a chunk the loop is vectorised.
    values.chunks(4096).all(|chunk| chunk.iter().fold(true, |finite, value| finite & value.is_finite()))
}

const CHUNK: usize = 1024;

fn read_f16(bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / 2];
    let mut halves = [f16::ZERO; CHUNK];
    for (from, to) in bytes.chunks(2 * CHUNK).zip(values.chunks_mut(CHUNK)) {
        for (half, b) in halves.iter_mut().zip(from.chunks_exact(2)) {
            *half = f16::from_le_bytes([b[0], b[1]]);
        }
        halves[..to.len()].convert_to_f32_slice(to);
    }
    values
}

/// Appends values that are stored as `element`.
fn append(values: &mut Vec<f32>, element: Element, bytes: &[u8]) {
    match element {
        Element::F16 => values.extend(read_f16(bytes)),
        Element::Bf16 => values.extend(read_bf16(bytes)),
        element => {
            let size = element.size().unwrap_or(1);
            values.extend(bytes.chunks_exact(size).map(|bytes| read_one(element, bytes)));
        }
    }
}

fn read_bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// The value that starts `bytes`, which hold at least one.
fn read_one(element: Element, bytes: &[u8]) -> f32 {
    match element {
        Element::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Element::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Element::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Element::F64 => {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[..8]);
            f64::from_le_bytes(eight) as f32
        }
        Element::Other(_) => f32::NAN,
    }
}

/// Values of a tensor with strides, in row-major order.
fn gather(tensor: &StoredTensor, strides: &[usize], bytes: &[u8], count: usize) -> Vec<f32> {
    let size = tensor.element.size().unwrap_or(1);
    let mut values = Vec::with_capacity(count);
    let mut index = vec![0; tensor.shape.len()];
    let mut at = 0;
    while values.len() < count {
        values.push(read_one(tensor.element, &bytes[at * size..]));
        for dimension in (0..index.len()).rev() {
            index[dimension] += 1;
            at += strides[dimension];
            if index[dimension] < tensor.shape[dimension] {
                break;
            }
            at -= strides[dimension] * index[dimension];
            index[dimension] = 0;
        }
    }
    values
}

/// `values` as bytes of a file, little endian.
pub(crate) fn encode(values: &[f32], precision: Precision) -> Cow<'_, [u8]> {
    match precision {
        Precision::F32 if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(values)),
        Precision::F32 => Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Precision::F16 => {
            let mut bytes = Vec::with_capacity(2 * values.len());
            let mut halves = [f16::ZERO; CHUNK];
            for chunk in values.chunks(CHUNK) {
                halves[..chunk.len()].convert_from_f32_slice(chunk);
                bytes.extend(halves[..chunk.len()].iter().flat_map(|half| half.to_le_bytes()));
            }
            Cow::Owned(bytes)
        }
        Precision::Bf16 => {
            Cow::Owned(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect())
        }
    }
}

/// `values` as they come back after having been stored.
pub(crate) fn round(values: Cow<'_, [f32]>, precision: Precision) -> Cow<'_, [f32]> {
    match precision {
        Precision::F32 => values,
        Precision::F16 => Cow::Owned(read_f16(&encode(&values, precision))),
        Precision::Bf16 => Cow::Owned(read_bf16(&encode(&values, precision))),
    }
}
