//! Decompresses tiles and strips.

use std::io::{Cursor, Read};

use weezl::BitOrder;

use super::page::{Meaning, Page};
use crate::jpeg::{Colours, Jpeg};

/// How tiles and strips are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Fax4,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
    Zstandard,
}

impl Compression {
    /// From the tag's number, or the name of one that is not decompressed here.
    pub(super) fn of(number: u64) -> Result<Self, String> {
        let name = match number {
            1 => return Ok(Self::None),
            4 => return Ok(Self::Fax4),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32773 => return Ok(Self::PackBits),
            50000 => return Ok(Self::Zstandard),
            2 | 3 | 32771 => "fax group 3",
            6 => "old-style JPEG",
            33003 | 33004 | 33005 | 34712 => "JPEG 2000",
            33007 => "lossy JPEG",
            34887 => "LERC",
            34892 => "lossy JPEG",
            34925 => "LZMA",
            34933 | 34934 => "PNG or JPEG XR",
            22610 => "JPEG XR",
            50001 => "WebP",
            50002 | 52546 => "JPEG XL",
            other => return Err(format!("unknown ({other})")),
        };
        Err(name.to_owned())
    }
}

/// Decompresses `data`, a tile or strip of `rows` rows of `row_bytes` each, into exactly `out`. Errors say in words what is wrong.
///
/// Of JPEGs, YCbCr becomes RGB.
pub(super) fn decompress(
    page: &Page,
    mut data: Vec<u8>,
    (width, rows): (u32, u32),
    out: &mut [u8],
) -> Result<(), String> {
    if page.low_bits_first && page.compression != Compression::Jpeg {
        for byte in &mut data {
            *byte = byte.reverse_bits();
        }
    }
    let short = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "a tile or strip ends too early".to_owned(),
        _ => error.to_string(),
    };
    match page.compression {
        Compression::None => Cursor::new(data).read_exact(out).map_err(short),
        Compression::Deflate => {
            flate2::read::ZlibDecoder::new(Cursor::new(data)).read_exact(out).map_err(short)
        }
        Compression::Zstandard => {
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(Cursor::new(data))
                .map_err(|error| error.to_string())?;
            decoder.read_exact(out).map_err(short)
        }
        Compression::Lzw => {
            let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8);
            unpack_lzw(&mut decoder, &data, out)
        }
        Compression::PackBits => {
            unpack_bits(&data, out).ok_or_else(|| "a tile or strip ends too early".to_owned())
        }
        Compression::Fax4 => unpack_fax(&data, width, rows, out),
        Compression::Jpeg => unpack_jpeg(page, data, (width, rows), out),
    }
}

fn unpack_lzw(
    decoder: &mut weezl::decode::Decoder,
    mut data: &[u8],
    mut out: &mut [u8],
) -> Result<(), String> {
    while !out.is_empty() {
        let result = decoder.decode_bytes(data, out);
        data = &data[result.consumed_in..];
        let (_, rest) = std::mem::take(&mut out).split_at_mut(result.consumed_out);
        out = rest;
        match result.status {
            Ok(weezl::LzwStatus::Ok) => {}
            Ok(_) if out.is_empty() => {}
            Ok(_) => return Err("a tile or strip ends too early".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn unpack_bits(data: &[u8], out: &mut [u8]) -> Option<()> {
    let (mut data, mut written) = (data, 0);
    while written < out.len() {
        let (&header, rest) = data.split_first()?;
        data = rest;
        let room = out.len() - written;
        match header {
            0..=127 => {
                let count = usize::from(header) + 1;
                let literal = data.get(..count)?;
                let taken = count.min(room);
                out[written..written + taken].copy_from_slice(&literal[..taken]);
                data = &data[count..];
                written += taken;
            }
            128 => {}
            129..=255 => {
                let (&value, rest) = data.split_first()?;
                data = rest;
                let taken = (257 - usize::from(header)).min(room);
                out[written..written + taken].fill(value);
                written += taken;
            }
        }
    }
    Some(())
}

/// Black is 1, as in a file where white is zero.
fn unpack_fax(data: &[u8], width: u32, rows: u32, out: &mut [u8]) -> Result<(), String> {
    let (Ok(width), Ok(rows)) = (u16::try_from(width), u16::try_from(rows)) else {
        return Err("a fax of more than 65535 columns".to_owned());
    };
    out.fill(0);
    let mut lines = out.chunks_exact_mut(usize::from(width).div_ceil(8));
    let whole = fax::decoder::decode_g4(data.iter().copied(), width, Some(rows), |changes| {
        let Some(line) = lines.next() else { return };
        for (x, colour) in fax::decoder::pels(changes, width).enumerate() {
            if colour == fax::Color::Black {
                line[x / 8] |= 0x80 >> (x % 8);
            }
        }
    });
    whole.ok_or_else(|| "the fax data are broken".to_owned())
}

fn unpack_jpeg(page: &Page, data: Vec<u8>, (width, rows): (u32, u32), out: &mut [u8]) -> Result<(), String> {
    // Tables that all tiles share are a JPEG without an image: without its end, and the tile without its beginning, they are one.
    let joined = match page.jpeg_tables.strip_suffix(&[0xFF, 0xD9]) {
        Some(tables) if data.starts_with(&[0xFF, 0xD8]) => [tables, &data[2..]].concat(),
        _ => data,
    };
    let jpeg = Jpeg::new(&joined)?;
    let colours = if page.meaning == Meaning::YCbCr { Colours::Seen } else { Colours::Stored };
    let samples = if page.planar { 1 } else { page.samples };
    let channels = jpeg.channels(colours);
    if channels != samples {
        return Err(format!("a JPEG of {channels} channels where {samples} were promised"));
    }
    if jpeg.width != width as usize || jpeg.height < rows as usize {
        return Err(format!(
            "a JPEG of {} x {} pixels where {width} x {rows} were promised",
            jpeg.width, jpeg.height
        ));
    }
    let len = jpeg.width * jpeg.height * channels;
    if len == out.len() {
        return jpeg.decode(colours, out);
    }
    // The last strip may hold more rows than the image has.
    let mut all = vec![0; len];
    jpeg.decode(colours, &mut all)?;
    out.copy_from_slice(&all[..out.len()]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_bits_are_unpacked() {
        let mut out = [0; 7];
        assert_eq!(unpack_bits(&[1, 7, 8, 128, 254, 9, 0, 5, 0, 6], &mut out), Some(()));
        assert_eq!(out, [7, 8, 9, 9, 9, 5, 6]);
        assert_eq!(unpack_bits(&[3, 7, 8], &mut out), None);
        assert_eq!(unpack_bits(&[254, 9], &mut out), None);
    }
}
