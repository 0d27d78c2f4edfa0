//! Writes checkpoints as PyTorch does, so far as tests need it.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test program uses a part")]

use std::io::Write;

/// Builds the pickle of nested dictionaries of tensors, and their storages.
pub struct Writer {
    zip: bool,
    pickle: Vec<u8>,
    storages: Vec<Vec<f32>>,
}

impl Writer {
    /// For a zip archive, or for the older format.
    pub fn new(zip: bool) -> Self {
        Self { zip, pickle: vec![0x80, 2], storages: Vec::new() }
    }

    pub fn open_dict(&mut self) {
        self.pickle.extend(b"}(");
    }

    pub fn close_dict(&mut self) {
        self.pickle.push(b'u');
    }

    pub fn text(&mut self, text: &str) {
        self.pickle.push(b'X');
        self.pickle.extend((text.len() as u32).to_le_bytes());
        self.pickle.extend(text.as_bytes());
    }

    fn int(&mut self, value: i64) {
        self.pickle.extend([0x8a, 8]);
        self.pickle.extend(value.to_le_bytes());
    }

    fn ints(&mut self, values: &[i64]) {
        self.pickle.push(b'(');
        values.iter().for_each(|&value| self.int(value));
        self.pickle.push(b't');
    }

    /// A tensor with a storage of its own.
    pub fn tensor(&mut self, shape: &[usize], values: &[f32]) {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let strides: Vec<i64> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        let key = self.storages.len();
        self.storages.push(values.to_vec());
        self.call(key, &shape, &strides, 0, values.len() as i64);
    }

    /// A view of storage 0, which is said to hold `count` values and need not exist.
    pub fn view(&mut self, shape: &[i64], strides: &[i64], offset: i64, count: i64) {
        self.call(0, shape, strides, offset, count);
    }

    fn call(&mut self, key: usize, shape: &[i64], strides: &[i64], offset: i64, count: i64) {
        self.pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.pickle.extend(b"ctorch\nFloatStorage\n");
        self.text(&key.to_string());
        self.text("cpu");
        self.int(count);
        if !self.zip {
            self.pickle.push(b'N');
        }
        self.pickle.extend(b"tQ");
        self.int(offset);
        self.ints(shape);
        self.ints(strides);
        self.pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }

    pub fn pickle(&self) -> Vec<u8> {
        [&self.pickle[..], b"."].concat()
    }

    fn bytes(&self) -> impl Iterator<Item = Vec<u8>> {
        self.storages.iter().map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// A zip archive of uncompressed entries.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
    for (name, content) in entries {
        let (mut entry, config) = archive.new_file(*name).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        writer.write_all(content).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    bytes
}

/// The checkpoint as a zip archive.
pub fn zipped(writer: &Writer) -> Vec<u8> {
    let storages: Vec<_> =
        writer.bytes().enumerate().map(|(key, bytes)| (format!("archive/data/{key}"), bytes)).collect();
    let pickle = writer.pickle();
    let mut entries = vec![("archive/data.pkl", &pickle[..]), ("archive/byteorder", b"little")];
    entries.extend(storages.iter().map(|(name, bytes)| (&name[..], &bytes[..])));
    zip(&entries)
}

/// The checkpoint in the format of PyTorch before 1.6.
pub fn legacy(writer: &Writer) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(b"\x80\x02}(X\x0d\0\0\0little_endian\x88u.");
    bytes.extend(writer.pickle());
    let mut keys = Writer::new(false);
    keys.pickle.extend(b"](");
    (0..writer.storages.len()).for_each(|key| keys.text(&key.to_string()));
    keys.pickle.extend(b"e.");
    bytes.extend(keys.pickle);
    for storage in writer.bytes() {
        bytes.extend((storage.len() as u64 / 4).to_le_bytes());
        bytes.extend(storage);
    }
    bytes
}
