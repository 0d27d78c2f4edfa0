//! `mdm fit --tune` on what the demo draws.

mod support;

use support::{folders, mdm};

/// A folder with the demo's files in `demo`.
fn prepared() -> tempfile::TempDir {
    let folder = folders(&[]);
    mdm(folder.path(), &["demo", "-o", "demo"]).expect(0, &[]);
    folder
}

/// Tuning in small steps on the image that the demo labels.
fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments =
        vec!["fit", "--tune", "--backbone", "demo/backbone.safetensors", "-o", "tuned.safetensors"];
    arguments.extend(["--images", "demo/labelled.png", "--labels", "demo/labels.png", "--device", "cpu"]);
    arguments.extend(["--crop", "32", "--crops", "2"]);
    arguments.extend(more);
    arguments
}

#[test]
fn a_tuned_model_segments() {
    let folder = prepared();
    let folder = folder.path();
    let options = ["--steps", "3", "--classes", "ground,nucleus", "--seed", "7", "--json"];
    let report = mdm(folder, &arguments(&options)).expect(0, &["step 3"]).json();
    assert_eq!((&report["model"], &report["steps"]), (&"tuned.safetensors".into(), &3.into()), "{report}");
    assert_eq!((&report["images"], &report["classes"][1]["name"]), (&1.into(), &"nucleus".into()));
    assert!(report["classes"][0]["labelled_pixels"].as_u64().is_some_and(|pixels| pixels > 0), "{report}");
    assert!(
        report["loss"].as_f64().is_some_and(|loss| loss > 0.0) && report["held_out"].is_null(),
        "{report}"
    );
    let info = mdm(folder, &["info", "tuned.safetensors"]).expect(0, &[]);
    assert!(info.out.contains("nucleus"), "{}", info.out);
    let segment =
        ["segment", "--model", "tuned.safetensors", "demo/image.png", "-o", "out", "--device", "cpu"];
    mdm(folder, &segment).expect(0, &[]);
    assert!(folder.join("out/image.png").exists());
    // The same seed gives the same model.
    let first = std::fs::read(folder.join("tuned.safetensors")).expect("a model");
    mdm(folder, &arguments(&options)).expect(0, &[]);
    assert!(first == std::fs::read(folder.join("tuned.safetensors")).expect("a model"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_tuning_writes_no_model() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    let folder = prepared();
    let folder = folder.path();
    // A network that knows the size of its pixels makes the command say of an image that it does not.
    let path = folder.join("demo/backbone.safetensors");
    let mut bytes = std::fs::read(&path).expect("a backbone");
    let unknown = br#"\"microns_per_pixel\":null"#;
    let at = bytes.windows(unknown.len()).position(|window| window == unknown).expect("no size");
    bytes[at + unknown.len() - 4..at + unknown.len()].copy_from_slice(b"0.50");
    std::fs::write(&path, bytes).expect("a backbone");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mdm"))
        .current_dir(folder)
        .args(arguments(&["--time", "2m"]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    // The image is read by what can be stopped.
    let mut messages = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut said = String::new();
    while !said.contains("labelled.png") {
        assert!(messages.read_line(&mut said).expect("text") > 0, "it ended: {said}");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
    messages.read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{said}");
    assert!(said.contains("interrupted; no model was written"), "{said}");
    assert!(!folder.join("tuned.safetensors").exists());
}

#[test]
fn options_of_tuning_need_it() {
    let folder = folders(&[]);
    let fit = ["fit", "--backbone", "b.safetensors", "--images", "i", "--labels", "l", "-o", "o.safetensors"];
    let fails = |more: &[&str], words: &[&str]| {
        mdm(folder.path(), &[&fit[..], more].concat()).expect(2, words);
    };
    for option in ["--steps", "--crop", "--crops"] {
        fails(&[option, "64"], &["--tune"]);
    }
    for option in ["--learning-rate", "--jitter-scale", "--jitter-intensity"] {
        fails(&[option, "0.1"], &["--tune"]);
    }
    fails(&["--time", "10m"], &["--tune"]);
    fails(&["--pixel-loss", "ce"], &["--tune"]);
    fails(&["--quarter-turns"], &["--tune"]);
    // What only heads have is not for it.
    fails(&["--tune", "--heads-only"], &["--heads-only"]);
    fails(&["--tune", "--ensemble", "3"], &["--ensemble"]);
    fails(&["--tune", "--steps", "5", "--time", "10m"], &["--time"]);
    fails(&["--tune", "--time", "soon"], &["90s"]);
    fails(&["--tune", "--pixel-loss", "hinge"], &["ce-dice"]);
}
