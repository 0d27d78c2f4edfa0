//! Crops of labelled images, each a little different.

use mdm::segment::mirrored;
use mdm::{Error, Result};

use super::picture::Picture;
use crate::fit::random::Random;

/// How crops are varied. Where images are shown beyond their borders, they are mirrored there, and so are their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Augmentation {
    /// Mirrors half of the crops.
    pub flip: bool,
    /// Turns crops by any angle; by quarter turns only, where this is not set.
    pub rotate: bool,
    /// Magnifies by a factor between `exp(-scale)` and `exp(scale)`, 0 to 1.
    pub scale: f64,
    /// Changes contrast (around the crop's mean) and brightness, of all channels together and, where an image is not grey, of each
    /// on its own: up to this share of the intensity range, 0 to 1.
    pub intensity: f64,
    /// Standard deviation of noise that is added, at most, as a share of half the intensity range, 0 to 1.
    pub noise: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self { flip: true, rotate: true, scale: 0.25, intensity: 0.3, noise: 0.0 }
    }
}

impl Augmentation {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and its range.
    pub(crate) fn validate(&self) -> Result<()> {
        for (what, value) in [("scale", self.scale), ("intensity", self.intensity), ("noise", self.noise)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid("augmentation", format!("{what} {value} is not in 0..=1")));
            }
        }
        Ok(())
    }

    /// Writes a crop `[size, size, channels]` of `picture` around one of its labelled pixels, and its labels `[size, size]`.
    pub(crate) fn crop(
        &self,
        picture: &Picture,
        size: usize,
        random: &mut Random,
        pixels: &mut [f32],
        labels: &mut [u8],
    ) {
        let magnified = (self.scale * (2.0 * random.uniform() - 1.0)).exp();
        let angle = if self.rotate {
            std::f64::consts::TAU * random.uniform()
        } else {
            std::f64::consts::FRAC_PI_2 * f64::from(random.below(4))
        };
        let mirror = if self.flip && random.below(2) == 1 { -1.0 } else { 1.0 };
        let (y, x) = self.centre(picture, size as f64 * magnified, random);
        let (sin, cos) = (angle.sin() * magnified, angle.cos() * magnified);
        let middle = (size as f64 - 1.0) / 2.0;
        let channels = picture.channels;
        for row in 0..size {
            for column in 0..size {
                let (down, right) = (row as f64 - middle, mirror * (column as f64 - middle));
                let at = (y + cos * down + sin * right, x + cos * right - sin * down);
                let out = row * size + column;
                labels[out] = sample(picture, at, &mut pixels[out * channels..][..channels]);
            }
        }
        self.recolour(picture, random, &mut pixels[..size * size * channels]);
    }

    /// Where a crop whose side covers `side` pixels is centred: near a labelled pixel, which is of any class in half of the crops
    /// and of one that is as likely as the others in the other half, and such that the crop does not leave the image further
    /// than it must.
    fn centre(&self, picture: &Picture, side: f64, random: &mut Random) -> (f64, f64) {
        let any = random.below(2) == 0;
        let pick = random.below(u32::MAX) as usize;
        let at = if any {
            let mut index = pick % picture.labelled().max(1);
            let mut found = 0;
            for (_, own) in &picture.places {
                if let Some(&at) = own.get(index) {
                    found = at;
                    break;
                }
                index -= own.len();
            }
            found
        } else {
            let (_, own) = &picture.places[random.below(picture.places.len() as u32) as usize];
            own[pick % own.len()]
        };
        let near = |at: usize, size: usize, random: &mut Random| {
            let moved = at as f64 + side / 2.0 * (random.uniform() - 0.5);
            let size = size as f64;
            if size > side { moved.clamp(side / 2.0, size - side / 2.0) } else { size / 2.0 }
        };
        let (row, column) = (at as usize / picture.width, at as usize % picture.width);
        (near(row, picture.height, random), near(column, picture.width, random))
    }

    fn recolour(&self, picture: &Picture, random: &mut Random, pixels: &mut [f32]) {
        let channels = picture.channels;
        let mut around = || self.intensity * (2.0 * random.uniform() - 1.0);
        let (contrast, brightness) = (around(), 0.6 * around());
        let own: Vec<(f64, f64)> = (0..channels).map(|_| (0.3 * around(), 0.3 * around())).collect();
        let noise = (self.noise * random.uniform()) as f32;
        let count = (pixels.len() / channels) as f64;
        for channel in 0..channels {
            let (more, lighter) = if picture.grey { own[0] } else { own[channel] };
            let mean = pixels[channel..].iter().step_by(channels).map(|&value| f64::from(value)).sum::<f64>()
                / count;
            let slope = 1.0 + contrast + more;
            let offset = mean * (1.0 - slope) + brightness + lighter;
            for value in pixels[channel..].iter_mut().step_by(channels) {
                *value = *value * slope as f32 + offset as f32;
            }
        }
        if noise > 0.0 {
            for pixel in pixels.chunks_exact_mut(channels) {
                let grey = random.normal();
                for value in pixel {
                    *value += noise * if picture.grey { grey } else { random.normal() };
                }
            }
        }
    }
}

/// The pixel at `at` (centres are at whole numbers), interpolated; returns the nearest label.
fn sample(picture: &Picture, (y, x): (f64, f64), out: &mut [f32]) -> u8 {
    let (rows, columns) = (picture.height, picture.width);
    let (top, left) = (y.floor(), x.floor());
    let (down, right) = ((y - top) as f32, (x - left) as f32);
    let (y0, x0) = (mirrored(top as isize, rows), mirrored(left as isize, columns));
    let (y1, x1) = (mirrored(top as isize + 1, rows), mirrored(left as isize + 1, columns));
    let at = |y: usize, x: usize| &picture.pixels[(y * columns + x) * picture.channels..];
    let (a, b, c, d) = (at(y0, x0), at(y0, x1), at(y1, x0), at(y1, x1));
    for (channel, out) in out.iter_mut().enumerate() {
        let upper = a[channel] + right * (b[channel] - a[channel]);
        let lower = c[channel] + right * (d[channel] - c[channel]);
        *out = upper + down * (lower - upper);
    }
    let nearest = (if down < 0.5 { y0 } else { y1 }) * columns + if right < 0.5 { x0 } else { x1 };
    picture.labels[nearest]
}
