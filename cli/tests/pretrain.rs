//! `mdm pretrain` and `mdm export` with a tiny network.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Run, backbone, folders, mdm, write_rgb};

const SIDE: usize = 40;

/// A folder with images and a backbone to start from: the smallest network.
fn prepared() -> tempfile::TempDir {
    let folder = folders(&["images"]);
    backbone(&folder.path().join("start.safetensors"));
    for image in 0..3usize {
        let rgb: Vec<u8> = (0..SIDE * SIDE * 3).map(|i| (i * (7 + image) % 251) as u8).collect();
        write_rgb(&folder.path().join(format!("images/{image}.png")), SIDE, &rgb);
    }
    folder
}

/// Arguments of a new run called `run`.
fn arguments<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["pretrain", "images", "-o", run, "--init", "start.safetensors", "--batch", "4"];
    arguments.extend(["--microbatch", "2", "--device", "cpu", "--threads", "2", "--samples-every", "0"]);
    arguments.extend(more);
    arguments
}

fn resume(folder: &Path, run: &str, more: &[&str]) -> Run {
    let mut arguments = vec!["pretrain", "--resume", run, "--device", "cpu", "--threads", "2"];
    arguments.extend(more);
    mdm(folder, &arguments)
}

fn spawn(folder: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mdm"))
        .current_dir(folder)
        .env("MDM_CACHE", "")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

/// Losses that were logged, by step.
fn losses(folder: &Path, run: &str) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(folder.join(run).join("log.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)))
        .collect()
}

fn wait_for_steps(folder: &Path, run: &str, steps: usize) {
    let start = Instant::now();
    while losses(folder, run).len() < steps {
        assert!(start.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn checkpoint(folder: &Path, run: &str) -> Vec<u8> {
    std::fs::read(folder.join(run).join("checkpoint.safetensors")).expect("a checkpoint")
}

/// Its tensors; what is before them says how long it took.
fn tensors(checkpoint: &[u8]) -> &[u8] {
    let header = u64::from_le_bytes(checkpoint[..8].try_into().expect("a length"));
    &checkpoint[8 + header as usize..]
}

#[test]
fn a_killed_run_goes_on_with_the_same_bits() {
    let folder = prepared();
    let folder = folder.path();
    let options = ["--steps", "40", "--save-every", "3"];
    mdm(folder, &arguments("whole", &options)).expect(0, &[]);
    let mut child = spawn(folder, &arguments("killed", &options));
    wait_for_steps(folder, "killed", 7);
    child.kill().expect("it runs");
    assert!(!child.wait().expect("it ends").success(), "it was killed");
    assert_ne!(tensors(&checkpoint(folder, "whole")), tensors(&checkpoint(folder, "killed")));
    resume(folder, "killed", &[]).expect(0, &[]);
    assert!(!folder.join("killed/samples").exists(), "that no sheets are wanted is remembered");
    assert_eq!(tensors(&checkpoint(folder, "whole")), tensors(&checkpoint(folder, "killed")));
    assert_eq!(losses(folder, "whole"), losses(folder, "killed"));
    assert_eq!(losses(folder, "whole").len(), 40);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_and_stops() {
    let folder = prepared();
    let folder = folder.path();
    let options = ["--steps", "1000"];
    let child = spawn(folder, &arguments("run", &options));
    wait_for_steps(folder, "run", 2);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let done = losses(folder, "run").len();
    let steps = (done + 2).to_string();
    let summary = resume(folder, "run", &["--steps", &steps, "--json"]).expect(0, &[]).json();
    assert_eq!(summary["step"], done + 2);
    let numbers: Vec<u64> = losses(folder, "run").iter().map(|(step, _)| *step).collect();
    assert!(numbers.into_iter().eq(1..=(done + 2) as u64), "no step is missing, none was done twice");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let folder = prepared();
    let folder = folder.path();
    mdm(folder, &arguments("run", &["--steps", "2"])).expect(0, &[]);
    let before = checkpoint(folder, "run");
    // A limit on the size of files says "too large" where a full disk says "no space", at the same places.
    let script = format!(
        "trap '' XFSZ; ulimit -f 100; exec {} pretrain --resume run --steps 4 --device cpu --samples-every 0",
        env!("CARGO_BIN_EXE_mdm")
    );
    let output = Command::new("sh").current_dir(folder).args(["-c", &script]).output().expect("a shell");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("checkpoint of step 2 is intact") && message.contains("--resume run"),
        "{message}"
    );
    assert!(checkpoint(folder, "run") == before, "the checkpoint is what it was");
    let left = std::fs::read_dir(folder.join("run")).expect("a folder").flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(".mdm-")));
    resume(folder, "run", &["--steps", "4"]).expect(0, &[]);
}

#[test]
fn runs_are_watched_and_exported() {
    let folder = prepared();
    let folder = folder.path();
    std::fs::write(folder.join("images/broken.png"), "no image").expect("a file");
    let options =
        ["--steps", "3", "--samples-every", "2", "--samples", "3", "--json", "--mpp", "0.5", "--seed", "9"];
    let mut all = arguments("run", &[]);
    all.truncate(all.len() - 2);
    all.extend(options);
    let run = mdm(folder, &all).expect(0, &["left out", "broken.png"]);
    assert_eq!(run.err.matches("broken.png").count(), 1, "{}", run.err);
    let summary = run.json();
    assert_eq!((&summary["step"], &summary["left_out"]), (&3.into(), &1.into()));
    for file in ["samples/step-00000002.png", "samples/step-00000003.png", "log.jsonl"] {
        assert!(folder.join("run").join(file).is_file(), "{file} is missing");
    }
    let sheet = std::fs::File::open(folder.join("run/samples/step-00000003.png")).expect("a sheet");
    let sheet = png::Decoder::new(std::io::BufReader::new(sheet)).read_info().expect("a PNG");
    assert_eq!((sheet.info().width, sheet.info().height), (3 * 36 + 4, 3 * 36 + 4));
    let events = std::fs::read_dir(folder.join("run")).expect("a folder").flatten();
    let events: Vec<_> =
        events.filter(|entry| entry.file_name().to_string_lossy().contains("tfevents")).collect();
    assert!(events.len() == 1 && events[0].metadata().expect("a file").len() > 1000);

    let info = mdm(folder, &["export", "run", "-o", "exported.safetensors", "--type", "f16", "--json"])
        .expect(0, &[]);
    let info = info.json();
    assert_eq!(info["microns_per_pixel"], 0.5);
    assert_eq!(info["corruption"]["patch"], 8);
    let about = info["description"].as_str().expect("a description");
    assert!(about.contains("3 of 3 steps") && about.contains("4 images (images)"), "{about}");
    mdm(folder, &["export", "run", "-o", "last.safetensors", "--ema", "none"]).expect(0, &[]);
    mdm(folder, &["export", "run", "-o", "no.safetensors", "--ema", "0.77"]).expect(2, &["0.77", "rates"]);
    mdm(folder, &["export", "start.safetensors", "-o", "no.safetensors"]).expect(1, &["not a checkpoint"]);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let folder = prepared();
    let folder = folder.path();
    let refused = |more: &[&str], words: &[&str]| {
        let mut arguments = vec!["pretrain", "images", "-o", "run", "--device", "cpu"];
        arguments.extend(more);
        mdm(folder, &arguments).expect(2, words);
    };
    refused(&["--size", "100"], &["size", "multiple of 32"]);
    refused(&["--batch", "4", "--microbatch", "3"], &["microbatch", "does not divide"]);
    refused(&["--corruption", "gaussian", "--patch", "4"], &["--patch"]);
    refused(&["--corruption", "gaussian", "--loss", "ssim"], &["loss", "mse or l1"]);
    refused(&["--noise", "cosine"], &["--noise"]);
    refused(&["--save-every", "0"], &["minutes"]);
    mdm(folder, &["pretrain", "nothing", "-o", "run"]).expect(2, &["nothing", "no such file"]);
    mdm(folder, &["pretrain", "--resume", "nowhere"]).expect(2, &["nowhere", "no such folder"]);
    mdm(folder, &arguments("run", &["--steps", "1"])).expect(0, &[]);
    mdm(folder, &arguments("run", &[])).expect(2, &["holds a run already", "--resume"]);
    resume(folder, "run", &["--width", "64"]).expect(2, &["--width"]);
}
