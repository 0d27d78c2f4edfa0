//! What the C interface costs: a C program and this one segment the same image in turns.
//!
//! `cargo bench --bench c-overhead -- MODEL [RUNS]`, where `mdm demo` makes a model. Needs `cc`.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use mdm::segment::SegmentOptions;
use mdm::{Control, Device, DeviceOptions, ImageView, Model, PixelFormat, Segmenter};

const SIDE: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds an option of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (model, runs) = match arguments.as_slice() {
        [model] => (model, 21),
        [model, runs] => (model, runs.parse()?),
        _ => return Err("usage: cargo bench --bench c-overhead -- MODEL [RUNS]".into()),
    };
    let mut random = 1u32;
    let pixels: Vec<u8> = (0..SIDE * SIDE * 3)
        .map(|i| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((i / 3 % SIDE / 20 + i / 3 / SIDE / 20) % 2 * 120) as u8 + (random >> 25) as u8
        })
        .collect();
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image");
    std::fs::write(&image, &pixels)?;
    let mut c = Command::new(compiled(folder.path())?)
        .arg(model)
        .arg(&image)
        .args([SIDE.to_string(), SIDE.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ask = c.stdin.take().ok_or("no standard input")?;
    let mut answers = BufReader::new(c.stdout.take().ok_or("no standard output")?).lines();

    let model = Model::open(Path::new(model))?;
    let device = Device::select("cpu", &DeviceOptions::default())?;
    let mut segmenter = Segmenter::new(&model, &device, SegmentOptions::default())?;
    let view = ImageView::new(&pixels, SIDE, SIDE, PixelFormat::Rgb8)?;
    let mut times = [Vec::new(), Vec::new()];
    let mut busy = [Vec::new(), Vec::new()];
    let processes = [std::process::id(), c.id()];
    for run in 0..=runs {
        // Each goes first every other time: the machine is not the same after a run as after a pause.
        let mut seconds = [0.0; 2];
        let mut sums = [0u64; 2];
        for side in [run % 2, 1 - run % 2] {
            let before = processor_seconds(processes[side]);
            if side == 0 {
                let start = Instant::now();
                let labels = segmenter.segment(&view, &Control::none())?.labels;
                seconds[0] = start.elapsed().as_secs_f64();
                sums[0] =
                    labels.iter().fold(0, |sum: u64, &label| sum.wrapping_mul(31).wrapping_add(label.into()));
            } else {
                ask.write_all(b"\n")?;
                let answer = answers.next().ok_or("the C program ended")??;
                let (time, sum) = answer.split_once(' ').ok_or("not an answer")?;
                (seconds[1], sums[1]) = (time.parse()?, sum.parse()?);
            }
            // The first run takes memory and packs weights.
            if run > 0 {
                times[side].push(seconds[side]);
                busy[side].push(processor_seconds(processes[side]) - before);
            }
        }
        if sums[0] != sums[1] {
            return Err("the two give different labels".into());
        }
    }
    drop(ask);
    c.wait()?;

    println!("{SIDE} x {SIDE} pixels, {runs} runs each in turns, on {}", device.info().name);
    println!("{:28}{:>11}{:>11}{:>10}", "", "Rust", "C", "C / Rust");
    for (what, values) in [("time", &mut times), ("time of processors", &mut busy)] {
        let [rust, c] = values;
        let mut ratios: Vec<f64> = rust.iter().zip(&*c).map(|(rust, c)| c / rust).collect();
        let medians = [median(rust), median(c)];
        for (kind, [rust, c]) in [("median", medians), ("least", [rust[0], c[0]])] {
            println!(
                "{:28}{:>8.2} ms{:>8.2} ms{:>10.4}",
                format!("{what}, {kind}"),
                rust * 1e3,
                c * 1e3,
                c / rust
            );
        }
        println!("{:28}{:>32.4}", format!("{what}, pairs"), median(&mut ratios));
    }
    Ok(())
}

/// Seconds that processors have worked for a process, as Linux counts them in nanoseconds: it does not depend on what else runs. 0 elsewhere.
fn processor_seconds(process: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 * 1e-9
}

/// Sorts.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The C side, linked with the library that cargo built with this program.
fn compiled(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let libraries = own.parent().ok_or("a program lies in a folder")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The name by which programs look for it.
    std::fs::copy(libraries.join("libmdm.so"), folder.join("libmdm.so.0"))?;
    let program = folder.join("overhead");
    let built = Command::new("cc")
        .args(["-std=c11", "-O2"])
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("benches/c-overhead/overhead.c"))
        .arg("-L")
        .arg(libraries)
        .arg("-lmdm")
        .arg(format!("-Wl,-rpath,{}", folder.display()))
        .arg("-o")
        .arg(&program)
        .status()?;
    if built.success() { Ok(program) } else { Err("the C program cannot be built".into()) }
}
