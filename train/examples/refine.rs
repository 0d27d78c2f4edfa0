//! How long it takes until new scribbles are learnt: `cargo run --release -p mdm-train --example refine -- MODEL [DEVICE]`.
//!
//! Strokes are drawn on a made-up image of 512 x 512 pixels, some thousand pixels at a time, and three heads follow them.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use mdm::image::{ImageView, PixelFormat};
use mdm::model::{Class, Model};
use mdm::segment::FeatureOptions;
use mdm::{Control, Device, DeviceOptions};
use mdm_train::fit::{FitOptions, HeadFitter, RefineOptions};
use mdm_train::metrics::UNLABELLED;

const SIDE: usize = 512;

/// Whether there is a disc.
fn is_disc(y: usize, x: usize) -> bool {
    let (y, x) = ((y % 40) as f64 - 20.0, (x % 56) as f64 - 28.0);
    y * y + x * x < 150.0
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("which model?")?;
    let device = arguments.next().unwrap_or_else(|| "auto".to_owned());
    let model = Model::open(Path::new(&model))?;
    let device = Device::select(&device, &DeviceOptions::default())?;
    println!("{} on {}", model.metadata().description, device.info().name);

    let disc = |at: usize| is_disc(at / SIDE, at % SIDE);
    let pixels: Vec<u8> =
        (0..SIDE * SIDE).map(|at| 60 + 90 * u8::from(disc(at)) + (at * 7 % 31) as u8).collect();
    let image = ImageView::new(&pixels, SIDE, SIDE, PixelFormat::Grey8)?;
    let options = FitOptions { ensemble: 3, held_out: false, ..FitOptions::default() };
    let mut fitter =
        HeadFitter::new(&model, &device, Class::numbered(2), FeatureOptions::default(), options)?;
    fitter.set_image("image", &image)?;
    let control = Control::none();
    let mut labels = vec![UNLABELLED; SIDE * SIDE];
    for pass in 0..6 {
        // Six more strokes of 512 pixels.
        for stroke in 0..6 {
            let y = (pass * 37 + stroke * 83) % SIDE;
            for x in 0..SIDE {
                labels[y * SIDE + x] = u8::from(is_disc(y, x));
            }
        }
        let began = Instant::now();
        let report = fitter.set_labels("image", &labels, (SIDE, SIDE), &control)?;
        let labelled = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let fitted = fitter.refine(&RefineOptions::default(), &control)?;
        let refined = began.elapsed().as_secs_f64();
        println!(
            "{} samples, {} new, features of {} windows: {labelled:.3} s; {} of {} heads: {refined:.3} s, accuracy {:.4}",
            report.samples,
            report.fresh,
            report.windows,
            if pass == 0 { "fit" } else { "refinement" },
            fitted.heads.len(),
            fitted.training.accuracy
        );
    }
    Ok(())
}
