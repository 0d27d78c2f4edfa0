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
    /// Changes the amounts of haematoxylin, eosin and a third stain, as colours are made up of them (Ruifrok and Johnston 2001), by up
    /// to this share each, and adds a quarter of it: laboratories and scanners differ more than brightness and contrast do
    /// (Tellez et al. 2019). For images of three channels that are not grey, 0 to 1.
    pub stain: f64,
    /// Standard deviation of noise that is added, at most, as a share of half the intensity range, 0 to 1.
    pub noise: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self { flip: true, rotate: true, scale: 0.25, intensity: 0.3, stain: 0.3, noise: 0.0 }
    }
}

impl Augmentation {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and its range.
    pub(crate) fn validate(&self) -> Result<()> {
        for (what, value) in [
            ("scale", self.scale),
            ("intensity", self.intensity),
            ("stain", self.stain),
            ("noise", self.noise),
        ] {
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
            // The centre of the first pixel is 0.
            let (least, most) = ((side - 1.0) / 2.0, size as f64 - (side + 1.0) / 2.0);
            if least < most { moved.clamp(least, most) } else { (size as f64 - 1.0) / 2.0 }
        };
        let (row, column) = (at as usize / picture.width, at as usize % picture.width);
        (near(row, picture.height, random), near(column, picture.width, random))
    }

    fn restain(&self, random: &mut Random, pixels: &mut [f32]) {
        let mut around = || self.stain * (2.0 * random.uniform() - 1.0);
        let changes: [(f64, f64); 3] = std::array::from_fn(|_| (1.0 + around(), 0.25 * around()));
        let unmix = unmixing();
        // What is done to optical densities: unmixed, changed and mixed again.
        let matrix: [[f32; 3]; 3] = std::array::from_fn(|from| {
            std::array::from_fn(|to| {
                (0..3).map(|stain| unmix[from][stain] * changes[stain].0 * STAINS[stain][to]).sum::<f64>()
                    as f32
            })
        });
        let offset: [f32; 3] = std::array::from_fn(|to| {
            (0..3).map(|stain| changes[stain].1 * STAINS[stain][to]).sum::<f64>() as f32
        });
        for pixel in pixels.chunks_exact_mut(3) {
            let density: [f32; 3] =
                std::array::from_fn(|channel| -((pixel[channel] + 1.0) / 2.0).clamp(1.0 / 255.0, 1.0).ln());
            for (channel, value) in pixel.iter_mut().enumerate() {
                let new: f32 = (0..3).map(|from| density[from] * matrix[from][channel]).sum();
                *value = 2.0 * (-(new + offset[channel]).max(0.0)).exp() - 1.0;
            }
        }
    }

    fn recolour(&self, picture: &Picture, random: &mut Random, pixels: &mut [f32]) {
        let channels = picture.channels;
        if self.stain > 0.0 && channels == 3 && !picture.grey {
            self.restain(random, pixels);
        }
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

/// Optical densities of the stains in red, green and blue.
const STAINS: [[f64; 3]; 3] = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]];

