//! The two kinds of files that `torch.save` writes.

use std::collections::HashMap;
use std::ops::Range;

use rawzip::{CompressionMethod, ZipLocator};

use super::pickle::{self, Graph, Node};
use crate::model::content::Content;

use super::torch::{Found, Storage, find, storages};

/// Entries of an archive, at most.
const MOST_ENTRIES: usize = 1_000_000;

/// Bytes of a pickle, at most: what describes tensors is small.
const MOST_OF_A_PICKLE: usize = 1 << 30;

/// Bytes in which the pickles of the old format are looked for first.
const FIRST_OF_PICKLES: usize = 4 << 20;

/// Reads a zip archive: `NAME/data.pkl` and the storages in `NAME/data/KEY`, stored without compression.
pub(super) fn read_zip(file: &Content) -> Result<Found, String> {
    let damaged =
        |error: rawzip::Error| format!("it is a damaged zip archive ({error}); copy or download it again");
    let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
    let archive = ZipLocator::new()
        .locate_in_reader(file, &mut buffer, file.len() as u64)
        .map_err(|(_, error)| damaged(error))?;
    let mut places: HashMap<String, Range<usize>> = HashMap::new();
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry().map_err(damaged)? {
        if entry.is_dir() {
            continue;
        }
        let path = entry.file_path();
        let Ok(name) = str::from_utf8(path.as_ref()).map(str::to_owned) else { continue };
        if entry.compression_method() != CompressionMethod::STORE || entry.flags().is_encrypted() {
            return Err(format!(
                "its entry {name:?} is compressed or encrypted; save the checkpoint again with torch.save"
            ));
        }
        if places.len() >= MOST_ENTRIES {
            return Err(format!("it has more than {MOST_ENTRIES} entries"));
        }
        let (start, end) = archive.get_entry(entry.wayfinder()).map_err(damaged)?.compressed_data_range();
        let place = |offset: u64| usize::try_from(offset).ok().filter(|offset| *offset <= file.len());
        let (Some(start), Some(end)) = (place(start), place(end)) else {
            return Err("it is a zip archive that is cut off; copy or download it again".to_owned());
        };
        places.insert(name, start..end);
    }
    let folder = places
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .min_by_key(|folder| folder.len())
        .ok_or("it is a zip archive without `data.pkl`, and so no PyTorch checkpoint")?
        .to_owned();
    let content = |name: &str| {
        let place = places.get(&format!("{folder}{name}"))?.clone();
        (place.len() <= MOST_OF_A_PICKLE).then(|| file.bytes(place).ok()).flatten()
    };
    if content("byteorder").is_some_and(|order| order.trim_ascii() == b"big") {
        return Err(BIG_ENDIAN.into());
    }
    let program = content("data.pkl").ok_or("its `data.pkl` is cut off or larger than any checkpoint's")?;
    let graph = pickle::read(&program).map_err(damaged_pickle)?;
    find(&graph, &|storage: &Storage<'_>| {
        let place = places
            .get(&format!("{folder}data/{}", storage.key))
            .ok_or_else(|| format!("its storage {:?} is missing; copy or download it again", storage.key))?;
        let length = storage.count.checked_mul(storage.size).filter(|&length| length <= place.len());
        let length = length.ok_or_else(|| {
            format!(
                "its storage {:?} holds {} bytes where {} values of {} bytes are promised; copy or download it again",
                storage.key,
                place.len(),
                storage.count,
                storage.size
            )
        })?;
        Ok(place.start..place.start + length)
    })
}

const BIG_ENDIAN: &str = "it was written on a big-endian machine; convert it with PyTorch there";

fn damaged_pickle(error: String) -> String {
    format!("its pickle cannot be read: {error}")
}

/// Reads five pickles (magic number, protocol, system, the object, the storages' keys) and the storages after them.
pub(super) fn read_legacy(file: &Content) -> Result<Found, String> {
    // How long the pickles are is known when they have been read.
    let mut length = FIRST_OF_PICKLES;
    loop {
        let start = file.start(length).map_err(|error| error.to_string())?;
        match read_legacy_from(file, &start) {
            Err(_) if length < file.len().min(MOST_OF_A_PICKLE) => length = length.saturating_mul(8),
            found => return found,
        }
    }
}

/// The same with the pickles in `bytes`, which starts the file.
fn read_legacy_from(file: &Content, bytes: &[u8]) -> Result<Found, String> {
    let mut at = 0;
    let mut next = || -> Result<Graph<'_>, String> {
        let graph = pickle::read(&bytes[at..]).map_err(damaged_pickle)?;
        at += graph.length;
        Ok(graph)
    };
    let _magic = next()?;
    let protocol = next()?;
    if protocol.int(protocol.root()) != Some(1001) {
        return Err("it is of an unknown version of PyTorch's old format".into());
    }
    let system = next()?;
    if let Node::Dict(items) = system.node(system.root()) {
        let little = items.iter().find(|&&(key, _)| system.text(key) == Some("little_endian"));
        if little.is_some_and(|&(_, value)| matches!(system.node(value), Node::Bool(false))) {
            return Err(BIG_ENDIAN.into());
        }
    }
    let object = next()?;
    let keys = next()?;
    let cut_off = || "it is cut off within its storages; copy or download it again".to_owned();

    let known = storages(&object)?;
    let mut places: HashMap<&str, Range<usize>> = HashMap::new();
    for &key in keys.sequence(keys.root()).ok_or("its list of storages is missing")? {
        let key = keys.text(key).ok_or("the key of a storage is not text")?;
        let storage =
            known.get(key).ok_or_else(|| format!("its storage {key:?} is of a class that is not read"))?;
        let mut count = [0; 8];
        file.read(at, &mut count).map_err(|_| cut_off())?;
        at += 8;
        let length = usize::try_from(i64::from_le_bytes(count))
            .ok()
            .and_then(|count| count.checked_mul(storage.size))
            .filter(|&length| length <= file.len().saturating_sub(at))
            .ok_or_else(cut_off)?;
        places.insert(key, at..at + length);
        at += length;
    }
    find(&object, &|storage: &Storage<'_>| {
        places.get(storage.key).cloned().ok_or_else(|| format!("its storage {:?} is missing", storage.key))
    })
}
