//! `mdm pretrain --mpi`: several processes, one run. Built with the feature `mpi`; skipped where there is no `mpiexec`.

#![cfg(all(feature = "mpi", unix))]

mod support;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{backbone, folders, mdm, write_rgb};

const SIDE: usize = 40;

fn launcher() -> bool {
    let there = Command::new("mpiexec").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: there is no mpiexec");
    }
    there
}

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

fn arguments<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["pretrain", "images", "-o", run, "--init", "start.safetensors", "--batch", "8"];
    arguments.extend(["--device", "cpu", "--threads", "1", "--samples-every", "0"]);
    arguments.extend(more);
    arguments
}

/// Starts `count` processes.
fn launch(folder: &Path, count: usize, arguments: &[&str]) -> Child {
    Command::new("mpiexec")
        .args(["--oversubscribe", "--bind-to", "none", "-n", &count.to_string()])
        .arg(env!("CARGO_BIN_EXE_mdm"))
        .args(arguments)
        .current_dir(folder)
        .env("MDM_CACHE", "")
        // Containers run tests as root.
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the launcher starts")
}

fn succeeded(child: Child) -> Output {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn losses(folder: &Path, run: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(folder.join(run).join("log.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| line["loss"].as_f64())
        .collect()
}

fn wait_for_steps(folder: &Path, run: &str, steps: usize) {
    let start = Instant::now();
    while losses(folder, run).len() < steps {
        assert!(start.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The values of a checkpoint's parameters and averages.
fn values(folder: &Path, run: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder.join(run).join("checkpoint.safetensors")).expect("a checkpoint");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("a length"));
    bytes[8 + header as usize..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect()
}

/// Relative L2 distance.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / square(&mut b.iter().copied().map(f64::from))).sqrt()
}

/// Processes of the machine that run `mdm` in `folder`.
fn processes(folder: &Path) -> Vec<u32> {
    let folder = folder.canonicalize().expect("a folder");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let id = entry.file_name().to_string_lossy().parse::<u32>().ok()?;
            let runs_mdm = std::fs::read_link(entry.path().join("exe"))
                .is_ok_and(|exe| exe == Path::new(env!("CARGO_BIN_EXE_mdm")));
            let here = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder);
            (runs_mdm && here).then_some(id)
        })
        .collect()
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([name, &process.to_string()]).status().expect("kill is there");
    assert!(sent.success());
}

#[test]
fn two_processes_do_what_one_does() {
    if !launcher() {
        return;
    }
    let folder = prepared();
    let folder = folder.path();
    mdm(folder, &arguments("one", &["--steps", "6"])).expect(0, &[]);
    let output = succeeded(launch(folder, 2, &arguments("two", &["--steps", "6", "--mpi"])));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches("6 of 6 steps").count(), 1, "one of them reports: {said}");
    let (one, two) = (losses(folder, "one"), losses(folder, "two"));
    assert_eq!((one.len(), two.len()), (6, 6), "one of them keeps the log");
    for (one, two) in one.iter().zip(&two) {
        assert!((one / two - 1.0).abs() < 1e-5, "losses {one} and {two}");
    }
    // Not only the same loss: the same network.
    let error = distance(&values(folder, "two"), &values(folder, "one"));
    let start = distance(&values(folder, "one"), &vec![1e-30; values(folder, "one").len()]);
    assert!(error < 1e-4 && start > 1.0, "the checkpoints differ by {error}");

    // Going on with another number of processes is going on with the same run.
    mdm(folder, &["pretrain", "--resume", "one", "--steps", "9", "--device", "cpu", "--samples-every", "0"])
        .expect(0, &[]);
    let more = ["pretrain", "--resume", "two", "--steps", "9", "--device", "cpu", "--threads", "1", "--mpi"];
    succeeded(launch(folder, 4, &more));
    let error = distance(&values(folder, "two"), &values(folder, "one"));
    assert!(error < 1e-4, "the checkpoints differ by {error}");
}

#[test]
fn a_batch_that_cannot_be_divided_is_said() {
    if !launcher() {
        return;
    }
    let folder = prepared();
    let output = launch(folder.path(), 3, &arguments("run", &["--steps", "2", "--mpi"]));
    let output = output.wait_with_output().expect("it ends");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot be divided among 3 processes"), "{said}");
}

#[test]
fn a_process_that_dies_leaves_the_last_checkpoint() {
    if !launcher() {
        return;
    }
    let folder = prepared();
    let folder = folder.path();
    let options = ["--steps", "100000", "--save-every", "1", "--mpi"];
    let child = launch(folder, 2, &arguments("run", &options));
    wait_for_steps(folder, "run", 3);
    let ranks = processes(folder);
    assert_eq!(ranks.len(), 2);
    signal("-KILL", ranks[1]);
    let output = child.wait_with_output().expect("it ends");
    assert!(!output.status.success(), "the launcher says that it failed");
    mdm(folder, &["export", "run", "-o", "backbone.safetensors"]).expect(0, &[]);
    let steps = (losses(folder, "run").len() + 2).to_string();
    let resumed = [
        "pretrain",
        "--resume",
        "run",
        "--steps",
        &steps,
        "--device",
        "cpu",
        "--samples-every",
        "0",
        "--json",
    ];
    let summary = mdm(folder, &resumed).expect(0, &[]).json();
    assert_eq!(summary["step"].to_string(), steps);
}

#[test]
fn asking_one_process_to_stop_stops_all_with_a_checkpoint() {
    if !launcher() {
        return;
    }
    let folder = prepared();
    let folder = folder.path();
    let child = launch(folder, 2, &arguments("run", &["--steps", "100000", "--mpi"]));
    wait_for_steps(folder, "run", 3);
    signal("-TERM", processes(folder)[1]);
    let output = child.wait_with_output().expect("it ends");
    assert!(!output.status.success(), "it was interrupted");
    let done = losses(folder, "run").len();
    let steps = (done + 1).to_string();
    let resumed = [
        "pretrain",
        "--resume",
        "run",
        "--steps",
        &steps,
        "--device",
        "cpu",
        "--samples-every",
        "0",
        "--json",
    ];
    let summary = mdm(folder, &resumed).expect(0, &[]).json();
    assert_eq!(summary["step"], done + 1, "nothing is done twice");
}
