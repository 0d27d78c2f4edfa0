//! Draws a microscope's view of fluorescent nuclei.

use std::f32::consts::TAU;

use super::random::Random;

/// Greatest radius of a nucleus in pixels, with its irregularities.
const REACH: f32 = 26.0;

/// A drawn image and what is truly on it.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Grey values.
    pub(crate) pixels: Vec<u8>,
    /// 0 for background, 1 for nuclei.
    pub(crate) truth: Vec<u8>,
}

struct Nucleus {
    x: f32,
    y: f32,
    radius: f32,
    /// Longer axis by shorter axis.
    elongation: f32,
    angle: f32,
    /// Amplitude and phase of the outline's second to fifth harmonic.
    bumps: [(f32, f32); 4],
    brightness: f32,
}

impl Nucleus {
    fn random(random: &mut Random, width: usize, height: usize) -> Self {
        let dividing = random.unit() < 0.06;
        let mut bumps = [(0.0, 0.0); 4];
        for (harmonic, bump) in bumps.iter_mut().enumerate() {
            *bump = (random.between(0.0, 0.07) / (harmonic + 1) as f32, random.between(0.0, TAU));
        }
        Self {
            x: random.between(0.0, width as f32),
            y: random.between(0.0, height as f32),
            radius: if dividing {
                random.between(5.0, 7.0)
            } else {
                (10.5 + 2.2 * random.normal()).clamp(6.0, 17.0)
            },
            elongation: if dividing { random.between(1.5, 2.2) } else { random.between(1.0, 1.55) },
            angle: random.between(0.0, TAU),
            bumps,
            brightness: if dividing {
                random.between(1.3, 1.6)
            } else {
                (0.35 * random.normal() - 0.45).exp().clamp(0.22, 1.4)
            },
        }
    }

    /// Distance from the centre in units of the outline's distance in that direction.
    fn depth(&self, x: f32, y: f32) -> f32 {
        let (sin, cos) = self.angle.sin_cos();
        let (dx, dy) = (x - self.x, y - self.y);
        let along = (dx * cos + dy * sin) / self.elongation.sqrt();
        let across = (dy * cos - dx * sin) * self.elongation.sqrt();
        let direction = across.atan2(along);
        let outline: f32 = self
            .bumps
            .iter()
            .zip(2u8..)
            .map(|((amplitude, phase), harmonic)| amplitude * (f32::from(harmonic) * direction + phase).cos())
            .sum();
        along.hypot(across) / (self.radius * (1.0 + outline))
    }
}

/// Draws `count` nuclei of varying size and brightness, blurred, unevenly lit and with noise.
///
/// One seed always gives the same image.
pub(crate) fn draw_nuclei(seed: u64, width: usize, height: usize, count: usize) -> Field {
    let mut random = Random::new(seed);
    let nuclei = place(&mut random, width, height, count);
    let mut truth = vec![0; width * height];
    let mut light = vec![0.0f32; width * height];
    let chromatin = texture(&mut random, width, height, 2.2);
    for nucleus in &nuclei {
        let (left, right) = span(nucleus.x, width);
        let (top, bottom) = span(nucleus.y, height);
        for y in top..bottom {
            for x in left..right {
                let depth = nucleus.depth(x as f32, y as f32);
                if depth < 1.0 {
                    let at = y * width + x;
                    truth[at] = 1;
                    // Nuclei are thinner towards the rim, and chromatin is clumped.
                    let thickness = 0.55 + 0.45 * (1.0 - depth * depth).sqrt();
                    let value = nucleus.brightness * thickness * (1.0 + 0.22 * chromatin[at]);
                    light[at] = light[at].max(value);
                }
            }
        }
    }
    let sharp = blurred(&light, width, height, 1.3);
    let glow = blurred(&light, width, height, 18.0);
    let haze = texture(&mut random, width, height, 60.0);
    let (lamp_x, lamp_y) = (random.between(0.3, 0.7), random.between(0.3, 0.7));
    let pixels = (0..width * height)
        .map(|at| {
            let (x, y) = ((at % width) as f32 / width as f32, (at / width) as f32 / height as f32);
            let lamp = 0.5 + 0.5 * (-((x - lamp_x).powi(2) + (y - lamp_y).powi(2)) / 0.35).exp();
            let signal = lamp * (0.8 * sharp[at] + 0.22 * glow[at]) + 0.05 + 0.018 * haze[at];
            // Photons arrive at random; the camera adds its own noise.
            let photons = 260.0 * signal.max(0.0);
            let counted = photons + photons.sqrt() * random.normal() + 2.2 * random.normal();
            (counted / 260.0 * 225.0).round().clamp(0.0, 255.0) as u8
        })
        .collect();
    Field { width, height, pixels, truth }
}

