//! PyTorch checkpoints: files that PyTorch wrote, and networks in both of its formats.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod checkpoint;
mod support;

use std::path::{Path, PathBuf};

use checkpoint::{Writer, legacy, zipped};
use mdm::Error;
use mdm::model::import::{Checkpoint, read_checkpoint};
use mdm::model::{BackboneOptions, Head, Model, Precision, Save, StoredType, UnetConfig};
use support::weight;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> Checkpoint {
    read_checkpoint(&fixture(name)).unwrap()
}

fn small() -> UnetConfig {
    UnetConfig {
        image_size: 256,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        num_head_channels: Some(64),
        ..UnetConfig::mdm_paper()
    }
}

#[test]
fn every_kind_of_tensor_is_read() {
    for name in ["tensors.pt", "tensors_legacy.pt"] {
        let checkpoint = read(name);
        let values = |name: &str| {
            let tensor = checkpoint.weights().tensor(name).unwrap();
            (tensor.shape, tensor.data.into_owned())
        };
        let base: Vec<f32> = (0u8..12).map(f32::from).collect();
        let transposed: Vec<f32> = (0..12).map(|i| base[i % 3 * 4 + i / 3]).collect();
        let every_other = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0].to_vec();
        for (tensor, shape, expected) in [
            ("plain", vec![3, 4], base.clone()),
            ("transposed", vec![4, 3], transposed.clone()),
            ("row", vec![4], base[4..8].to_vec()),
            ("every_other", vec![3, 2], every_other),
            ("parameter", vec![3, 4], base.iter().map(|value| value + 1.0).collect()),
            ("half", vec![3, 4], base.clone()),
            ("half_transposed", vec![4, 3], transposed),
            ("bfloat", vec![3, 4], base.clone()),
            ("double", vec![3, 4], base.clone()),
            ("scalar", vec![], vec![7.0]),
            ("empty", vec![0, 4], vec![]),
        ] {
            assert_eq!(values(&format!("state_dict.module.{tensor}")), (shape, expected), "{name}: {tensor}");
        }
        assert_eq!(values("list.0.inner").1, base);
        let precision = |tensor: &str| checkpoint.weights().precision(&format!("state_dict.module.{tensor}"));
        assert_eq!(
            ["plain", "half", "bfloat", "double"].map(precision),
            [Precision::F32, Precision::F16, Precision::Bf16, Precision::F32]
        );
        for (tensor, reason) in [("count", "i64"), ("repeated", "repeats")] {
            let error =
                checkpoint.weights().tensor(&format!("state_dict.module.{tensor}")).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(name), "{error}");
        }
        assert_eq!(checkpoint.tensors().count(), 14);
        let error = checkpoint.into_backbone(&BackboneOptions::default()).unwrap_err().to_string();
        assert!(error.contains("time_embed.0.weight") && error.contains("argparse.Namespace"), "{error}");
    }
}

/// The fixture's head: parameter k holds start + k, plus a 16th for each value before it.
fn check_head(head: &Head, start: usize) {
    // One number a batch norm is spent on the count of its batches.
    let layers = [("0", 0, 2), ("2", 2, 4), ("3", 7, 2), ("5", 9, 4), ("6", 14, 2)];
    assert_eq!((head.channels(), head.hidden(), head.classes()), (6, (5, 4), 3));
    let tensors = head.tensors("");
    assert_eq!(tensors.len(), 14);
    for (layer, first, parts) in layers {
        for (part, name) in ["weight", "bias", "running_mean", "running_var"][..parts].iter().enumerate() {
            let name = format!("layers.{layer}.{name}");
            let (_, _, values) = tensors.iter().find(|tensor| tensor.0 == name).unwrap();
            for (i, &value) in values.iter().enumerate() {
                assert_eq!(value, (start + first + part) as f32 + i as f32 / 16.0, "{name}");
            }
        }
    }
}

#[test]
fn heads_are_read_in_order() {
    for name in ["head.pt", "head_legacy.pt"] {
        assert_eq!(read(name).heads(), ["model_state_dict.module."]);
        let heads = read(name).into_heads().unwrap();
        assert_eq!(heads.len(), 1);
        check_head(&heads[0], 0);
    }
    let heads = read("ensemble.pt").into_heads().unwrap();
    assert_eq!(heads.len(), 11);
    for (start, head) in heads.iter().enumerate() {
        check_head(head, start);
    }
    let error = read("tensors.pt").into_heads().unwrap_err().to_string();
    assert!(error.contains("layers.0.weight") && error.contains("tensors.pt"), "{error}");
}

