//! Random squares of images.

use mdm::image::{ImageSource, check_channels, convert_channels};
use mdm::intensity::IntensityScale;
use mdm::segment::rescale::{Filter, Resampler, scale_between, scaled_side};
use mdm::{ImageView, Result};

use super::draw::below;
use super::recipe::Crops;

/// A pixel all of whose channels are lighter is background, 220 of 255: slides without tissue are 230 and more.
const WHITE: f32 = 220.0 / 127.5 - 1.0;

/// Decisions about a crop: row, column, mirrored, turned.
pub(crate) type Choices = [f32; 4];

/// Writes a crop `[size, size, channels]` of `image`; where the image is smaller than that, it lies somewhere in zeros, as it
/// does when it is segmented. Stored values are scaled as said, or as the image declares.
pub(crate) fn crop(
    image: &ImageView<'_>,
    scale_of_values: Option<&IntensityScale>,
    crops: &Crops,
    [row, column, mirrored, turned]: Choices,
    size: usize,
    channels: usize,
    out: &mut [f32],
) -> Result<()> {
    let mut source = *image;
    let (height, width, given) = (source.height(), source.width(), source.channels());
    check_channels(given, channels)?;
    let scale = match crops.microns_per_pixel {
        Some(_) => scale_between(image.microns_per_pixel(), crops.microns_per_pixel)?.0,
        None => 1.0,
    };
    // A square of the image that becomes the crop, or all there is of it.
    let side = (size as f64 / scale - 1e-6).ceil().max(1.0) as usize;
    let from = (side.min(height), side.min(width));
    let (top, left) = (below(row, height - from.0 + 1), below(column, width - from.1 + 1));
    let new_side =
        |from: usize| if from == side { Ok(size) } else { scaled_side(from, scale).map(|to| to.min(size)) };
    let to = (new_side(from.0)?, new_side(from.1)?);
    let (out_top, out_left) = (below(row, size - to.0 + 1), below(column, size - to.1 + 1));

    let mut resampler = Resampler::new(from, to, 1.0 / scale, channels, Filter::AreaOrBilinear)?;
    let mut read = vec![0.0; width * given];
    let mut pushed = vec![0.0; from.1 * channels];
    let mut pulled = vec![0.0; resampler.row_len()];
    out.fill(0.0);
    let mut y = out_top;
    for row in top..top + from.0 {
        match (scale_of_values, source.stored()) {
            (Some(scale), Some(stored)) => {
                stored.read_stored(row..row + 1, &mut read)?;
                scale.apply(&mut read, row, width)?;
            }
            _ => source.read_rows(row..row + 1, &mut read)?,
        }
        convert_channels(&read[left * given..(left + from.1) * given], given, &mut pushed, channels);
        resampler.push(&pushed)?;
        while resampler.pull(&mut pulled) {
            for (x, pixel) in pulled.chunks_exact(channels).enumerate() {
                let (y, x) = place(y, out_left + x, size, crops, mirrored, turned);
                out[(y * size + x) * channels..][..channels].copy_from_slice(pixel);
            }
            y += 1;
        }
    }
    Ok(())
}

/// Where a pixel of the crop goes when the crop is mirrored and turned.
fn place(y: usize, x: usize, size: usize, crops: &Crops, mirrored: f32, turned: f32) -> (usize, usize) {
    let x = if crops.flip && mirrored >= 0.5 { size - 1 - x } else { x };
    match if crops.turn { below(turned, 4) } else { 0 } {
        0 => (y, x),
        1 => (x, size - 1 - y),
        2 => (size - 1 - y, size - 1 - x),
        _ => (size - 1 - x, y),
    }
}

/// Share of a crop's pixels that are white.
pub(crate) fn background(crop: &[f32], channels: usize) -> f64 {
    let white = crop.chunks_exact(channels).filter(|pixel| pixel.iter().all(|value| *value > WHITE)).count();
    white as f64 / (crop.len() / channels) as f64
}

#[cfg(test)]
mod tests {
    use mdm::{IntensityRange, PixelFormat};

    use super::*;

    const STILL: Crops = Crops {
        flip: false,
        turn: false,
        microns_per_pixel: None,
        range: IntensityRange::Declared,
        skip_background: None,
    };

    fn taken(image: &ImageView<'_>, crops: &Crops, choices: Choices, size: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; size * size];
        crop(image, None, crops, choices, size, 1, &mut out).unwrap();
        out
    }

    #[test]
    fn crops_are_squares_of_the_image() {
        let pixels: Vec<u8> = (0..6 * 8).map(|i| i as u8 * 5).collect();
        let image = ImageView::new(&pixels, 8, 6, PixelFormat::Grey8).unwrap();
        let at = |y: usize, x: usize| f32::from(pixels[y * 8 + x]) / 127.5 - 1.0;
        // Rows 0 to 2 and columns 0 to 4 are possible.
        for (choices, top, left) in [([0.0, 0.0], 0, 0), ([0.34, 0.5], 1, 2), ([0.999, 0.999], 2, 4)] {
            let crop = taken(&image, &STILL, [choices[0], choices[1], 0.9, 0.9], 4);
            for (i, value) in crop.iter().enumerate() {
                assert_eq!(*value, at(top + i / 4, left + i % 4));
            }
        }
    }

    #[test]
    fn mirrored_and_turned_crops_are_the_eight_of_a_square() {
        let pixels: Vec<u8> = vec![10, 20, 30, 40];
        let image = ImageView::new(&pixels, 2, 2, PixelFormat::Grey8).unwrap();
        let crops = Crops { flip: true, turn: true, ..STILL };
        let mut seen = Vec::new();
        for mirrored in [0.1, 0.6] {
            for turned in [0.1, 0.3, 0.6, 0.9] {
                let crop = taken(&image, &crops, [0.0, 0.0, mirrored, turned], 2);
                let bytes: Vec<u8> = crop.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect();
                assert!(!seen.contains(&bytes));
                seen.push(bytes);
            }
        }
        assert!(seen.contains(&vec![30, 10, 40, 20]), "a quarter turn to the right");
    }

    #[test]
    fn small_images_lie_in_zeros() {
        let pixels = vec![255; 6];
        let image = ImageView::new(&pixels, 3, 2, PixelFormat::Grey8).unwrap();
        let crop = taken(&image, &STILL, [0.9, 0.0, 0.0, 0.0], 4);
        let ones: Vec<usize> = (0..16).filter(|i| crop[*i] == 1.0).collect();
        assert_eq!(ones, [8, 9, 10, 12, 13, 14]);
        assert!(crop.iter().enumerate().all(|(i, value)| ones.contains(&i) || *value == 0.0));
    }

    #[test]
    fn images_are_brought_to_the_scale_of_the_run() {
        let pixels: Vec<u8> = (0..64).map(|i| if i / 8 % 4 < 2 { 200 } else { 100 }).collect();
        let image = ImageView::new(&pixels, 8, 8, PixelFormat::Grey8).unwrap().with_microns_per_pixel(0.25);
        let crops = Crops { microns_per_pixel: Some(0.5), ..STILL };
        let crop = taken(&image, &crops, [0.0; 4], 4);
        let rows: Vec<u8> = crop.chunks(4).map(|row| ((row[0] + 1.0) * 127.5).round() as u8).collect();
        assert_eq!(rows, [200, 100, 200, 100]);
    }

    #[test]
    fn background_is_white_in_every_channel() {
        let crop = [0.9, 0.9, 0.9, 0.9, 0.2, 0.9, -1.0, -1.0, -1.0, 0.8, 0.8, 0.8];
        assert_eq!(background(&crop, 3), 0.5);
    }
}