/// Nuclei that may touch but hardly overlap, some of them in groups.
fn place(random: &mut Random, width: usize, height: usize, count: usize) -> Vec<Nucleus> {
    let mut nuclei: Vec<Nucleus> = Vec::new();
    for _ in 0..200 * count {
        if nuclei.len() == count {
            break;
        }
        let mut nucleus = Nucleus::random(random, width, height);
        if random.unit() < 0.35
            && let Some(neighbour) = nuclei.get((random.unit() * nuclei.len() as f32) as usize)
        {
            let (sin, cos) = random.between(0.0, TAU).sin_cos();
            let distance = 1.12 * (neighbour.radius + nucleus.radius);
            (nucleus.x, nucleus.y) = (neighbour.x + distance * cos, neighbour.y + distance * sin);
        }
        let free = nuclei.iter().all(|other| {
            let distance = (other.x - nucleus.x).hypot(other.y - nucleus.y);
            distance > 1.08 * (other.radius + nucleus.radius)
        });
        if free {
            nuclei.push(nucleus);
        }
    }
    nuclei
}

fn span(centre: f32, size: usize) -> (usize, usize) {
    ((centre - REACH).max(0.0) as usize, ((centre + REACH).max(0.0) as usize).min(size))
}

/// Smooth noise of mean 0 and deviation 1, its grains about `sigma` wide.
fn texture(random: &mut Random, width: usize, height: usize, sigma: f32) -> Vec<f32> {
    let noise: Vec<f32> = (0..width * height).map(|_| random.normal()).collect();
    let mut smooth = blurred(&noise, width, height, sigma);
    let count = smooth.len() as f32;
    let mean = smooth.iter().sum::<f32>() / count;
    let deviation = (smooth.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / count).sqrt().max(1e-6);
    for value in &mut smooth {
        *value = (*value - mean) / deviation;
    }
    smooth
}

/// Gaussian blur; beyond the border the image goes on as its mirror image.
fn blurred(values: &[f32], width: usize, height: usize, sigma: f32) -> Vec<f32> {
    let reach = (3.0 * sigma).ceil() as isize;
    let mut bell: Vec<f32> = (-reach..=reach).map(|d| (-0.5 * (d as f32 / sigma).powi(2)).exp()).collect();
    let sum: f32 = bell.iter().sum();
    bell.iter_mut().for_each(|weight| *weight /= sum);
    let along = |values: &[f32], length: usize, step: usize, lines: usize, line_step: usize| {
        let mut out = vec![0.0; values.len()];
        for line in 0..lines {
            for i in 0..length {
                out[line * line_step + i * step] = bell
                    .iter()
                    .zip(-reach..)
                    .map(|(weight, d)| {
                        weight * values[line * line_step + mirrored(i as isize + d, length) * step]
                    })
                    .sum();
            }
        }
        out
    };
    let rows = along(values, width, 1, height, width);
    along(&rows, height, width, width, 1)
}

fn mirrored(index: isize, length: usize) -> usize {
    let period = 2 * length;
    let index = index.rem_euclid(period as isize) as usize;
    if index < length { index } else { period - 1 - index }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nuclei_are_brighter_than_what_surrounds_them_and_the_seed_decides() {
        let field = draw_nuclei(1, 160, 120, 12);
        assert_eq!(field.pixels, draw_nuclei(1, 160, 120, 12).pixels);
        assert_ne!(field.pixels, draw_nuclei(2, 160, 120, 12).pixels);
        let mean = |class: u8| {
            let of_class = field.pixels.iter().zip(&field.truth).filter(|(_, truth)| **truth == class);
            let (sum, count) =
                of_class.fold((0.0, 0.0), |(sum, count), (p, _)| (sum + f64::from(*p), count + 1.0));
            assert!(count > 500.0, "class {class} covers {count} pixels");
            sum / count
        };
        assert!(mean(1) > 2.0 * mean(0), "nuclei {}, background {}", mean(1), mean(0));
    }

    #[test]
    fn blur_keeps_the_mean_of_a_flat_image() {
        let flat = vec![0.25; 12 * 9];
        assert!(blurred(&flat, 12, 9, 18.0).iter().all(|value| (value - 0.25).abs() < 1e-5));
    }
}