#[test]
fn a_pickled_module_is_refused_by_its_class() {
    let error = read("module.pt").into_backbone(&BackboneOptions::default()).unwrap_err();
    assert!(matches!(error, Error::ModelFile { .. }));
    let error = error.to_string();
    assert!(
        error.contains("torch.nn.modules.container.Sequential") && error.contains("state_dict()"),
        "{error}"
    );
}

/// A checkpoint with the small network under each of some keys; the salt of its values is their position.
fn write_networks(path: &Path, prefixes: &[(&str, &str)], zip: bool) {
    let mut writer = Writer::new(zip);
    writer.open_dict();
    for (salt, (key, prefix)) in prefixes.iter().enumerate() {
        writer.text(key);
        writer.open_dict();
        for (name, shape) in small().parameters() {
            writer.text(&format!("{prefix}{name}"));
            writer.tensor(&shape, &weight(&name, &shape, salt as u64));
        }
        writer.close_dict();
    }
    writer.close_dict();
    std::fs::write(path, if zip { zipped(&writer) } else { legacy(&writer) }).unwrap();
}

#[test]
fn networks_are_found_under_any_name_and_averages_preferred() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("network.pt"), folder.path().join("network.safetensors"));
    let none = BackboneOptions::default();
    for zip in [true, false] {
        for (prefixes, chosen) in [
            (&[("state_dict", "module.")][..], 0),
            (&[("model", "_orig_mod."), ("ema", "ema_model."), ("model_2", "")], 1),
            (&[("online", "model."), ("net", "")], 1),
        ] {
            write_networks(&path, prefixes, zip);
            let checkpoint = read_checkpoint(&path).unwrap();
            assert_eq!(checkpoint.backbones().len(), prefixes.len());
            let model = checkpoint.into_backbone(&none).unwrap();
            assert_eq!(model.metadata().unet, small());
            let several = model.assumptions().iter().any(|assumption| assumption.contains("prefix"));
            assert_eq!(several, prefixes.len() > 1);
            for (name, shape) in small().parameters() {
                let tensor = model.backbone().unwrap().tensor(&name).unwrap();
                assert_eq!(tensor.shape, shape);
                assert_eq!(tensor.data, weight(&name, &shape, chosen), "{name}");
            }
            model.save(&out, Save { backbone: Some(StoredType::AsIs), heads: false }).unwrap();
            let saved = Model::open(&out).unwrap();
            assert_eq!(saved.fingerprint().unwrap(), model.fingerprint().unwrap());
            assert!(saved.metadata().description.contains("Assumed"));
        }
        let told = BackboneOptions { prefix: Some("online.model.".into()), ..none.clone() };
        let model = read_checkpoint(&path).unwrap().into_backbone(&told).unwrap();
        assert_eq!(
            model.backbone().unwrap().tensor("out.2.bias").unwrap().data,
            weight("out.2.bias", &[3], 0)
        );
        let wrong = BackboneOptions { prefix: Some("ema.".into()), ..none.clone() };
        let error = read_checkpoint(&path).unwrap().into_backbone(&wrong).unwrap_err().to_string();
        assert!(error.contains("online.model."), "{error}");

        let error = Model::open(&path).unwrap_err().to_string();
        assert!(error.contains("mdm import"), "{error}");
    }
}

#[test]
fn safetensors_are_read_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.pt");
    write_networks(&path, &[("net", "")], true);
    let model = read_checkpoint(&path).unwrap().into_backbone(&BackboneOptions::default()).unwrap();
    let safetensors = folder.path().join("network.safetensors");
    model.save(&safetensors, Save { backbone: Some(StoredType::F32), heads: false }).unwrap();
    let again = read_checkpoint(&safetensors).unwrap();
    assert_eq!(again.backbones(), [""]);
    let again = again.into_backbone(&BackboneOptions::default()).unwrap();
    assert_eq!(again.fingerprint().unwrap(), model.fingerprint().unwrap());
}

