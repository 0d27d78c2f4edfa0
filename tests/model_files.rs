//! Model files: what is written comes back, and what is not a model is refused with a reason.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mdm::model::{
    BackboneOptions, BatchNorm, Class, CorruptionKind, FeatureConfig, Head, Linear, MapWeights, Metadata,
    Model, Precision, Preset, Save, StoredType, UnetConfig,
};
use mdm::{Error, IntensityRange};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::{uniform, weight};

/// Two levels, a few hundred thousand parameters.
fn small() -> UnetConfig {
    UnetConfig {
        image_size: 32,
        model_channels: 32,
        channel_mult: vec![1, 2],
        num_res_blocks: 1,
        attention_ds: vec![2],
        num_head_channels: Some(32),
        ..UnetConfig::mdm_paper()
    }
}

fn weights(unet: &UnetConfig, salt: u64) -> MapWeights {
    let mut weights = MapWeights::default();
    for (name, shape) in unet.parameters() {
        let values = weight(&name, &shape, salt);
        weights.insert(name, &shape, values);
    }
    weights
}

fn backbone(salt: u64) -> Model {
    Model::from_parts(Metadata::new(small()), Arc::new(weights(&small(), salt)), Vec::new()).unwrap()
}

fn head(channels: usize, classes: usize, seed: u64) -> Head {
    let values = |name: &str, count| uniform(name, count, seed).map(|u| u as f32 - 0.5).collect::<Vec<_>>();
    let linear = |name: &str, inputs, outputs| Linear {
        inputs,
        outputs,
        weight: values(name, inputs * outputs),
        bias: values("bias", outputs),
    };
    let norm = |channels: usize| BatchNorm {
        weight: values("scale", channels),
        bias: values("shift", channels),
        running_mean: values("mean", channels),
        running_var: vec![1.5; channels],
    };
    Head {
        linear: [linear("a", channels, 16), linear("b", 16, 8), linear("c", 8, classes)],
        norm: [norm(16), norm(8)],
    }
}

fn fitted(backbone: &Model, heads: usize) -> Model {
    let mut metadata = backbone.metadata().clone();
    metadata.classes = Class::numbered(3);
    metadata.microns_per_pixel = Some(0.25);
    let channels = metadata.features.channels(&metadata.unet);
    backbone.with_heads(metadata, (0..heads).map(|i| head(channels, 3, i as u64)).collect()).unwrap()
}

const ALL: Save = Save { backbone: Some(StoredType::F32), heads: true };
const HEADS: Save = Save { backbone: None, heads: true };

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A state dict without metadata of ours, as somebody else's program would write it.
fn write_plain(path: &Path, tensors: &MapWeights, strings: &[(&str, &str)]) {
    let views = tensors.0.iter().map(|(name, tensor)| {
        let bytes = bytemuck::cast_slice(&tensor.data);
        (name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap())
    });
    let strings: HashMap<_, _> = strings.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(strings)).unwrap()).unwrap();
}

fn message(result: mdm::Result<Model>) -> String {
    result.expect_err("this should not open").to_string()
}

#[test]
fn backbone_and_heads_come_back() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let model = fitted(&backbone(0), 2);
    model.save(&path, ALL).unwrap();
    let read = Model::open(&path).unwrap();
    assert_eq!(read.heads(), model.heads());
    let mut expected = model.metadata().clone();
    expected.backbone_fingerprint = Some(model.fingerprint().unwrap());
    assert_eq!(*read.metadata(), expected);
    assert_eq!(read.fingerprint().unwrap(), model.fingerprint().unwrap());
    for (name, shape) in small().parameters() {
        let (there, here) = (read.backbone().unwrap().tensor(&name), model.backbone().unwrap().tensor(&name));
        let (there, here) = (there.unwrap(), here.unwrap());
        assert_eq!(there.shape, shape);
        assert_eq!(there.data, here.data, "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_an_error() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    fitted(&backbone(0), 1).save(&path, ALL).unwrap();
    let model = Model::open(&path).unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let last = model.fingerprint().unwrap_err();
    assert!(matches!(last, Error::Io { action: "read", .. }), "{last}");
    assert!(last.to_string().contains("model.safetensors"), "{last}");
}

#[test]
fn a_model_in_memory_is_that_of_its_file() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    fitted(&backbone(0), 2).save(&path, Save { backbone: Some(StoredType::AsIs), heads: true }).unwrap();
    let (file, bytes) = (Model::open(&path).unwrap(), std::fs::read(&path).unwrap());
    let memory = Model::from_bytes(bytes.clone()).unwrap();
    assert_eq!(memory.metadata(), file.metadata());
    assert_eq!(memory.heads(), file.heads());
    assert_eq!(memory.fingerprint().unwrap(), file.fingerprint().unwrap());
    assert_eq!(memory.path(), None);
    let error = message(Model::from_bytes(bytes[..bytes.len() - 1].to_vec()));
    assert!(error.starts_with("model in memory: holds"), "{error}");
    assert!(message(Model::from_bytes(Vec::new())).contains("is empty"));
}

