//! `mdm import`, `mdm info`, `mdm bench`, `mdm devices` and `mdm demo`.

mod support;

use support::{backbone, folders, mdm};

#[test]
fn a_plain_state_dict_is_imported_with_what_is_said_about_it() {
    let folder = folders(&[]);
    backbone(&folder.path().join("described.safetensors"));
    let strip = |name: &str| {
        let file = std::fs::read(folder.path().join("described.safetensors")).expect("the file is there");
        std::fs::write(folder.path().join(name), without_metadata(&file)).expect("a file for the test");
    };
    strip("plain.safetensors");
    let arguments = ["import", "plain.safetensors", "-o", "new.safetensors", "--type", "f16", "--json"];
    let flags =
        ["--image-size", "32", "--head-channels", "32", "--attention-order", "legacy", "--patch", "4"];
    let about = ["--mpp", "0.5", "--description", "from a test", "--blocks", "1,2", "--window", "64"];
    let run = mdm(folder.path(), &[&arguments[..], &flags, &about].concat()).expect(0, &[]);
    assert_eq!(run.err, "", "everything was said, so nothing is assumed");
    let info = mdm(folder.path(), &["info", "new.safetensors", "--json"]).expect(0, &[]).json();
    assert_eq!(info, run.json());
    assert_eq!(info["unet"]["channel_mult"], serde_json::json!([1, 2]));
    assert_eq!(info["unet"]["num_head_channels"], 32);
    assert_eq!(info["microns_per_pixel"], 0.5);
    assert_eq!(info["features"]["blocks"], serde_json::json!([1, 2]));
    assert_eq!(info["corruption"]["patch"], 4);
    assert_eq!((&info["window"], &info["has_backbone"]), (&64.into(), &true.into()));
    let sizes = ["described", "new"].map(|name| {
        std::fs::metadata(folder.path().join(format!("{name}.safetensors"))).expect("the file is there").len()
    });
    assert!(sizes[1] < sizes[0] * 6 / 10, "{sizes:?}");

    let guessed = mdm(folder.path(), &["info", "plain.safetensors"]).expect(0, &["assumed", "image_size"]);
    assert!(guessed.out.contains("a backbone"), "{}", guessed.out);
    std::fs::write(
        folder.path().join("a.json"),
        r#"{"image_size": 32, "num_head_channels": 32, "num_heads": -1}"#,
    )
    .expect("a file for the test");
    let told = ["info", "plain.safetensors", "--json", "--config", "a.json"];
    let told = mdm(folder.path(), &told).expect(0, &[]).json();
    assert_eq!(told["unet"]["image_size"], 32);
    mdm(folder.path(), &["info", "plain.safetensors", "--head-channels", "48"])
        .expect(2, &["num_head_channels"]);
    mdm(folder.path(), &["info", "plain.safetensors", "--preset", "mdm-paper"])
        .expect(1, &["plain.safetensors"]);
}

/// The same safetensors file, its header without strings.
fn without_metadata(file: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).expect("JSON");
    header.as_object_mut().expect("an object").remove("__metadata__");
    let mut header = header.to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[8 + length..]].concat()
}

