//! Segments one image with the library alone: `cargo run --release --example segment -- MODEL IMAGE.ppm LABELS.pgm`.
//!
//! The image is a binary PPM (P6, 8 bit), the labels become a PGM with the class indices as grey values; a host
//! application would hand over its own pixels.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use mdm::segment::SegmentOptions;
use mdm::{CancelToken, Control, Device, DeviceOptions, ImageView, Model, PixelFormat, Progress, Segmenter};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, image, labels] = arguments.as_slice() else {
        return Err("usage: segment MODEL IMAGE.ppm LABELS.pgm".into());
    };
    let model = Model::open(Path::new(model))?;
    let device = Device::select("auto", &DeviceOptions::default())?;
    println!("{} classes, on {}", model.metadata().classes.len(), device.info().name);

    let (width, height, pixels) = read_ppm(Path::new(image))?;
    let view = ImageView::new(&pixels, width, height, PixelFormat::Rgb8)?;

    // Another thread may call `stop.cancel()` at any time.
    let stop = CancelToken::new();
    let report = |progress: Progress| eprint!("\r{} of {} windows", progress.done, progress.total);
    let control = Control::none().with_cancel(&stop).with_progress(&report);

    let mut segmenter = Segmenter::new(&model, &device, SegmentOptions::default())?;
    let segmentation = segmenter.segment(&view, &control)?;
    eprintln!();

    let mut file = std::fs::File::create(labels)?;
    write!(file, "P5\n{width} {height}\n255\n")?;
    file.write_all(&segmentation.labels)?;
    Ok(())
}

/// Width, height and RGB values of a binary PPM without comments.
fn read_ppm(path: &Path) -> Result<(usize, usize, Vec<u8>), Box<dyn Error>> {
    let mut reader = BufReader::new(std::fs::File::open(path)?);
    let mut header = Vec::new();
    while header.len() < 4 {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err("the image ends in its header".into());
        }
        header.extend(line.split_whitespace().map(str::to_owned));
    }
    let [magic, width, height, highest] = header.as_slice() else { return Err("not a PPM header".into()) };
    if magic != "P6" || highest != "255" {
        return Err("not a binary 8-bit PPM".into());
    }
    let (width, height): (usize, usize) = (width.parse()?, height.parse()?);
    let len = width.checked_mul(height).and_then(|n| n.checked_mul(3)).ok_or("the image is too large")?;
    let mut pixels = Vec::new();
    reader.take(len as u64).read_to_end(&mut pixels)?;
    Ok((width, height, pixels))
}