#[test]
fn narrow_types_round_and_stay() {
    let folder = folder();
    let model = backbone(0);
    for (stored, precision, error) in
        [(StoredType::F16, Precision::F16, 1.0 / 1024.0), (StoredType::Bf16, Precision::Bf16, 1.0 / 128.0)]
    {
        let path = folder.path().join("narrow.safetensors");
        model.save(&path, Save { backbone: Some(stored), heads: false }).unwrap();
        let narrow = Model::open(&path).unwrap();
        let source = narrow.backbone().unwrap();
        for (name, _) in small().parameters() {
            assert_eq!(source.precision(&name), precision);
            let (there, here) =
                (source.tensor(&name).unwrap(), model.backbone().unwrap().tensor(&name).unwrap());
            for (a, b) in there.data.iter().zip(here.data.iter()) {
                assert!((a - b).abs() <= error * b.abs() + 1e-7, "{name}: {a} for {b}");
            }
        }
        assert_ne!(narrow.fingerprint().unwrap(), model.fingerprint().unwrap());
        assert_eq!(narrow.metadata().backbone_fingerprint, Some(narrow.fingerprint().unwrap()));

        let again = folder.path().join("again.safetensors");
        narrow.save(&again, Save { backbone: Some(StoredType::AsIs), heads: false }).unwrap();
        assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap());
        narrow.save(&again, Save { backbone: Some(StoredType::F32), heads: false }).unwrap();
        let wide = Model::open(&again).unwrap();
        assert_eq!(wide.backbone().unwrap().precision("out.2.bias"), Precision::F32);
        assert_eq!(wide.fingerprint().unwrap(), narrow.fingerprint().unwrap(), "the values are the same");
    }
}

#[test]
fn too_large_for_f16_leaves_the_old_file() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, "old").unwrap();
    let mut large = weights(&small(), 0);
    large.insert("out.2.bias", &[3], vec![0.0, 70000.0, 0.0]);
    let model = Model::from_parts(Metadata::new(small()), Arc::new(large), Vec::new()).unwrap();
    let error = model.save(&path, Save { backbone: Some(StoredType::F16), heads: false }).unwrap_err();
    assert!(error.to_string().contains("out.2.bias") && error.to_string().contains("bf16"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    model.save(&path, Save { backbone: Some(StoredType::Bf16), heads: false }).unwrap();
    Model::open(&path).unwrap();
}

#[test]
fn heads_alone_find_their_backbone_and_no_other() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (mine, other) = (backbone(0), backbone(1));
    mine.save(&at("mine.safetensors"), Save { backbone: Some(StoredType::F32), heads: false }).unwrap();
    other.save(&at("other.safetensors"), Save { backbone: Some(StoredType::F32), heads: false }).unwrap();
    let model = fitted(&mine, 1);
    model.save(&at("heads.safetensors"), HEADS).unwrap();
    assert!(std::fs::metadata(at("heads.safetensors")).unwrap().len() < 30_000);

    let alone = Model::open(&at("heads.safetensors")).unwrap();
    assert_eq!(alone.heads(), model.heads());
    assert!(!alone.has_backbone());
    assert_eq!(alone.fingerprint().unwrap(), mine.fingerprint().unwrap());
    let error = alone.backbone().err().unwrap().to_string();
    assert!(error.contains("--backbone") && error.contains("heads.safetensors"), "{error}");

    let open = |backbone: PathBuf| {
        Model::open_with(&at("heads.safetensors"), Some(&backbone), &BackboneOptions::default())
    };
    assert!(open(at("mine.safetensors")).unwrap().has_backbone());
    let error = message(open(at("other.safetensors")));
    assert!(error.contains("other.safetensors") && error.contains("heads.safetensors"), "{error}");

    // The same values without metadata, in another order and precision, are the same backbone.
    write_plain(&at("plain.safetensors"), &weights(&small(), 0), &[]);
    open(at("plain.safetensors")).unwrap();

    model.save(&at("both.safetensors"), ALL).unwrap();
    let both =
        Model::open_with(&at("both.safetensors"), Some(&at("mine.safetensors")), &BackboneOptions::default());
    assert!(message(both).contains("of its own"));
    let flags = BackboneOptions { window: Some(64), ..BackboneOptions::default() };
    assert!(
        message(Model::open_with(&at("both.safetensors"), None, &flags)).contains("leave the options out")
    );
    let plain =
        Model::open_with(&at("mine.safetensors"), Some(&at("mine.safetensors")), &BackboneOptions::default());
    assert!(message(plain).contains("holds no heads"));
}

