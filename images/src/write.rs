//! Writes label images, colour images and planes of floating-point values.

use std::borrow::Cow;
use std::io::{Seek, Write};

use tiff::encoder::colortype::Gray32Float;
use tiff::encoder::{Rational, TiffEncoder, TiffKind};
use tiff::tags::{ResolutionUnit, Tag};

/// Rows that are gathered before they are written.
const ROWS_AT_A_TIME: usize = 64;

/// Writes class indices as a PNG with a palette: still indices, but in colours where it is looked at.
pub fn write_coloured_labels(
    out: impl Write,
    width: usize,
    height: usize,
    labels: &[u8],
    colour: impl Fn(u8) -> [u8; 3],
) -> Result<(), png::EncodingError> {
    let mut encoder = encoder(out, width, height, png::ColorType::Indexed)?;
    encoder.set_palette((0..=255).flat_map(colour).collect::<Vec<u8>>());
    encoder.write_header()?.write_image_data(labels)
}

/// Writes an 8-bit grey PNG.
pub fn write_grey(
    out: impl Write,
    width: usize,
    height: usize,
    values: &[u8],
) -> Result<(), png::EncodingError> {
    encoder(out, width, height, png::ColorType::Grayscale)?.write_header()?.write_image_data(values)
}

/// Writes class indices as an 8-bit grey PNG for other programs to read, with a keyword and a text in Latin-1 that
/// [`png_note`](crate::png_note) finds.
pub fn write_labels(
    out: impl Write,
    width: usize,
    height: usize,
    labels: &[u8],
    note: Option<(&str, &str)>,
) -> Result<(), png::EncodingError> {
    let mut encoder = encoder(out, width, height, png::ColorType::Grayscale)?;
    if let Some((keyword, text)) = note {
        encoder.add_text_chunk(keyword.to_owned(), text.to_owned())?;
    }
    encoder.write_header()?.write_image_data(labels)
}

/// Writes an RGB PNG whose rows `fill` provides from the top, so that the picture is never in memory.
pub fn write_rgb(
    out: impl Write,
    width: usize,
    height: usize,
    mut fill: impl FnMut(usize, &mut [u8]),
) -> Result<(), png::EncodingError> {
    let mut encoder = encoder(out, width, height, png::ColorType::Rgb)?;
    encoder.set_compression(png::Compression::Balanced);
    let mut writer = encoder.write_header()?;
    let mut stream = writer.stream_writer()?;
    let mut row = vec![0; 3 * width];
    for y in 0..height {
        fill(y, &mut row);
        stream.write_all(&row)?;
    }
    stream.finish()
}

fn encoder<W: Write>(
    out: W,
    width: usize,
    height: usize,
    color: png::ColorType,
) -> Result<png::Encoder<'static, W>, png::EncodingError> {
    let side = |pixels: usize| {
        u32::try_from(pixels)
            .map_err(|_| std::io::Error::other("a PNG has at most 4294967295 rows or columns"))
    };
    let mut encoder = png::Encoder::new(out, side(width)?, side(height)?);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    Ok(encoder)
}

/// Writes `[height, width, planes]` as a TIFF of 32-bit floating-point pages, one a plane in the order of `names`.
///
/// Each page is named, and the first one holds OME-XML with the planes as named channels and the size of a pixel where that
/// is known. Programs that know neither see a plain stack: nothing promises that pages follow each other without gaps.
///
/// # Errors
/// Those of writing, and of values that are not `width * height` a name.
pub fn write_planes(
    out: &mut (impl Write + Seek),
    width: usize,
    height: usize,
    names: &[&str],
    microns_per_pixel: Option<f64>,
    values: &[f32],
) -> Result<(), tiff::TiffError> {
    let planes = Planes { width, height, names, microns_per_pixel, values };
    if Some(values.len()) != width.checked_mul(height).and_then(|pixels| pixels.checked_mul(names.len())) {
        let reason =
            format!("{} values are not {width} x {height} for each of {} planes", values.len(), names.len());
        return Err(tiff::TiffError::IoError(std::io::Error::other(reason)));
    }
    // Classic TIFF has 32-bit offsets.
    if size_of_val(values) < 0xF000_0000 {
        planes.write(TiffEncoder::new(out)?)
    } else {
        planes.write(TiffEncoder::new_big(out)?)
    }
}

