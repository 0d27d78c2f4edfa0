//! Pictures of a segmentation on its image.

use std::io::Write;

use super::read::{Image, Pixels};
use super::write::write_rgb;

/// How much of a class's colour covers its inside.
const OPACITY: f32 = 0.3;

/// An outline is one pixel wide, and one more for every so many pixels of the image's shorter side.
const SIDE_PER_OUTLINE_PIXEL: usize = 500;

/// Writes the image in RGB with each class but the first tinted and outlined in its colour.
///
/// Images of more than 8 bits are stretched to show what is in them.
pub fn write_overlay(
    out: impl Write,
    image: &Image,
    labels: &[u8],
    colours: &[[u8; 3]],
) -> Result<(), png::EncodingError> {
    let (width, height) = (image.width, image.height);
    let stretch = Stretch::of(image);
    let reach = 1 + width.min(height) / SIDE_PER_OUTLINE_PIXEL;
    write_rgb(out, width, height, |y, row| {
        for x in 0..width {
            let label = labels[y * width + x];
            let pixel = &mut row[3 * x..3 * x + 3];
            stretch.rgb(image, y * width + x, pixel);
            let Some(colour) = colours.get(usize::from(label)).filter(|_| label != 0) else { continue };
            let differs = |x: usize, y: usize| labels[y * width + x] != label;
            let outline = (1..=reach).any(|d| {
                (x >= d && differs(x - d, y))
                    || (y >= d && differs(x, y - d))
                    || (x + d < width && differs(x + d, y))
                    || (y + d < height && differs(x, y + d))
            });
            let opacity = if outline { 1.0 } else { OPACITY };
            for (value, colour) in pixel.iter_mut().zip(colour) {
                *value = (f32::from(*value) * (1.0 - opacity) + f32::from(*colour) * opacity).round() as u8;
            }
        }
    })
}

/// Maps an image's values to 0..=255.
struct Stretch {
    low: f32,
    factor: f32,
}

impl Stretch {
    fn of(image: &Image) -> Self {
        let between = |low: f32, high: f32| Self { low, factor: 255.0 / (high - low).max(f32::MIN_POSITIVE) };
        let (low, high) = match &image.pixels {
            Pixels::U8(_) => return between(0.0, 255.0),
            Pixels::U16(values) => percentiles(values.iter().map(|value| f32::from(*value))),
            Pixels::F32(values) => percentiles(values.iter().copied()),
        };
        between(low, high)
    }

    fn rgb(&self, image: &Image, pixel: usize, rgb: &mut [u8]) {
        for (channel, out) in rgb.iter_mut().enumerate() {
            let at = pixel * image.channels + if image.channels < 3 { 0 } else { channel };
            let value = match &image.pixels {
                Pixels::U8(values) => {
                    *out = values[at];
                    continue;
                }
                Pixels::U16(values) => f32::from(values[at]),
                Pixels::F32(values) => values[at],
            };
            *out = ((value - self.low) * self.factor).round() as u8;
        }
    }
}

/// Values below and above which lie half a percent, from a sample of at most 100 000.
fn percentiles(values: impl ExactSizeIterator<Item = f32>) -> (f32, f32) {
    let step = values.len().div_ceil(100_000).max(1);
    let mut sample: Vec<f32> = values.step_by(step).collect();
    sample.sort_unstable_by(f32::total_cmp);
    let margin = sample.len() / 200;
    match (sample.get(margin), sample.get(sample.len().saturating_sub(1 + margin))) {
        (Some(low), Some(high)) => (*low, *high),
        _ => (0.0, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_keeps_its_pixels_and_classes_are_outlined() {
        let image = Image::new(5, 5, 1, Pixels::U8(vec![100; 25]));
        let mut labels = [0; 25];
        for y in 1..4 {
            labels[5 * y + 1..5 * y + 4].fill(1);
        }
        let mut file = Vec::new();
        write_overlay(&mut file, &image, &labels, &[[0; 3], [255, 0, 0]]).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        let pixel = |x: usize, y: usize| [0, 1, 2].map(|c| rgb[3 * (5 * y + x) + c]);
        assert_eq!(pixel(0, 0), [100; 3]);
        assert_eq!(pixel(1, 1), [255, 0, 0]);
        assert_eq!(pixel(2, 2), [147, 70, 70]);
    }
}
