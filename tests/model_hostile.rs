//! Whatever bytes a file holds, reading it ends with a model or an error, soon and in little memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod checkpoint;
mod support;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use checkpoint::{Writer, legacy, zip, zipped};
use mdm::model::import::read_checkpoint;
use mdm::model::{BackboneOptions, Class, Head, MapWeights, Metadata, Model, Save, StoredType, UnetConfig};
use proptest::prelude::*;
use support::weight;

fn tiny() -> UnetConfig {
    UnetConfig {
        model_channels: 32,
        channel_mult: vec![1],
        num_res_blocks: 1,
        num_head_channels: Some(32),
        ..UnetConfig::mdm_paper()
    }
}

/// Reads a file in every way there is, and all that can be read of it.
fn exercise(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    let use_model = |model: Model| {
        let _ = model.summary();
        let _ = model.fingerprint();
    };
    if let Ok(model) = Model::open(&path) {
        use_model(model);
    }
    if let Ok(model) = Model::from_bytes(bytes.to_vec()) {
        use_model(model);
    }
    if let Ok(checkpoint) = read_checkpoint(&path) {
        let names: Vec<String> = checkpoint.tensors().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            if let Ok(tensor) = checkpoint.weights().tensor(&name) {
                assert_eq!(tensor.data.len(), tensor.shape.iter().product::<usize>());
                assert!(tensor.data.len() <= bytes.len());
            }
        }
        if let Ok(model) = checkpoint.into_backbone(&BackboneOptions::default()) {
            use_model(model);
        }
    }
    if let Ok(checkpoint) = read_checkpoint(&path) {
        let _ = checkpoint.into_heads();
    }
    check_memory();
}

/// Address space that this process has ever had, of which test threads take a part.
fn check_memory() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kilobytes: u64 = peak.unwrap();
    assert!(kilobytes < 4 << 20, "{kilobytes} kB were asked for");
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// Files that are in order: a model, and checkpoints of both formats.
static GOOD: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut weights = MapWeights::default();
    let mut writers = [Writer::new(true), Writer::new(false)];
    writers.iter_mut().for_each(Writer::open_dict);
    for (name, shape) in tiny().parameters() {
        let values = weight(&name, &shape, 0);
        for writer in &mut writers {
            writer.text(&name);
            writer.tensor(&shape, &values);
        }
        weights.insert(name, &shape, values);
    }
    writers.iter_mut().for_each(Writer::close_dict);
    let model = Model::from_parts(Metadata::new(tiny()), Arc::new(weights), Vec::new()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    model.save(&path, Save { backbone: Some(StoredType::F16), heads: false }).unwrap();
    let backbone = std::fs::read(&path).unwrap();
    Model::open(&path).unwrap();

    let read = folder.path().join("head.pt");
    std::fs::write(&read, fixture("head.pt")).unwrap();
    let mut heads: Vec<Head> = read_checkpoint(&read).unwrap().into_heads().unwrap();
    let mut metadata = model.metadata().clone();
    metadata.classes = Class::numbered(3);
    let channels = metadata.features.channels(&tiny());
    heads[0].linear[0].inputs = channels;
    heads[0].linear[0].weight = vec![0.5; 5 * channels];
    model.with_heads(metadata, heads).unwrap().save(&path, Save { backbone: None, heads: true }).unwrap();
    let heads = std::fs::read(&path).unwrap();
    Model::open(&path).unwrap();
    vec![
        backbone,
        heads,
        zipped(&writers[0]),
        legacy(&writers[1]),
        fixture("tensors.pt"),
        fixture("tensors_legacy.pt"),
        fixture("head.pt"),
        fixture("head_legacy.pt"),
    ]
});

/// Changes of bytes, most of them near either end, where files say what is in them.
fn changes() -> impl Strategy<Value = Vec<(usize, u8, bool)>> {
    let place = prop_oneof![0usize..64, 64usize..6000, any::<usize>()];
    prop::collection::vec((place, any::<u8>(), any::<bool>()), 1..6)
}

fn changed(bytes: &[u8], changes: &[(usize, u8, bool)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(place, value, from_end) in changes {
        let place = place % bytes.len();
        let place = if from_end { bytes.len() - 1 - place } else { place };
        bytes[place] = value;
    }
    bytes
}

/// Operations of pickles, more or less in the proportions that real ones have them.
fn pickles() -> impl Strategy<Value = Vec<u8>> {
    let operations: Vec<&'static [u8]> = vec![
        b"(", b"t", b"R", b"Q", b"u", b"s", b"a", b"e", b"b", b"}", b"]", b")", b"N", b"2", b"0", b"1", b"q\x00",
        b"q\x01", b"h\x00", b"h\x01", b"\x94", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x92", b"\x93",
        b"K\x00", b"K\x04", b"J\xff\xff\xff\xff", b"M\xff\xff", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\x07\0\0\0storage", b"X\x01\0\0\x000", b"X\x03\0\0\0cpu", b"X\x0f\0\0\0layers.0.weight",
        b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n", b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ",
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ",
        b".",
    ];
    prop::collection::vec(prop::sample::select(operations), 0..60).prop_map(|operations| operations.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), start in 0usize..4) {
        let start: &[u8] = [&b""[..], b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", b"\x20\0\0\0\0\0\0\0{\"a\":{"][start];
        exercise(&[start, &bytes].concat());
    }

    #[test]
    fn truncated_files(which in 0usize..8, length in any::<prop::sample::Index>()) {
        let good = &GOOD[which];
        let bytes = &good[..length.index(good.len())];
        exercise(bytes);
    }

    #[test]
    fn changed_bytes(which in 0usize..8, changes in changes()) {
        exercise(&changed(&GOOD[which], &changes));
    }

    #[test]
    fn changed_headers(number in any::<u64>(), digits in 0usize..20, which in 0usize..400) {
        // Some number in the header of a model becomes another one.
        let good = &GOOD[0];
        let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&good[8..8 + length]).unwrap();
        let places: Vec<usize> = header.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
        let at = places[which % places.len()];
        let end = at + header[at..].find(|c: char| !c.is_ascii_digit()).unwrap();
        let number = number >> (digits * 3);
        let header = format!("{}{number}{}", &header[..at], &header[end..]);
        exercise(&[&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &good[8 + length..]].concat());
    }

    #[test]
    fn random_pickles(pickle in pickles()) {
        exercise(&zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]));
        let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.}.";
        exercise(&[&magic[..], &pickle, b".](X\x01\0\0\x000e.\x04\0\0\0\0\0\0\0", &[0; 16]].concat());
    }
}