#[test]
fn what_cannot_be_imported_is_said_and_leaves_nothing() {
    let folder = folders(&[]);
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).expect("a file for the test");
    };
    backbone(&folder.path().join("unet.safetensors"));
    let whole = std::fs::read(folder.path().join("unet.safetensors")).expect("the file is there");
    write("cut.safetensors", &whole[..whole.len() / 2]);
    write("empty.pt", b"");
    write("text.pt", b"this is no checkpoint at all, it only is called so");
    write("zip.pt", b"PK\x03\x04 and nothing else");
    write("huge.safetensors", &[0xff; 64]);
    let import =
        |inputs: &[&str]| mdm(folder.path(), &[&["import", "-o", "out.safetensors"], inputs].concat());
    for name in ["cut.safetensors", "empty.pt", "text.pt", "zip.pt", "huge.safetensors", "absent.pt"] {
        import(&[name]).expect(1, &[name]);
    }
    import(&["unet.safetensors", "unet.safetensors"]).expect(2, &["both hold a UNet"]);
    import(&["unet.safetensors", "--attention-heads", "2", "--head-channels", "4"])
        .expect(2, &["--attention-heads"]);
    mdm(folder.path(), &["import", "unet.safetensors", "-o", "unet.safetensors"])
        .expect(2, &["input and output"]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").flatten().collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

#[test]
fn bench_reports_times_and_memory() {
    let folder = folders(&[]);
    let arguments =
        ["bench", "--width", "32", "--window", "64", "--device", "cpu", "--runs", "2", "--batch", "2"];
    let report = mdm(folder.path(), &[&arguments[..], &["--json"]].concat()).expect(0, &[]).json();
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    assert_eq!((&report["device"]["kind"], &report["device"]["precision"]), (&"CPU".into(), &"f32".into()));
    assert!(report["fallback"].is_null() && report["ceilings"].is_null());
    assert!(["open_ms", "prepare_ms", "first_run_ms"].iter().all(|key| number(key) > 0.0));
    assert!(number("median_ms") >= number("min_ms") && number("min_ms") > 0.0);
    assert!((number("windows_per_second") * number("median_ms") / 2000.0 - 1.0).abs() < 1e-6);
    if cfg!(target_os = "linux") {
        assert!(number("peak_memory_mb") > number("arena_mb"));
    }
    let operations = report["operations"].as_array().expect("a list");
    let gflop: f64 = operations.iter().filter_map(|operation| operation["gflop"].as_f64()).sum();
    assert!((gflop - number("gflop")).abs() < 1e-9);
    let table = mdm(folder.path(), &arguments).expect(0, &[]);
    assert!(table.out.contains("convolution 3x3") && table.out.contains("GFLOP/s"), "{}", table.out);
    let several =
        ["bench", "--width", "32", "--window", "32", "--device", "cpu", "--runs", "1", "--batch", "1,2"];
    let reports = mdm(folder.path(), &[&several[..], &["--json"]].concat()).expect(0, &[]).json();
    let batches = reports.as_array().expect("a list").iter().map(|report| report["batch"].as_u64());
    assert!(batches.eq([Some(1), Some(2)]), "{reports}");
    let tables = mdm(folder.path(), &several).expect(0, &[]);
    assert!(tables.out.contains("batch 1,") && tables.out.contains("batch 2,"), "{}", tables.out);
    mdm(folder.path(), &["bench", "--batch", "0"]).expect(2, &["1 or more"]);
    mdm(folder.path(), &["bench", "--width", "33"]).expect(2, &["33", "32"]);
    mdm(folder.path(), &["bench", "--window", "100"]).expect(2, &["100", "multiple of 32"]);
    mdm(folder.path(), &["bench", "--width", "32", "--window", "64", "--blocks", "17..18"])
        .expect(2, &["18"]);
    mdm(folder.path(), &["bench", "--device", "abacus"]).expect(2, &["abacus", "cpu"]);
}

#[test]
fn the_demo_leaves_a_good_segmentation() {
    let folder = folders(&[]);
    let report = mdm(folder.path(), &["demo", "-o", "demo", "--json"]).expect(0, &[]).json();
    let dice = report["dice"].as_f64().expect("a number");
    assert!(dice > 0.88, "Dice {dice}");
    let score = ["eval", "--prediction", "demo/mask.png", "--truth", "demo/truth.png", "--json"];
    let score = mdm(folder.path(), &score).expect(0, &[]).json();
    assert_eq!(score["mean"]["dice"], dice);
    let segment = ["segment", "--model", "demo/model.safetensors", "demo/image.png", "-o", "again", "--json"];
    mdm(folder.path(), &segment).expect(0, &[]);
    let score = ["eval", "--prediction", "again/image.png", "--truth", "demo/mask.png", "--json"];
    assert_eq!(mdm(folder.path(), &score).expect(0, &[]).json()["mean"]["dice"], 1.0);
}

#[test]
fn files_that_are_no_models_say_what_they_are() {
    let folder = folders(&[]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    for (name, content, words) in
        [("lfs.safetensors", pointer, "git lfs pull"), ("login.pt", "<html>sign in</html>", "web page")]
    {
        std::fs::write(folder.path().join(name), content).expect("a file for the test");
        mdm(folder.path(), &["info", name]).expect(1, &[name, words]);
        mdm(folder.path(), &["import", name, "-o", "new.safetensors"]).expect(1, &[name, words]);
    }
    support::write_labels(&folder.path().join("image.png"), 2, &[0; 4]);
    mdm(folder.path(), &["info", "image.png"]).expect(1, &["image.png", "is a picture"]);
    // Tensors, but neither of a UNet nor of heads.
    let header = r#"{"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  "#;
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
    std::fs::write(folder.path().join("other.safetensors"), file).expect("a file for the test");
    mdm(folder.path(), &["import", "other.safetensors", "-o", "new.safetensors"])
        .expect(1, &["neither a UNet", "nor an MLP head", "fc.weight"]);
    assert!(!folder.path().join("new.safetensors").exists());
}