#[test]
fn heads_must_fit_features_and_classes() {
    let model = backbone(0);
    let mut metadata = model.metadata().clone();
    metadata.classes = Class::numbered(3);
    let channels = metadata.features.channels(&metadata.unet);
    let mut negative = head(channels, 3, 0);
    negative.norm[1].running_var[2] = -1.0;
    let mut infinite = head(channels, 3, 0);
    infinite.linear[1].weight[5] = f32::INFINITY;
    for (head, reason) in [
        (head(channels + 1, 3, 0), "feature channels"),
        (head(channels, 2, 0), "classes"),
        (negative, "negative variance"),
        (infinite, "layers.3.weight"),
    ] {
        let error = message(model.with_heads(metadata.clone(), vec![head]));
        assert!(error.contains(reason), "{error}");
    }
    metadata.unet.image_size = 64;
    assert!(message(model.with_heads(metadata, Vec::new())).contains("configuration"));
}

#[test]
fn plain_state_dicts_are_described_by_metadata_sidecar_flags_or_shapes() {
    let folder = folder();
    let path = folder.path().join("plain.safetensors");
    let tensors = weights(&small(), 0);
    let none = BackboneOptions::default();

    write_plain(&path, &tensors, &[]);
    let inferred = Model::open(&path).unwrap();
    let assumed = UnetConfig { image_size: 256, ..small() };
    // 64 channels are all that the attention of the second level has.
    assert_eq!(inferred.metadata().unet, UnetConfig { num_head_channels: Some(64), ..assumed.clone() });
    assert_eq!(inferred.assumptions().len(), 4, "{:?}", inferred.assumptions());
    assert!(inferred.metadata().description.contains("Assumed"));

    let flags = BackboneOptions {
        num_head_channels: Some(32),
        image_size: Some(32),
        patch: Some(4),
        window: Some(48),
        microns_per_pixel: Some(0.5),
        use_new_attention_order: Some(false),
        ..none.clone()
    };
    let told = Model::open_with(&path, None, &flags).unwrap();
    assert_eq!(told.metadata().unet, small());
    assert_eq!(told.assumptions(), [""; 0]);
    assert_eq!((told.metadata().window, told.metadata().microns_per_pixel), (48, Some(0.5)));
    assert!(matches!(told.metadata().corruption.kind, CorruptionKind::Mask { patch: 4, .. }));

    let about = r#"{"model_channels": 32, "num_head_channels": 32, "patch": 16, "T": 40, "crop": 128, "loss": "ssim",
        "microns_per_pixel": 1.24}"#;
    write_plain(&path, &tensors, &[("other", "text"), ("about", about)]);
    let said = Model::open(&path).unwrap();
    assert_eq!(said.metadata().unet, assumed);
    assert_eq!((said.metadata().window, said.metadata().microns_per_pixel), (128, Some(1.24)));
    assert_eq!(said.metadata().corruption.timesteps, 40);
    assert_eq!(said.metadata().features.timesteps, [40], "50 would be after the last one");
    // A flag goes before the file.
    let flag = BackboneOptions { num_heads: Some(2), window: Some(96), ..none.clone() };
    let over = Model::open_with(&path, None, &flag).unwrap();
    assert_eq!((over.metadata().unet.num_heads, over.metadata().unet.num_head_channels), (2, None));
    assert_eq!(over.metadata().window, 96);

    write_plain(&path, &tensors, &[]);
    for (name, json) in [
        ("plain.json", serde_json::to_string(&small()).unwrap()),
        ("plain.safetensors.json", told.metadata().to_json().unwrap()),
    ] {
        let sidecar = folder.path().join(name);
        std::fs::write(&sidecar, json).unwrap();
        let model = Model::open(&path).unwrap();
        assert_eq!(model.metadata().unet, small(), "{name}");
        std::fs::remove_file(sidecar).unwrap();
    }
    std::fs::write(folder.path().join("plain.json"), "[1, 2]").unwrap();
    assert!(message(Model::open(&path)).contains("plain.json"));
}

