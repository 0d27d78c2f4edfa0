//! A picture of what the network restores.

use mdm_images::write_rgb;
use mdm_train::pretrain::Example;

use crate::error::{CliError, Result};

/// Pixels between pictures, and around them.
const GAP: usize = 4;

/// Rows of three pictures: as it is, what the network sees, what it makes of it.
pub(crate) struct Sheet {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) png: Vec<u8>,
}

impl Sheet {
    /// Shows examples of `size` pixels with `channels` channels, one a row.
    pub(crate) fn new(examples: &[Example], size: usize, channels: usize) -> Result<Self> {
        let side = size + GAP;
        let (width, height) = (3 * side + GAP, examples.len() * side + GAP);
        let mut png = Vec::new();
        write_rgb(&mut png, width, height, |y, row| {
            row.fill(255);
            let Some((example, y)) = within(y, side).and_then(|(at, y)| Some((examples.get(at)?, y))) else {
                return;
            };
            let pictures = [&example.original, &example.corrupted, &example.restored];
            for (at, picture) in pictures.into_iter().enumerate() {
                let left = GAP + at * side;
                for x in 0..size {
                    let pixel = &picture[(y * size + x) * channels..][..channels];
                    for (colour, out) in row[3 * (left + x)..][..3].iter_mut().enumerate() {
                        let value = pixel[if channels == 3 { colour } else { 0 }];
                        *out = ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
                    }
                }
            }
        })
        .map_err(|error| CliError::Failed(format!("cannot draw a sheet of samples: {error}")))?;
        Ok(Self { width, height, png })
    }
}

/// Which picture a position is in, and where.
fn within(at: usize, side: usize) -> Option<(usize, usize)> {
    let at = at.checked_sub(GAP)?;
    (at % side < side - GAP).then_some((at / side, at % side))
}
