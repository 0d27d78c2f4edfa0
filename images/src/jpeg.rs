//! JPEG files, and JPEG within TIFF files. A picture that is not whole is an error.

use std::io::Cursor;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::orientation::Orientation;

/// Bits that mean nothing, as a JPEG has them: no code consists of ones.
const NO_CODE: [u8; 2] = [0xFF, 0];

/// How often these follow the image. A decoder that has all it needs does not get there.
const AFTER: usize = 64;

/// Bytes that may be left over when all pixels have been decoded.
const LEFT_OVER: usize = 64;

/// A JPEG whose headers have been read.
pub(crate) struct Jpeg {
    bytes: Vec<u8>,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) orientation: Orientation,
    stored: ColorSpace,
}

/// In which colours pixels are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colours {
    /// Grey as grey, everything else as red, green and blue.
    Seen,
    /// As they are stored, whatever they are.
    Stored,
}

fn options() -> DecoderOptions {
    // Files of old programs have harmless oddities between headers; only the picture itself must be flawless.
    let options = DecoderOptions::default().set_max_width(usize::MAX).set_max_height(usize::MAX);
    options.set_strict_mode(false)
}

impl Jpeg {
    /// Reads the headers. Errors say in words what is wrong.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, String> {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes), options());
        decoder.decode_headers().map_err(|error| error.to_string())?;
        let (width, height) = decoder.dimensions().ok_or("it states no size")?;
        let orientation =
            decoder.exif().map_or_else(Orientation::default, |exif| Orientation::from_exif(exif));
        let stored = decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);
        Ok(Self { width, height, orientation, stored, bytes })
    }

    /// Channels of the pixels in these colours.
    pub(crate) fn channels(&self, colours: Colours) -> usize {
        self.colour_space(colours).num_components()
    }

    fn colour_space(&self, colours: Colours) -> ColorSpace {
        match (colours, self.stored) {
            (Colours::Stored, stored) | (Colours::Seen, stored @ ColorSpace::Luma) => stored,
            (Colours::Seen, _) => ColorSpace::RGB,
        }
    }

    /// Decodes into `out`, which has room for exactly this image.
    pub(crate) fn decode(mut self, colours: Colours, out: &mut [u8]) -> Result<(), String> {
        let colour_space = self.colour_space(colours);
        let end = end(&self.bytes).ok_or("its end is missing")?;
        // The decoder takes the end for that of the pixels wherever it comes, and fills up what is missing.
        self.bytes.truncate(end);
        self.bytes.extend(NO_CODE.repeat(AFTER));
        self.bytes.extend([0xFF, 0xD9]);
        let mut cursor = Cursor::new(self.bytes.as_slice());
        let mut decoder = JpegDecoder::new_with_options(&mut cursor, options());
        decoder.decode_headers().map_err(|error| error.to_string())?;
        decoder.set_options(decoder.options().jpeg_set_out_colorspace(colour_space).set_strict_mode(true));
        decoder.decode_into(out).map_err(|error| error.to_string())?;
        drop(decoder);
        let rest = self.bytes.get(cursor.position() as usize..end).unwrap_or_default();
        // Some encoders fill up their files.
        if rest.iter().filter(|byte| !matches!(byte, 0 | 0xFF)).count() > LEFT_OVER {
            return Err("its pixels end before its data".to_owned());
        }
        Ok(())
    }
}

/// Where the marker for the end of the image is, which follows the beginning of its pixels. Previews have such markers of their own, in
/// segments before.
fn end(bytes: &[u8]) -> Option<usize> {
    const START_OF_SCAN: u8 = 0xDA;
    let mut at = 2;
    while let Some(&[marker, kind]) = bytes.get(at..at + 2) {
        if marker != 0xFF || kind == 0xFF || kind == 0 {
            // Fill bytes, or stray ones.
            at += 1;
            continue;
        }
        if kind == START_OF_SCAN {
            return bytes[at..].windows(2).position(|pair| pair == [0xFF, 0xD9]).map(|found| at + found);
        }
        let alone = matches!(kind, 0x01 | 0xD0..=0xD9);
        let length = match bytes.get(at + 2..at + 4) {
            Some(&[high, low]) if !alone => usize::from(u16::from_be_bytes([high, low])),
            _ => 0,
        };
        at += 2 + length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_preview_is_not_that_of_the_image() {
        let whole = [0xFF, 0xD8, 0xFF, 0xE1, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 2, 7, 0xFF, 0xD9, 5];
        assert_eq!(end(&whole), Some(13));
        assert!([&whole[..14], &whole[..9], &[]].iter().all(|cut| end(cut).is_none()));
    }
}
