//! Event files of TensorBoard: records of a length, a protocol buffer and checksums.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Result, failed};

/// A protocol buffer that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn integer(mut self, field: u32, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u32, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u32, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn message(self, field: u32, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// CRC-32C, rotated and offset as in TFRecord files.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `bytes` as a record of a TFRecord file.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked_checksum(bytes).to_le_bytes());
    record
}

/// An event file. Those of one folder are shown as one run.
pub(crate) struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// Begins a file in `folder`. What earlier files say of steps from `step` on is no longer shown.
    pub(crate) fn create(folder: &Path, step: u64) -> Result<Self> {
        let name = format!("events.out.tfevents.{:010}.{}.mdm", now() as u64, std::process::id());
        let path = folder.join(name);
        let file =
            File::create(&path).map_err(|error| failed(&path, format!("cannot be created: {error}")))?;
        let mut events = Self { file, path };
        events.put(event(0).bytes(3, b"brain.Event:2"))?;
        if step > 0 {
            // SessionLog with status START: the run starts again here.
            events.put(event(step).message(7, &Message::default().integer(1, 1)))?;
        }
        Ok(events)
    }

    /// Adds numbers to the curves of these names.
    pub(crate) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let value = Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32);
            summary = summary.message(1, &value);
        }
        self.put(event(step).message(5, &summary))
    }

    /// Adds an RGB picture, a PNG.
    pub(crate) fn image(
        &mut self,
        step: u64,
        tag: &str,
        (width, height): (usize, usize),
        png: &[u8],
    ) -> Result<()> {
        let image =
            Message::default().integer(1, height as u64).integer(2, width as u64).integer(3, 3).bytes(4, png);
        let value = Message::default().bytes(1, tag.as_bytes()).message(4, &image);
        self.put(event(step).message(5, &Message::default().message(1, &value)))
    }

    fn put(&mut self, event: Message) -> Result<()> {
        let path = &self.path;
        self.file
            .write_all(&record(&event.0))
            .map_err(|error| failed(path, format!("cannot be written: {error}")))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn event(step: u64) -> Message {
    Message::default().double(1, now()).integer(2, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_carry_masked_checksums() {
        // CRC-32C of "123456789" is 0xe3069283, the check value of its definition.
        let rotated = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_checksum(b"123456789"), rotated);
        let record = record(b"123456789");
        assert_eq!(record[..8], 9u64.to_le_bytes());
        assert_eq!(record[12..21], *b"123456789");
        assert_eq!(record[21..], rotated.to_le_bytes());
    }

    #[test]
    fn messages_are_protocol_buffers() {
        let message = Message::default().integer(1, 300).bytes(2, b"ab").float(2, 1.0);
        assert_eq!(message.0, [8, 0xac, 2, 0x12, 2, b'a', b'b', 0x15, 0, 0, 0x80, 0x3f]);
    }
}
