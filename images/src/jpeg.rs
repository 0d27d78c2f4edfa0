//! JPEG files, and JPEG within TIFF files. A picture that is not whole is an error.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::orientation::Orientation;

/// A JPEG whose headers have been read.
pub(crate) struct Jpeg<'a> {
    bytes: &'a [u8],
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// In which colours pixels are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colours {
    /// Grey as grey, everything else as red, green and blue.
    Seen,
    /// As they are stored, whatever they are.
    Stored,
}

impl<'a> Jpeg<'a> {
    /// Reads the headers. Errors say in words what is wrong.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, String> {
        // Files of old programs have harmless oddities between headers; only the picture itself must be flawless.
        let options = DecoderOptions::default()
            .set_max_width(usize::MAX)
            .set_max_height(usize::MAX)
            .set_strict_mode(false);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers().map_err(|error| error.to_string())?;
        let (width, height) = decoder.dimensions().ok_or("it states no size")?;
        Ok(Self { bytes, decoder, width, height })
    }

    pub(crate) fn orientation(&self) -> Orientation {
        self.decoder.exif().map_or_else(Orientation::default, |exif| Orientation::from_exif(exif))
    }

    /// Channels of the pixels in these colours.
    pub(crate) fn channels(&self, colours: Colours) -> usize {
        self.colour_space(colours).num_components()
    }

    fn colour_space(&self, colours: Colours) -> ColorSpace {
        let stored = self.decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);
        match (colours, stored) {
            (Colours::Stored, stored) | (Colours::Seen, stored @ ColorSpace::Luma) => stored,
            (Colours::Seen, _) => ColorSpace::RGB,
        }
    }

    /// Decodes into `out`, which has room for exactly this image.
    pub(crate) fn decode(mut self, colours: Colours, out: &mut [u8]) -> Result<(), String> {
        if !has_end(self.bytes) {
            return Err("its end is missing".to_owned());
        }
        let options =
            self.decoder.options().jpeg_set_out_colorspace(self.colour_space(colours)).set_strict_mode(true);
        self.decoder.set_options(options);
        self.decoder.decode_into(out).map_err(|error| error.to_string())
    }
}

/// Whether the marker for the end of the image follows the beginning of its pixels. Previews have such markers of their own, in
/// segments before.
fn has_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    let mut at = 2;
    while let Some(&[marker, kind]) = bytes.get(at..at + 2) {
        if marker != 0xFF || kind == 0xFF || kind == 0 {
            // Fill bytes, or stray ones.
            at += 1;
            continue;
        }
        if kind == START_OF_SCAN {
            return bytes[at..].windows(2).any(|pair| pair == [0xFF, 0xD9]);
        }
        let alone = matches!(kind, 0x01 | 0xD0..=0xD9);
        let length = match bytes.get(at + 2..at + 4) {
            Some(&[high, low]) if !alone => usize::from(u16::from_be_bytes([high, low])),
            _ => 0,
        };
        at += 2 + length;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_preview_is_not_that_of_the_image() {
        let whole = [0xFF, 0xD8, 0xFF, 0xE1, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 2, 7, 0xFF, 0xD9, 5];
        assert!(has_end(&whole));
        assert!(!has_end(&whole[..14]) && !has_end(&whole[..9]) && !has_end(&[]));
    }
}
