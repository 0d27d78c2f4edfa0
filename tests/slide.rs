//! `examples/cpp/slide` builds with what is installed, and segments a slide, where OpenSlide, libtiff, libpng, CMake and the slide are
//! there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/installed.rs"]
mod installed;
#[path = "support/programs.rs"]
mod programs;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use installed::{installed, said, succeed};
use programs::{FOLDER, works};
use tiff::decoder::ifd::Value;
use tiff::decoder::{ChunkType, Decoder, DecodingResult};
use tiff::tags::Tag;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    FOLDER.join("modèle.safetensors")
}

/// A slide of real tissue, if the folder of real images is there.
fn slide() -> Option<PathBuf> {
    let shared = std::env::var_os("MDM_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let slide = shared.join("data/wsi/CMU-1-Small-Region.svs");
    if !slide.exists() {
        eprintln!("skipped: {} is missing", slide.display());
    }
    slide.exists().then_some(slide)
}

/// Whether all is there that the slide example is built with.
fn slide_tools() -> bool {
    let library = |name: &&str| {
        let found =
            Command::new("pkg-config").args(["--exists", name]).status().is_ok_and(|status| status.success());
        if !found {
            eprintln!("skipped: pkg-config knows no {name}");
        }
        found
    };
    ["cmake", "c++", "pkg-config"].into_iter().all(works)
        && ["openslide", "libtiff-4", "libpng"].iter().all(library)
}

/// The test model as if it had been trained on larger pixels.
fn coarse_model() -> PathBuf {
    let (from, to) = (br#"\"microns_per_pixel\":0.5"#, br#"\"microns_per_pixel\":4.0"#);
    let mut bytes = std::fs::read(model()).unwrap();
    let at = bytes.windows(from.len()).position(|bytes| bytes == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    let path = FOLDER.join("coarse.safetensors");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_slide_example_segments_a_slide_and_stops() {
    let (Some(slide), true) = (slide(), slide_tools()) else { return };
    let build = FOLDER.join("slide");
    let source = root().join("examples/cpp/slide");
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", installed().display());
    succeed(Command::new("cmake").arg("-S").arg(source).arg("-B").arg(&build).arg(prefix));
    succeed(Command::new("cmake").arg("--build").arg(&build).arg("--parallel"));
    let folder = tempfile::tempdir().unwrap();
    let program = |model: &Path| {
        let mut command = Command::new(build.join("slide"));
        command.arg(model).arg(&slide).args(["labels.tif", "overlay.png", "cpu"]).current_dir(folder.path());
        command
    };
    let files = || std::fs::read_dir(folder.path()).unwrap().count();

    // Some seconds of work, interrupted as soon as it has begun.
    let mut running = program(&model()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = folder.path().join("labels.tif.part");
    while !begun.exists() {
        assert!(running.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("interrupted"), "{}", said(&output));
    assert_eq!(files(), 0, "something is left behind");

    let output = program(&coarse_model()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(files(), 2);
    let mut file = std::fs::read(folder.path().join("labels.tif")).unwrap();
    // Indices of a palette, as which the decoder does not take them: PhotometricInterpretation becomes 1.
    let palette = [0x06, 0x01, 3, 0, 1, 0, 0, 0, 3, 0];
    let at = file.windows(palette.len()).position(|bytes| bytes == palette).unwrap();
    file[at + 8] = 1;
    let mut labels = Decoder::new(std::io::Cursor::new(file)).unwrap();
    assert_eq!(labels.dimensions().unwrap(), (2220, 2967));
    assert_eq!(labels.chunk_dimensions(), (256, 256));
    assert_eq!(labels.get_chunk_type(), ChunkType::Tile);
    assert_eq!(labels.colortype().unwrap(), tiff::ColorType::Gray(8));
    let resolution = labels.get_tag(Tag::XResolution).unwrap();
    let Value::Rational(dots, unit) = resolution else { panic!("{resolution:?}") };
    assert!((f64::from(dots) / f64::from(unit) - 1e4 / 0.499).abs() < 1.0);
    let DecodingResult::U8(labels) = labels.read_image().unwrap() else { panic!("not bytes") };
    let mut counts = [0usize; 3];
    labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
    assert!(counts.iter().filter(|&&count| count > 1000).count() >= 2, "{counts:?}");

    let file = std::fs::File::open(folder.path().join("overlay.png")).unwrap();
    let mut overlay = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let mut pixels = vec![0; overlay.output_buffer_size().unwrap()];
    let info = overlay.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (1110, 1484, png::ColorType::Rgb));
    // The slide's corner is bright glass; where it is background nothing is laid over it, elsewhere the dark colour of a class.
    for (x, y) in [(5, 5), (1100, 5), (5, 1475), (1100, 1475)] {
        let at = 3 * (y * 1110 + x);
        let background = [0, 1].iter().all(|dy| labels[(2 * y + dy) * 2220 + 2 * x..][..2] == [0, 0]);
        let bright = pixels[at..at + 3].iter().all(|&value| value > 220);
        assert!(bright || !background, "{x}, {y}: {:?}", &pixels[at..at + 3]);
    }

    let output = program(&slide).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("CMU-1-Small-Region.svs"), "{}", said(&output));
    assert_eq!(files(), 2);
}
