//! C programs use the library as hosts do: as they are, under sanitizers, and under Valgrind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use mdm::model::{
    BatchNorm, Class, Corruption, FeatureConfig, Head, Linear, METADATA_VERSION, MapWeights, Metadata, Model,
    Save, StoredType, UnetConfig,
};
use support::weight;

fn head(channels: usize, classes: usize, salt: u64) -> Head {
    let linear = |name: &str, inputs, outputs| Linear {
        inputs,
        outputs,
        weight: weight(&format!("{name}.weight"), &[outputs, inputs], salt),
        bias: weight(&format!("{name}.bias"), &[outputs], salt),
    };
    let norm = |name: &str, width| BatchNorm {
        weight: weight(&format!("{name}.weight"), &[width], salt),
        bias: weight(&format!("{name}.bias"), &[width], salt),
        running_mean: weight(&format!("{name}.mean"), &[width], salt),
        running_var: weight(&format!("{name}.variance.weight"), &[width], salt),
    };
    Head {
        linear: [linear("a", channels, 8), linear("b", 8, 8), linear("c", 8, classes)],
        norm: [norm("d", 8), norm("e", 8)],
    }
}

/// A folder of small models.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let unet = UnetConfig {
        image_size: 32,
        model_channels: 32,
        channel_mult: vec![1, 1, 1],
        num_res_blocks: 1,
        attention_ds: vec![],
        num_head_channels: Some(32),
        ..UnetConfig::mdm_paper()
    };
    let mut backbone = MapWeights::default();
    for (name, shape) in unet.parameters() {
        backbone.insert(&name, &shape, weight(&name, &shape, 0));
    }
    let class = |name: &str| Class { name: name.to_owned(), colour: [1, 2, 3] };
    let features = FeatureConfig { timesteps: vec![50], blocks: vec![0, 1], normalise: false };
    let channels = features.channels(&unet);
    let metadata = Metadata {
        version: METADATA_VERSION,
        backbone_fingerprint: None,
        corruption: Corruption::default(),
        features,
        window: 32,
        overlap: 0.25,
        microns_per_pixel: Some(0.5),
        classes: ["background", "nucleus", "border"].map(class).to_vec(),
        heads: 2,
        description: "a test".into(),
        unet,
    };
    let heads = (0..2).map(|salt| head(channels, 3, salt)).collect();
    let model = Model::from_parts(metadata, Arc::new(backbone), heads).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, backbone, heads| {
        model.save(&folder.path().join(name), Save { backbone, heads }).unwrap();
    };
    save("modèle.safetensors", Some(StoredType::F32), true);
    save("backbone.safetensors", Some(StoredType::F32), false);
    save("heads.safetensors", None, true);
    // Without its metadata things have to be assumed; with one tensor renamed one is missing.
    let bytes = std::fs::read(folder.path().join("backbone.safetensors")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    std::fs::write(folder.path().join("plain.safetensors"), replaced("\"mdm\":\"{", "\"xyz\":\"x")).unwrap();
    std::fs::write(folder.path().join("torn.safetensors"), replaced("\"out.2.bias\"", "\"out.2.bios\""))
        .unwrap();
    folder
});

fn works(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}

fn run(command: &mut Command) {
    // Drivers that the library asks for GPUs complain on standard error where there is no such folder.
    let output = command.env("XDG_RUNTIME_DIR", FOLDER.path()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{command:?} prints: {output:?}");
}

/// Where cargo puts libmdm.so when it builds tests.
fn libraries() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(folder.join("libmdm.so").exists(), "cargo builds libmdm.so with the tests");
    // The name by which programs look for it.
    let link = FOLDER.path().join("libmdm.so.0");
    if !link.exists() {
        let _ = std::os::unix::fs::symlink(folder.join("libmdm.so"), link);
    }
    folder
}

fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = FOLDER.path().join(format!("{name}{}", flags.concat().replace(['/', '=', ','], "_")));
    let libraries = libraries();
    run(Command::new("cc")
        .args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"])
        .args(flags)
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join(format!("tests/c/{name}.c")))
        .arg("-L")
        .arg(&libraries)
        .arg("-lmdm")
        .arg(format!("-Wl,-rpath,{}", FOLDER.path().display()))
        .arg("-o")
        .arg(&program));
    program
}

const SANITIZERS: &[&str] = &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// Whether programs can be linked with the sanitizers' libraries, and run.
fn sanitizers() -> bool {
    static CAN: LazyLock<bool> = LazyLock::new(|| {
        let source = FOLDER.path().join("empty.c");
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        let program = FOLDER.path().join("empty");
        let built = Command::new("cc").args(SANITIZERS).arg(source).arg("-o").arg(&program).output();
        built.is_ok_and(|output| output.status.success())
            && Command::new(program).output().is_ok_and(|output| output.status.success())
    });
    if !*CAN {
        eprintln!("skipped: cc has no sanitizers");
    }
    *CAN
}

fn plainly(name: &str, arguments: &[&str]) {
    if works("cc") {
        run(Command::new(compile(name, &[])).arg(FOLDER.path()).args(arguments));
    }
}

fn sanitized(name: &str, arguments: &[&str]) {
    if works("cc") && sanitizers() {
        run(Command::new(compile(name, SANITIZERS)).arg(FOLDER.path()).args(arguments));
    }
}

fn watched(name: &str, arguments: &[&str]) {
    if works("cc") && works("valgrind") {
        run(Command::new("valgrind")
            .args(["-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite,indirect"])
            .args(["--errors-for-leak-kinds=definite,indirect", "--fair-sched=yes", "--num-callers=30"])
            .arg(compile(name, &["-DVALGRIND"]))
            .arg(FOLDER.path())
            .args(arguments));
    }
}

#[test]
fn the_interface_does_what_the_header_says() {
    plainly("interface", &[]);
}

#[test]
fn threads_cancel_free_and_share() {
    plainly("threads", &["400"]);
}

#[test]
fn random_calls_end_with_a_status() {
    for seed in ["1", "2", "3"] {
        plainly("random", &["6000", seed]);
    }
}

#[test]
fn the_interface_under_sanitizers() {
    sanitized("interface", &[]);
}

#[test]
fn threads_under_sanitizers() {
    sanitized("threads", &["100"]);
}

#[test]
fn random_calls_under_sanitizers() {
    sanitized("random", &["10000", "4"]);
}

#[test]
fn the_interface_under_valgrind() {
    watched("interface", &[]);
}

#[test]
fn threads_under_valgrind() {
    watched("threads", &["8"]);
}