/// Stains whose amounts are the optical densities times this: the inverse of [`STAINS`].
fn unmixing() -> [[f64; 3]; 3] {
    let m = STAINS;
    let minor = |row: usize, column: usize| {
        let other = |index: usize| [(index + 1) % 3, (index + 2) % 3];
        let ([a, b], [c, d]) = (other(row), other(column));
        m[a][c] * m[b][d] - m[a][d] * m[b][c]
    };
    let determinant: f64 = (0..3).map(|column| m[0][column] * minor(0, column)).sum();
    std::array::from_fn(|row| std::array::from_fn(|column| minor(column, row) / determinant))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(channels: usize) -> Picture {
        of_size(20, 30, channels)
    }

    fn of_size(height: usize, width: usize, channels: usize) -> Picture {
        let pixels = (0..height * width * channels).map(|i| (i * 37 % 200) as f32 / 100.0 - 1.0).collect();
        let labels: Vec<u8> = (0..height * width).map(|i| u8::from(i % width > width / 2)).collect();
        let of =
            |class: u8| (class, (0..labels.len() as u32).filter(|i| labels[*i as usize] == class).collect());
        Picture {
            name: "a".into(),
            height,
            width,
            channels,
            pixels,
            places: vec![of(0), of(1)],
            labels,
            grey: channels == 1,
            microns_per_pixel: None,
            intensities: mdm::intensity::IntensityReport::default(),
        }
    }

    const STILL: Augmentation =
        Augmentation { flip: false, rotate: false, scale: 0.0, intensity: 0.0, stain: 0.0, noise: 0.0 };

    #[test]
    fn a_crop_of_all_that_there_is_is_a_quarter_turn_of_it() {
        const SIDE: usize = 8;
        let picture = of_size(SIDE, SIDE, 3);
        let turned = |turns: usize, row: usize, column: usize| {
            (0..turns).fold((row, column), |(row, column), _| (column, SIDE - 1 - row))
        };
        let mut seen = [false; 4];
        let (mut pixels, mut labels) = (vec![0.0; SIDE * SIDE * 3], vec![0; SIDE * SIDE]);
        for seed in 0..20 {
            STILL.crop(&picture, SIDE, &mut Random::new(seed, 0), &mut pixels, &mut labels);
            let fits = |turns: usize| {
                (0..SIDE * SIDE).all(|at| {
                    let (row, column) = turned(turns, at / SIDE, at % SIDE);
                    let from = row * SIDE + column;
                    let close = |channel: usize| {
                        (pixels[3 * at + channel] - picture.pixels[3 * from + channel]).abs() < 1e-5
                    };
                    labels[at] == picture.labels[from] && (0..3).all(close)
                })
            };
            let turns = (0..4).find(|&turns| fits(turns));
            seen[turns.unwrap_or_else(|| panic!("seed {seed}: no quarter turn"))] = true;
        }
        assert_eq!(seen, [true; 4]);
    }

    #[test]
    fn the_stains_of_a_colour_mix_to_it_again() {
        let unmix = unmixing();
        for (row, mixed) in unmix.iter().enumerate() {
            for (column, wanted) in [0, 1, 2].map(|column| (column, u8::from(row == column))) {
                let sum: f64 = mixed.iter().zip(&STAINS).map(|(share, stain)| share * stain[column]).sum();
                assert!((sum - f64::from(wanted)).abs() < 1e-12);
            }
        }
        let picture = picture(3);
        let mut pixels = picture.pixels.clone();
        let none = Augmentation { stain: 1e-9, ..STILL };
        none.restain(&mut Random::new(0, 0), &mut pixels);
        for (new, old) in pixels.iter().zip(&picture.pixels) {
            assert!((new - old.max(2.0 / 255.0 - 1.0)).abs() < 1e-4, "{new} for {old}");
        }
    }

    #[test]
    fn colours_stay_within_what_an_image_can_show() {
        let picture = picture(3);
        for seed in 0..20 {
            let mut pixels = picture.pixels.clone();
            Augmentation { stain: 1.0, ..STILL }.restain(&mut Random::new(seed, 0), &mut pixels);
            assert!(pixels.iter().all(|value| (-1.0..=1.0).contains(value)));
            assert_ne!(pixels, picture.pixels);
        }
    }

    #[test]
    fn grey_images_stay_grey() {
        let mut picture = picture(3);
        for pixel in picture.pixels.chunks_exact_mut(3) {
            let grey = pixel[0];
            pixel.fill(grey);
        }
        picture.grey = true;
        let (mut pixels, mut labels) = (vec![0.0; 8 * 8 * 3], vec![0; 64]);
        let all = Augmentation { noise: 0.3, ..Augmentation::default() };
        all.crop(&picture, 8, &mut Random::new(5, 0), &mut pixels, &mut labels);
        for pixel in pixels.chunks_exact(3) {
            assert!(pixel.iter().all(|value| (value - pixel[0]).abs() < 1e-6), "{pixel:?}");
        }
    }
}
