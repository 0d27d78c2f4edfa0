//! What tests need that compile programs in other languages and run them with the library.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use mdm::model::{
    BatchNorm, Class, FeatureConfig, Head, Linear, MapWeights, Metadata, Model, Save, StoredType, UnetConfig,
};

use super::support::weight;

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

/// A folder of small models, made anew. It lies among what cargo builds: nothing that is static is dropped at the end.
pub(crate) static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = std::env::current_exe().unwrap().file_stem().unwrap().to_owned();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
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
        features,
        window: 32,
        overlap: 0.25,
        microns_per_pixel: Some(0.5),
        classes: ["background", "nucleus", "border"].map(class).to_vec(),
        heads: 2,
        description: "a test".into(),
        ..Metadata::new(unet)
    };
    let heads = (0..2).map(|salt| head(channels, 3, salt)).collect();
    let model = Model::from_parts(metadata, Arc::new(backbone), heads).unwrap();
    let save = |name: &str, backbone, heads| {
        model.save(&folder.join(name), Save { backbone, heads }).unwrap();
    };
    save("modèle.safetensors", Some(StoredType::F32), true);
    save("backbone.safetensors", Some(StoredType::F32), false);
    save("heads.safetensors", None, true);
    // Without its metadata things have to be assumed; with one tensor renamed one is missing.
    let bytes = std::fs::read(folder.join("backbone.safetensors")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    std::fs::write(folder.join("plain.safetensors"), replaced("\"mdm\":\"{", "\"xyz\":\"x")).unwrap();
    std::fs::write(folder.join("torn.safetensors"), replaced("\"out.2.bias\"", "\"out.2.bios\"")).unwrap();
    folder
});

/// Whether there is such a program; says so where there is none.
pub(crate) fn works(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}

/// Runs what must succeed and print nothing.
pub(crate) fn run(command: &mut Command) {
    // Drivers that the library asks for GPUs complain on standard error where there is no such folder.
    let output = command.env("XDG_RUNTIME_DIR", &*FOLDER).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{command:?} prints: {output:?}");
}

/// Runs a program under a checker of memory, without the GPU drivers of this machine: those leak.
pub(crate) fn run_checked(command: &mut Command) {
    run(command.env("VK_DRIVER_FILES", "none").env("VK_ICD_FILENAMES", "none"));
}

/// The root of the sources.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("include/mdm.h").exists()).unwrap()
}

/// Where cargo puts libmdm.so when it builds tests.
pub(crate) fn libraries() -> PathBuf {
    built("libmdm")
}

/// Where cargo puts a shared library when it builds tests.
pub(crate) fn built(name: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = folder.join(name).with_extension("so");
    assert!(library.exists(), "cargo builds {name}.so with the tests");
    // The name by which programs look for it.
    let link = FOLDER.join(format!("{name}.so.0"));
    if !link.exists() {
        let _ = std::os::unix::fs::symlink(library, link);
    }
    folder
}

pub(crate) const SANITIZERS: &[&str] = &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// Whether programs can be linked with the sanitizers' libraries, and run.
pub(crate) fn sanitizers(compiler: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("empty.c"), folder.path().join("empty"));
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let built = Command::new(compiler).args(SANITIZERS).arg(source).arg("-o").arg(&program).output();
    let can = built.is_ok_and(|output| output.status.success())
        && Command::new(program).output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("skipped: {compiler} has no sanitizers");
    }
    can
}