#[test]
fn cut_off_and_foreign_files_are_refused_with_path_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.pt");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match read_checkpoint(&path) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("this should not be read"),
        }
    };
    for name in ["tensors.pt", "tensors_legacy.pt"] {
        let good = std::fs::read(fixture(name)).unwrap();
        let error = refused(&good[..good.len() - 40]);
        assert!(error.contains("network.pt") && error.contains("again"), "{error}");
    }
    let mut writer = Writer::new(true);
    writer.open_dict();
    writer.text("a");
    writer.tensor(&[4], &[1.0; 4]);
    writer.close_dict();
    let big = checkpoint::zip(&[("a/byteorder", b"big"), ("a/data.pkl", &writer.pickle())]);
    assert!(refused(&big).contains("big-endian"));
    assert!(
        refused(&checkpoint::zip(&[("a/data.pkl", &writer.pickle())])).contains("storage \"0\" is missing")
    );
    let short = checkpoint::zip(&[("a/data.pkl", &writer.pickle()), ("a/data/0", &[0; 15])]);
    assert!(refused(&short).contains("holds 15 bytes"));
    assert!(refused(&checkpoint::zip(&[("readme", b"text")])).contains("data.pkl"));
    assert!(refused(b"GIF89a, a picture of a cat").contains("is a picture"));
    assert!(refused(b"\n<!DOCTYPE HTML><html>sign in</html>").contains("is a web page"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    assert!(refused(pointer).contains("git lfs pull"));
    assert!(refused(b"no model of any kind").contains("not a safetensors file"));
    assert!(refused(b"").contains("is empty"));
}

#[test]
fn hostile_pickles_are_refused_quickly() {
    let refused = |pickle: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.pt");
        std::fs::write(&path, checkpoint::zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 64])])).unwrap();
        let read = read_checkpoint(&path)
            .and_then(|checkpoint| checkpoint.into_backbone(&BackboneOptions::default()));
        read.expect_err("this should not be read").to_string()
    };
    // os.system("…") is neither called nor found.
    let error = refused(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.");
    assert!(error.contains("posix.system"), "{error}");

    // Twelve levels of dictionaries, each holding the next a hundred times.
    let mut nested = b"\x80\x02}q\x00".to_vec();
    for level in 0..12u8 {
        nested.extend([b'}', b'q', level + 1, b'(']);
        for i in 0..100 {
            nested.extend([b'K', i, b'h', level]);
        }
        nested.push(b'u');
    }
    nested.push(b'.');
    assert!(refused(&nested).contains("500000 ways"));

    let mut many = vec![0x80, 2];
    many.resize(3_000_000, b'N');
    assert!(refused(&many).contains("2000000 operations"));

    for (pickle, reason) in [
        (&b"\x80\x02X\xff\xff\xff\xff"[..], "ends in the middle"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "ends in the middle"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "ends in the middle"),
        (b"\x80\x02u.", "a mark is missing"),
        (b"\x80\x02(u.", "stack is empty"),
        (b"\x80\x02}(K\x01u.", "a key has no value"),
        (b"\x80\x02h\x07.", "never stored"),
        (b"\x80\x02K\x01\x86.", "stack is empty"),
        (b"\x80\x02K\x01K\x01a.", "no list"),
        (b"I01\n.", "0x49"),
        (b"\x80\x02.", "stack is empty"),
        // A dictionary that holds itself.
        (b"\x80\x02}q\x00K\x01h\x00s.", "time_embed"),
    ] {
        let error = refused(pickle);
        assert!(error.contains(reason), "{reason}: {error}");
    }

    // Shapes, strides and offsets that reach outside of the storage or overflow.
    for (shape, strides, offset) in [
        (vec![5], vec![1], 0),
        (vec![1], vec![1], 4),
        (vec![2, 2], vec![3, 1], 0),
        (vec![i64::MAX, i64::MAX], vec![i64::MAX, i64::MAX], i64::MAX),
        (vec![-1], vec![1], 0),
        (vec![2], vec![-1], 1),
        (vec![2], vec![1, 1], 0),
    ] {
        let mut writer = Writer::new(true);
        writer.open_dict();
        writer.text("time_embed.0.weight");
        writer.view(&shape, &strides, offset, 4);
        writer.close_dict();
        let error = refused(&writer.pickle());
        assert!(error.contains("storage"), "{shape:?}: {error}");
    }
    // Four values that claim to be 2^40 are not a weight.
    let mut writer = Writer::new(true);
    writer.open_dict();
    writer.text("time_embed.0.weight");
    writer.view(&[1 << 20, 1 << 20], &[0, 0], 0, 4);
    writer.close_dict();
    refused(&writer.pickle());
}
