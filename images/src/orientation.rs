//! How pixels have to be turned so that an image is seen as its author saw it.

use image::metadata::Orientation as Named;

/// How an image is turned before it is shown: first its sides are exchanged, then it is mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Orientation {
    /// Rows become columns.
    pub transposed: bool,
    /// Left becomes right.
    pub mirrored: bool,
    /// Top becomes bottom.
    pub flipped: bool,
}

impl Orientation {
    /// From the number in Exif and in the TIFF tag Orientation (274). Numbers that mean nothing leave the image as it is.
    pub fn from_number(number: u16) -> Self {
        let (transposed, mirrored, flipped) = match number {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => (false, false, false),
        };
        Self { transposed, mirrored, flipped }
    }

    /// From Exif data as they are in a JPEG or in the chunk `eXIf` of a PNG.
    pub fn from_exif(exif: &[u8]) -> Self {
        let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        Named::from_exif_chunk(exif)
            .map_or_else(Self::default, |named| Self::from_number(named.to_exif().into()))
    }

    /// Whether nothing needs to be done.
    pub fn is_upright(self) -> bool {
        self == Self::default()
    }

    /// The width and height as shown of an image that is stored with these.
    pub fn size<T>(self, (width, height): (T, T)) -> (T, T) {
        if self.transposed { (height, width) } else { (width, height) }
    }

    /// The pixels as shown, of `width * height` stored ones of `channels` interleaved values; `None` if there is no memory for
    /// them.
    pub fn turned<T: Copy>(
        self,
        mut pixels: Vec<T>,
        (width, height): (usize, usize),
        channels: usize,
    ) -> Option<Vec<T>> {
        if self.is_upright() {
            return Some(pixels);
        }
        if self == Self::from_number(3) && channels == 1 {
            pixels.reverse();
            return Some(pixels);
        }
        let mut turned = Vec::new();
        turned.try_reserve_exact(pixels.len()).ok()?;
        let (shown_width, shown_height) = self.size((width, height));
        for y in 0..shown_height {
            let y = if self.flipped { shown_height - 1 - y } else { y };
            for x in 0..shown_width {
                let x = if self.mirrored { shown_width - 1 - x } else { x };
                let stored = if self.transposed { x * width + y } else { y * width + x };
                turned.extend_from_slice(&pixels[stored * channels..(stored + 1) * channels]);
            }
        }
        Some(turned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_orientation_is_undone() {
        // As the letter F is stored for each number, from the Exif standard.
        let upright = ["##", "# ", "##", "# "];
        let stored: [&[&str]; 8] = [
            &upright,
            &["##", " #", "##", " #"],
            &[" #", "##", " #", "##"],
            &["# ", "##", "# ", "##"],
            &["####", "# # "],
            &["# # ", "####"],
            &[" # #", "####"],
            &["####", " # #"],
        ];
        for (number, stored) in (1..).zip(stored) {
            let pixels: Vec<u8> = stored.concat().into_bytes();
            let size = (stored[0].len(), stored.len());
            let orientation = Orientation::from_number(number);
            assert_eq!(orientation.size(size), (2, 4));
            let turned = orientation.turned(pixels.clone(), size, 1).unwrap();
            assert_eq!(String::from_utf8(turned).unwrap(), upright.concat(), "{number}");
            let pairs: Vec<u8> = pixels.iter().flat_map(|pixel| [*pixel, pixel + 1]).collect();
            let turned = orientation.turned(pairs, size, 2).unwrap();
            let want: Vec<u8> = upright.concat().bytes().flat_map(|pixel| [pixel, pixel + 1]).collect();
            assert_eq!(turned, want, "{number}");
        }
    }
}
