//! The numbers and their gradients.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::{Loss, SsimForm};

impl Loss {
    /// The mean loss of `answer` against `target`, both of `shape`, `[batch, height, width, channels]`, and its gradient with
    /// respect to `answer`. Samples are divided among the threads of the current pool.
    ///
    /// # Panics
    /// Where a length is not the shape's.
    pub fn evaluate(&self, shape: [usize; 4], answer: &[f32], target: &[f32], gradient: &mut [f32]) -> f64 {
        let [batch, height, width, channels] = shape;
        let len = height * width * channels;
        let count = (batch * len) as f64;
        assert!([answer.len(), target.len(), gradient.len()] == [batch * len; 3], "lengths are the shape's");
        let samples = answer.par_chunks(len).zip(target.par_chunks(len)).zip(gradient.par_chunks_mut(len));
        let sums: Vec<f64> = match *self {
            Loss::Ssim { window, sigma, dynamic_range, form } => {
                let kernel = gaussian(window, sigma);
                let constants = [0.01, 0.03].map(|factor: f64| (factor * dynamic_range).powi(2));
                samples
                    .map(|((x, y), out)| {
                        let image = Image { height, width, channels, kernel: &kernel };
                        image.ssim(x, y, constants, form, 1.0 / count, out)
                    })
                    .collect()
            }
            Loss::MeanSquare => samples
                .map(|((x, y), out)| {
                    let mut sum = 0.0;
                    for ((x, y), out) in x.iter().zip(y).zip(out) {
                        let difference = x - y;
                        sum += f64::from(difference) * f64::from(difference);
                        *out = (2.0 / count) as f32 * difference;
                    }
                    sum
                })
                .collect(),
            Loss::MeanAbsolute => samples
                .map(|((x, y), out)| {
                    let mut sum = 0.0;
                    for ((x, y), out) in x.iter().zip(y).zip(out) {
                        let difference = x - y;
                        sum += f64::from(difference.abs());
                        let sign = if difference == 0.0 { 0.0 } else { difference.signum() };
                        *out = (1.0 / count) as f32 * sign;
                    }
                    sum
                })
                .collect(),
        };
        sums.iter().sum::<f64>() / count
    }
}

/// A normalised window of one dimension; the two-dimensional one is its outer product.
pub(crate) fn gaussian(window: usize, sigma: f64) -> Vec<f64> {
    let centre = (window as f64 - 1.0) / 2.0;
    let values: Vec<f64> =
        (0..window).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * sigma * sigma)).exp()).collect();
    let sum: f64 = values.iter().sum();
    values.iter().map(|value| value / sum).collect()
}

struct Image<'a> {
    height: usize,
    width: usize,
    channels: usize,
    kernel: &'a [f64],
}

impl Image<'_> {
    /// The sum of the losses of all pixels; `share` times its gradient goes to `out`.
    ///
    /// In f64: variances are small differences of large numbers where an image is flat.
    fn ssim(
        &self,
        x: &[f32],
        y: &[f32],
        [c1, c2]: [f64; 2],
        form: SsimForm,
        share: f64,
        out: &mut [f32],
    ) -> f64 {
        let wide = |a: &[f32]| a.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (x, y) = (wide(x), wide(y));
        let products = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<_>>();
        let mut row = vec![0.0; x.len()];
        let mut blur = |mut values: Vec<f64>| {
            self.blur(&mut values, &mut row);
            values
        };
        // Afterwards these hold the gradients with respect to them.
        let mut mean_x = blur(x.clone());
        let mean_y = blur(y.clone());
        let mut square_x = blur(products(&x, &x));
        let square_y = blur(products(&y, &y));
        let mut product = blur(products(&x, &y));
        let mut total = 0.0;
        for i in 0..x.len() {
            let (mx, my) = (mean_x[i], mean_y[i]);
            let covariance = product[i] - mx * my;
            let variances = (square_x[i] - mx * mx) + (square_y[i] - my * my);
            let (a1, a2) = (2.0 * mx * my + c1, 2.0 * covariance + c2);
            let (b1, b2) = (mx * mx + my * my + c1, variances + c2);
            let inverse = 1.0 / (b1 * b2);
            let ssim = a1 * a2 * inverse;
            let slope = match form {
                SsimForm::OneMinus => {
                    total += 1.0 - ssim;
                    -share
                }
                SsimForm::ClampedHalf => {
                    let loss = 1.0 - ssim;
                    total += loss.clamp(0.0, 1.0) / 2.0;
                    if (0.0..=1.0).contains(&loss) { -0.5 * share } else { 0.0 }
                }
            };
            mean_x[i] = slope * (2.0 * my * (a2 - a1) * inverse + 2.0 * mx * ssim * (1.0 / b2 - 1.0 / b1));
            square_x[i] = -slope * ssim / b2;
            product[i] = slope * 2.0 * a1 * inverse;
        }
        // The window is symmetric, and so is its padding: the transposed of the blur is the blur.
        let (mean_x, square_x, product) = (blur(mean_x), blur(square_x), blur(product));
        for i in 0..x.len() {
            out[i] = (mean_x[i] + 2.0 * x[i] * square_x[i] + y[i] * product[i]) as f32;
        }
        total
    }

    /// Convolves with the window; pixels outside of the image are zero.
    fn blur(&self, values: &mut [f64], scratch: &mut [f64]) {
        let row = self.width * self.channels;
        let radius = self.kernel.len() / 2;
        for y in 0..self.height {
            let out = &mut scratch[y * row..][..row];
            out.fill(0.0);
            for (tap, &weight) in self.kernel.iter().enumerate() {
                let Some(from) = (y + tap).checked_sub(radius).filter(|&from| from < self.height) else {
                    continue;
                };
                let from = &values[from * row..][..row];
                out.iter_mut().zip(from).for_each(|(out, value)| *out += weight * value);
            }
        }
        for (out, line) in values.chunks_exact_mut(row).zip(scratch.chunks_exact(row)) {
            out.fill(0.0);
            for (tap, &weight) in self.kernel.iter().enumerate() {
                // out[x] += weight * line[x + tap - radius], in units of whole pixels.
                let shift = (tap.abs_diff(radius) * self.channels).min(row);
                let (to, from) = if tap < radius {
                    (&mut out[shift..], &line[..row - shift])
                } else {
                    (&mut out[..row - shift], &line[shift..])
                };
                to.iter_mut().zip(from).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
}