struct Planes<'a> {
    width: usize,
    height: usize,
    names: &'a [&'a str],
    microns_per_pixel: Option<f64>,
    values: &'a [f32],
}

impl Planes<'_> {
    fn write<W: Write + Seek, K: TiffKind>(
        &self,
        mut encoder: TiffEncoder<W, K>,
    ) -> Result<(), tiff::TiffError> {
        let side = |pixels: usize| u32::try_from(pixels).map_err(|_| tiff::TiffError::IntSizeError);
        let (columns, rows) = (side(self.width)?, side(self.height)?);
        let planes = self.names.len();
        let mut strip = Vec::new();
        for (plane, name) in self.names.iter().enumerate() {
            let mut page = encoder.new_image::<Gray32Float>(columns, rows)?;
            if plane == 0 {
                page.encoder().write_tag(Tag::ImageDescription, self.ome().as_str())?;
            }
            page.encoder().write_tag(PAGE_NAME, ascii(name).as_str())?;
            if let Some((unit, resolution)) = self.microns_per_pixel.and_then(resolution) {
                page.resolution(unit, resolution);
            }
            page.rows_per_strip(rows.min(ROWS_AT_A_TIME as u32))?;
            for rows in self.values.chunks(ROWS_AT_A_TIME * self.width * planes) {
                let part = if planes == 1 {
                    Cow::Borrowed(rows)
                } else {
                    strip.clear();
                    strip.extend(rows.iter().skip(plane).step_by(planes));
                    Cow::Borrowed(strip.as_slice())
                };
                page.write_strip(&part)?;
            }
            page.finish()?;
        }
        Ok(())
    }

    /// Every reader takes the first page's description for the file's.
    fn ome(&self) -> String {
        let size = match self.microns_per_pixel {
            // Micrometres are what OME takes them for.
            Some(microns) => format!(" PhysicalSizeX=\"{microns}\" PhysicalSizeY=\"{microns}\""),
            None => String::new(),
        };
        let channels: String = self
            .names
            .iter()
            .enumerate()
            .map(|(plane, name)| {
                format!("<Channel ID=\"Channel:0:{plane}\" Name=\"{}\" SamplesPerPixel=\"1\"/>", ascii(name))
            })
            .collect();
        let pages: String = (0..self.names.len())
            .map(|plane| format!("<TiffData IFD=\"{plane}\" FirstC=\"{plane}\"/>"))
            .collect();
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><OME xmlns=\"http://www.openmicroscopy.org/Schemas/OME/2016-06\">\
             <Image ID=\"Image:0\"><Pixels ID=\"Pixels:0\" DimensionOrder=\"XYCZT\" Type=\"float\" BigEndian=\"{}\" \
             SizeX=\"{}\" SizeY=\"{}\" SizeC=\"{}\" SizeZ=\"1\" SizeT=\"1\"{size}>{channels}{pages}</Pixels></Image></OME>",
            cfg!(target_endian = "big"),
            self.width,
            self.height,
            self.names.len(),
        )
    }
}

const PAGE_NAME: Tag = Tag::Unknown(285);

/// Text for a tag of ASCII and for an attribute of XML.
fn ascii(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '&' | '<' | '>' | '"' | '\'' => format!("&#{};", u32::from(letter)),
            ' '..='~' => letter.to_string(),
            letter if letter.is_control() => " ".to_owned(),
            letter => format!("&#{};", u32::from(letter)),
        })
        .collect()
}

/// Pixels a centimetre, as exactly as a fraction of 32 bits tells it.
fn resolution(microns_per_pixel: f64) -> Option<(ResolutionUnit, Rational)> {
    let per_centimetre = 10_000.0 / microns_per_pixel;
    let denominator = [1_000_000, 1_000, 1]
        .into_iter()
        .find(|denominator| per_centimetre * f64::from(*denominator) < f64::from(u32::MAX))?;
    let numerator = (per_centimetre * f64::from(denominator)).round() as u32;
    (numerator > 0).then_some((ResolutionUnit::Centimeter, Rational { n: numerator, d: denominator }))
}