#[test]
fn contradictions_name_the_first_tensor() {
    let folder = folder();
    let path = folder.path().join("plain.safetensors");
    let mut tensors = weights(&small(), 0);
    write_plain(&path, &tensors, &[]);
    let odd = BackboneOptions { num_head_channels: Some(48), ..BackboneOptions::default() };
    let error = Model::open_with(&path, None, &odd).unwrap_err();
    assert!(matches!(error, Error::Invalid { what: "num_head_channels", .. }), "{error}");
    let preset = BackboneOptions { preset: Some(Preset::MdmPaper), ..BackboneOptions::default() };
    let error = message(Model::open_with(&path, None, &preset));
    assert!(error.starts_with("tensor time_embed.0.weight: has shape [128, 32]"), "{error}");

    for (json, name) in [
        (r#"{"model_channels": 32, "channel_mult": [1, 4]}"#, "input_blocks.3.0.in_layers.2.weight"),
        (r#"{"model_channels": 32, "attention_ds": [1, 2]}"#, "input_blocks.1.1.norm.weight"),
        (r#"{"model_channels": 32, "attention_ds": []}"#, "output_blocks.1.1.in_layers.0.weight"),
        (r#"{"model_channels": 32, "use_scale_shift_norm": false}"#, "input_blocks.1.0.emb_layers.1.weight"),
        (r#"{"model_channels": 32, "resblock_updown": false}"#, "input_blocks.2.0.op.weight"),
        (r#"{"model_channels": 32, "num_classes": 4}"#, "label_emb.weight"),
    ] {
        write_plain(&path, &tensors, &[("about", json)]);
        let error = message(Model::open(&path));
        assert!(error.starts_with(&format!("tensor {name}: ")), "{json}: {error}");
        assert!(error.contains("plain.safetensors"), "{error}");
    }

    tensors.insert("input_blocks.9.0.op.bias", &[1], vec![0.0]);
    write_plain(&path, &tensors, &[]);
    assert!(message(Model::open(&path)).contains("input_blocks.9.0.op.bias: has no place"));
    tensors.0.remove("input_blocks.9.0.op.bias");

    // Without its last blocks it is not complete.
    tensors.0.remove("output_blocks.3.0.out_layers.3.weight");
    write_plain(&path, &tensors, &[]);
    assert!(message(Model::open(&path)).contains("output_blocks.3.0.out_layers.3.weight: is missing"));
    tensors.0.retain(|name, _| !name.starts_with("output_blocks.3."));
    write_plain(&path, &tensors, &[]);
    assert!(message(Model::open(&path)).contains("output_blocks.3.0.in_layers.2.weight: is missing"));
}

#[test]
fn values_that_are_not_finite_name_tensor_and_file() {
    let folder = folder();
    let path = folder.path().join("plain.safetensors");
    let mut tensors = weights(&small(), 0);
    tensors.insert("out.2.bias", &[3], vec![0.0, f32::NAN, f32::INFINITY]);
    write_plain(&path, &tensors, &[]);
    let model = Model::open(&path).unwrap();
    let error = model.backbone().unwrap().tensor("out.2.bias").unwrap_err();
    assert!(matches!(&error, Error::Tensor { name, .. } if name == "out.2.bias"));
    assert!(
        error.to_string().contains("2 of its 3 values") && error.to_string().contains("plain.safetensors"),
        "{error}"
    );
    assert!(model.fingerprint().is_err());
}

#[test]
fn damaged_files_are_refused_with_path_and_remedy() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    fitted(&backbone(0), 1).save(&path, ALL).unwrap();
    let good = std::fs::read(&path).unwrap();
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&good[8..8 + header_length]).unwrap();
    let with_header = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&good[8 + header_length..]);
        bytes
    };
    let with_length = |length: u64| [&length.to_le_bytes()[..], &good[8..]].concat();
    let metadata = |from: &str, to: &str| {
        assert!(header.contains(from), "{from}");
        with_header(&header.replacen(from, to, 1))
    };
    let one = |tensor: &str| with_header(&format!("{{\"a\":{tensor}}}"));
    for (what, bytes, reason) in [
        ("empty", Vec::new(), "is empty"),
        ("5 bytes", vec![1; 5], "ends within"),
        ("short header", good[..100].to_vec(), "within its header"),
        ("short data", good[..good.len() - 1].to_vec(), "promises"),
        ("long data", [&good[..], &[0]].concat(), "promises"),
        ("absurd header", with_length(u64::MAX), "claims a header of 18446744073709551615"),
        ("header past the limit", with_length(100_000_001), "claims a header"),
        ("not JSON", with_length(8), "damaged header"),
        ("overlap", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), "damaged header"),
        ("backwards", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,-4]}"#), "damaged header"),
        (
            "overflow",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}"#),
            "damaged header",
        ),
        (
            "past the end",
            one(r#"{"dtype":"F32","shape":[144115188075855872],"data_offsets":[0,576460752303423488]}"#),
            "promises",
        ),
        ("zip", b"PK\x03\x04 and more than eight bytes".to_vec(), "mdm import"),
        ("newer", metadata(r#"\"version\":2"#, r#"\"version\":3"#), "newer libmdm"),
        ("no version", metadata(r#"\"version\":2"#, r#"\"version\":0"#), "metadata version"),
        ("window", metadata(r#"\"window\":32"#, r#"\"window\":8193"#), "window"),
        ("overlap of 1", metadata(r#"\"overlap\":0.2"#, r#"\"overlap\":1.0"#), "overlap"),
        ("blocks", metadata(r#"\"blocks\":[0,1]"#, r#"\"blocks\":[1,0]"#), "blocks"),
        ("block 4", metadata(r#"\"blocks\":[0,1]"#, r#"\"blocks\":[0,4]"#), "no decoder block 4"),
        ("timestep", metadata(r#"\"timesteps\":[50]"#, r#"\"timesteps\":[1001]"#), "1001"),
        (
            "pixel size",
            metadata(r#"\"microns_per_pixel\":0.25"#, r#"\"microns_per_pixel\":-0.25"#),
            "microns_per_pixel",
        ),
        (
            "infinite pixel size",
            metadata(r#"\"microns_per_pixel\":0.25"#, r#"\"microns_per_pixel\":1e999"#),
            "metadata",
        ),
        ("colour", metadata(r#"\"colour\":[0,0,0]"#, r#"\"colour\":[0,0,256]"#), "metadata"),
        ("width", metadata(r#"\"model_channels\":32"#, r#"\"model_channels\":33"#), "model_channels"),
        ("heads", metadata(r#"\"heads\":1"#, r#"\"heads\":2"#), "heads.1.layers.0.weight: is missing"),
        ("no heads", metadata(r#"\"heads\":1"#, r#"\"heads\":0"#), "holds 14 tensors of heads"),
        ("features", metadata(r#"\"blocks\":[0,1]"#, r#"\"blocks\":[0]"#), "feature channels"),
        (
            "no metadata",
            with_header(&header.replace("mdm", "other").replace(r#"\"unet\""#, r#"\"net\""#)),
            "no metadata",
        ),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = message(Model::open(&path));
        assert!(error.contains(reason), "{what}: {error}");
        assert!(error.contains("model.safetensors") || error.starts_with("tensor"), "{what}: {error}");
    }
    assert!(message(Model::open(folder.path())).contains("not a regular file"));
    assert!(matches!(Model::open(&folder.path().join("missing")), Err(Error::Io { action: "open", .. })));
    std::fs::write(&path, with_header("{}")).unwrap();
    assert!(message(Model::open(&path)).contains("promises"));
    std::fs::write(&path, b"\x02\0\0\0\0\0\0\0{}").unwrap();
    assert!(message(Model::open(&path)).contains("neither"));
}

#[test]
fn saving_where_it_cannot_be_says_why() {
    let folder = folder();
    let model = backbone(0);
    let save = Save { backbone: Some(StoredType::AsIs), heads: false };
    let missing = folder.path().join("missing/model.safetensors");
    let error = model.save(&missing, save).unwrap_err();
    assert!(matches!(&error, Error::Io { action: "create a file in", .. }), "{error}");
    let error = model.save(folder.path(), save).unwrap_err();
    assert!(matches!(&error, Error::Io { action: "replace", .. }), "{error}");
    assert!(model.save(&missing, HEADS).is_err(), "there are no heads");
}

#[test]
fn a_summary_counts_what_is_there() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let model = fitted(&backbone(0), 2);
    model.save(&path, Save { backbone: Some(StoredType::F16), heads: true }).unwrap();
    let read = Model::open(&path).unwrap();
    let summary = read.summary();
    assert_eq!(summary.parameters, small().parameter_count());
    assert_eq!(summary.backbone_bytes, 2 * summary.parameters);
    assert_eq!(
        summary.stored_types.into_iter().collect::<Vec<_>>(),
        [(Precision::F16, small().parameters().len())]
    );
    assert_eq!(summary.backbone_fingerprint, Some(read.fingerprint().unwrap()));
    assert_eq!((summary.heads, summary.hidden, summary.feature_channels), (2, Some((16, 8)), 128));
    let values = (128 + 1) * 16 + 4 * 16 + (16 + 1) * 8 + 4 * 8 + (8 + 1) * 3;
    assert_eq!(summary.head_parameters, 2 * values);
    let json = serde_json::to_value(read.summary()).unwrap();
    assert_eq!(json["stored_types"]["f16"], small().parameters().len());
    assert_eq!(json["decoder_blocks"][1], serde_json::json!({"block": 1, "channels": 64, "downsampling": 1}));
}

#[test]
fn older_metadata_is_read_with_defaults_and_unknown_fields_are_ignored() {
    let json = r#"{"version": 1, "later": [], "window": 256, "features": {"timesteps": [50, 150], "blocks": [8, 9]},
        "unet": {"image_size": 256, "in_channels": 3, "out_channels": 3, "model_channels": 192, "channel_mult": [1,1,2,2,4,4],
        "num_res_blocks": 2, "attention_ds": [8,16,32], "num_head_channels": 64, "use_scale_shift_norm": true, "resblock_updown": true}}"#;
    let metadata = Metadata::from_json(json).unwrap();
    let mut expected = Metadata::new(UnetConfig::mdm_paper());
    expected.version = 1;
    // Before there were others.
    expected.intensity_range = IntensityRange::Type;
    expected.features = FeatureConfig { timesteps: vec![50, 150], blocks: vec![8, 9], normalise: false };
    assert_eq!(metadata, expected);
    assert_eq!(metadata.features.channels(&metadata.unet), 2 * 768);
    assert_eq!(Metadata::from_json(&metadata.to_json().unwrap()).unwrap(), metadata);
}

#[test]
fn default_features_follow_the_layout() {
    let paper = UnetConfig::mdm_paper();
    let features = FeatureConfig::for_unet(&paper);
    assert_eq!(features.blocks, [8, 9, 10, 11, 12]);
    assert_eq!(features.channels(&paper), 1728);
    let blocks = |mult: &[usize], blocks| {
        FeatureConfig::for_unet(&UnetConfig {
            channel_mult: mult.to_vec(),
            num_res_blocks: blocks,
            ..paper.clone()
        })
        .blocks
    };
    assert_eq!(blocks(&[1, 2, 2], 2), [1, 2, 3, 4, 5]);
    assert_eq!(blocks(&[1, 2], 1), [0, 1]);
    assert_eq!(blocks(&[1], 2), [0, 1, 2]);
}

#[test]
fn bundled_backbones_open() {
    let shared = std::env::var_os("MDM_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let mut tested = 0;
    for (name, window, microns) in [("mdm_nuclei_32", 128, None), ("mdm_glas_32", 128, Some(1.24))] {
        let path = shared.join("models").join(name).with_extension("safetensors");
        if !path.exists() {
            println!("skipped: {} is missing", path.display());
            continue;
        }
        let model = Model::open(&path).unwrap();
        let metadata = model.metadata();
        assert_eq!(
            metadata.unet,
            UnetConfig { model_channels: 32, num_head_channels: Some(32), ..UnetConfig::mdm_paper() }
        );
        assert_eq!((metadata.window, metadata.microns_per_pixel), (window, microns));
        assert_eq!(metadata.features.blocks, [8, 9, 10, 11, 12]);
        assert_eq!(model.fingerprint().unwrap().len(), 64);
        tested += 1;
    }
    println!("{tested} files");
}
