//! Reading and writing `.safetensors` files.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{Metadata as Header, TensorInfo};

use super::content::Content;
use super::stored::{Element, StoredTensor, StoredTensors, encode};
use super::{Precision, WeightSource};
use crate::{Error, Result};

/// Enough of a file to tell what it is.
const START: usize = 4096;

/// As in the reference implementation.
const LARGEST_HEADER: u64 = 100_000_000;

/// A file's tensors and the strings beside them.
pub struct SafetensorsFile {
    pub(crate) tensors: StoredTensors,
    pub(crate) strings: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens the file. Tensors are read when they are asked for: what is changed until then, changes them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ModelFile`] or [`Error::Tensor`] where it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(Arc::new(Content::open(path)?))
    }

    /// What the file says beside its tensors under `key`.
    pub fn string(&self, key: &str) -> Option<&str> {
        self.strings.get(key).map(String::as_str)
    }

    /// The tensors whose names start with `prefix`, under the rest of their names.
    pub fn below(&self, prefix: &str) -> impl WeightSource + Send + use<> {
        self.tensors.below(prefix)
    }

    pub(crate) fn read(content: Arc<Content>) -> Result<Self> {
        let start = content.start(START)?;
        let Some((length, _)) = start.split_first_chunk::<8>() else {
            let what = if start.is_empty() { "is empty" } else { "ends within its first 8 bytes" };
            return Err(content.error(format!("{what}; copy or download it again")));
        };
        if let Some(format) = super::import::foreign_format(&start) {
            return Err(content.error(format!("is {format}")));
        }
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length).ok().filter(|_| length <= LARGEST_HEADER).ok_or_else(|| {
            content.error(format!("claims a header of {length} bytes; this is not a safetensors file"))
        })?;
        let data = 8 + header;
        let Some(held) = content.len().checked_sub(data) else {
            return Err(content.error(format!(
                "ends after {} bytes, within its header of {length}; copy or download it again",
                content.len()
            )));
        };
        // The header's own offsets start at the end of the header. Reading it checks that they follow each other
        // without a gap and agree with the shapes.
        let header: Header = serde_json::from_slice(&content.bytes(8..data)?).map_err(|error| {
            content.error(format!("has a damaged header ({error}); copy or download it again"))
        })?;
        if header.data_len() != held {
            return Err(content.error(format!(
                "holds {held} bytes of tensors where its header promises {}; copy or download it again",
                header.data_len()
            )));
        }
        let tensors = header
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let tensor = StoredTensor {
                    element: element(info.dtype),
                    shape: info.shape.clone(),
                    bytes: data + info.data_offsets.0..data + info.data_offsets.1,
                    strides: None,
                };
                (name, tensor)
            })
            .collect();
        let strings =
            header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Self { tensors: StoredTensors::new(content, tensors)?, strings })
    }
}

fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::F64 => Element::F64,
        Dtype::I64 => Element::Other("i64"),
        Dtype::I32 => Element::Other("i32"),
        Dtype::I16 => Element::Other("i16"),
        Dtype::I8 => Element::Other("i8"),
        Dtype::U64 => Element::Other("u64"),
        Dtype::U32 => Element::Other("u32"),
        Dtype::U16 => Element::Other("u16"),
        Dtype::U8 => Element::Other("u8"),
        Dtype::BOOL => Element::Other("bool"),
        _ => Element::Other("a type that is not supported"),
    }
}

/// A tensor to write.
pub struct Entry<'a> {
    /// Its name in the file, under which `source` is asked for it.
    pub name: String,
    /// Its shape, which that of `source` must be.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub precision: Precision,
    /// Where it comes from.
    pub source: &'a dyn WeightSource,
}

/// Writes a file under a temporary name beside `path` and renames it when it is complete. One tensor is in memory at a
/// time.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be written to or is full, and what the sources say; `path` is as it was then.
pub fn write(path: &Path, mut entries: Vec<Entry<'_>>, strings: HashMap<String, String>) -> Result<()> {
    // Wide types first, so that every tensor is aligned to its type.
    entries.sort_by(|a, b| b.precision.size().cmp(&a.precision.size()).then_with(|| a.name.cmp(&b.name)));
    let mut infos = Vec::with_capacity(entries.len());
    let mut end = 0usize;
    for entry in &entries {
        let start = end;
        end = entry
            .shape
            .iter()
            .try_fold(entry.precision.size(), |bytes, &size| bytes.checked_mul(size))
            .and_then(|bytes| start.checked_add(bytes))
            .ok_or_else(|| Error::tensor(&entry.name, "is larger than a file can be"))?;
        let info = TensorInfo {
            dtype: match entry.precision {
                Precision::F32 => Dtype::F32,
                Precision::F16 => Dtype::F16,
                Precision::Bf16 => Dtype::BF16,
            },
            shape: entry.shape.clone(),
            data_offsets: (start, end),
        };
        infos.push((entry.name.clone(), info));
    }
    let unwritable = |reason: String| Error::ModelFile {
        path: path.to_owned(),
        reason: format!("cannot be written: {reason}"),
    };
    let header = Header::new(Some(strings), infos).map_err(|error| unwritable(error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| unwritable(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > LARGEST_HEADER {
        return Err(unwritable(format!("a header of {} bytes is too long", header.len())));
    }

    replace(path, |out| {
        let put = |out: &mut dyn Write, bytes: &[u8]| {
            out.write_all(bytes).map_err(|source| Error::Io {
                action: "write",
                path: path.to_owned(),
                source,
            })
        };
        put(out, &(header.len() as u64).to_le_bytes())?;
        put(out, &header)?;
        for entry in &entries {
            let tensor = entry.source.tensor(&entry.name)?;
            if tensor.shape != entry.shape {
                return Err(Error::tensor(
                    &entry.name,
                    format!("has shape {:?} where {:?} was expected", tensor.shape, entry.shape),
                ));
            }
            if entry.precision == Precision::F16 && tensor.data.iter().any(|value| value.abs() >= 65520.0) {
                return Err(Error::tensor(
                    &entry.name,
                    "holds values beyond the range of f16; store it as bf16 or f32",
                ));
            }
            put(out, &encode(&tensor.data, entry.precision))?;
        }
        Ok(())
    })
}

/// Gives `write` a temporary file in the folder of `path`, and renames it to `path` if that went well.
fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mdm-").suffix(".tmp");
    // Readable by whom the user's mask lets read, unlike other temporary files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder).map_err(failed("create a file in", folder))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    let file = out.into_inner().map_err(|error| failed("write", path)(error.into_error()))?;
    // A full disk may only show here.
    file.as_file().sync_all().map_err(failed("write", path))?;
    file.persist(path).map_err(|error| failed("replace", path)(error.error))?;
    // The new name outlives a power failure, too. Not every file system can do this to folders.
    #[cfg(unix)]
    let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}
