//! The size of a pixel as image files state it.
//!
//! Most programs write a resolution of 72, 96, 150 or 300 dots per inch that means a screen or a printer. Even 1200 dots
//! per inch are 21 micrometres a pixel, so anything coarser than [`COARSEST`] is taken for such a default and ignored.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use tiff::decoder::Decoder;
use tiff::decoder::ifd::Value;
use tiff::tags::Tag;

/// Coarsest pixel that is believed, in micrometres.
const COARSEST: f64 = 20.0;

/// Finest pixel that is believed, in micrometres: a tenth of an atom.
const FINEST: f64 = 1e-5;

fn believable(microns_per_pixel: f64) -> Option<f64> {
    (FINEST..=COARSEST).contains(&microns_per_pixel).then_some(microns_per_pixel)
}

/// Micrometres in a unit of length by its name or symbol.
fn microns_in(unit: &str) -> Option<f64> {
    match unit.trim() {
        "µm" | "μm" | "um" | "micron" | "microns" | "micrometer" | "micrometre" | "\\u00B5m" | "\\u03BCm" => {
            Some(1.0)
        }
        "nm" | "nanometer" => Some(1e-3),
        "pm" => Some(1e-6),
        "Å" | "angstrom" => Some(1e-4),
        "mm" | "millimeter" => Some(1e3),
        "cm" => Some(1e4),
        "m" => Some(1e6),
        "in" | "inch" => Some(25_400.0),
        _ => None,
    }
}

/// From a PNG's `pHYs`, and its `sBIT`.
pub(super) fn of_png(path: &Path) -> (Option<f64>, Option<Vec<u8>>) {
    let Some(reader) =
        File::open(path).ok().and_then(|file| png::Decoder::new(BufReader::new(file)).read_info().ok())
    else {
        return (None, None);
    };
    let info = reader.info();
    let microns = info
        .pixel_dims
        .filter(|density| density.unit == png::Unit::Meter)
        .and_then(|density| believable(1e6 / f64::from(density.xppu)));
    (microns, info.sbit.as_ref().map(|bits| bits.to_vec()))
}

/// From a TIFF's description (OME-XML, Aperio, ImageJ) or else its resolution tags.
pub(super) fn of_tiff<R: Read + Seek>(decoder: &mut Decoder<R>) -> Option<f64> {
    let description = decoder.get_tag_ascii_string(Tag::ImageDescription).unwrap_or_default();
    let pixels_per_unit = match decoder.find_tag(Tag::XResolution) {
        Ok(Some(Value::Rational(above, below))) => Some(f64::from(above) / f64::from(below)),
        _ => None,
    };
    let unit = decoder.find_tag_unsigned::<u16>(Tag::ResolutionUnit).ok().flatten().unwrap_or(2);
    of_description(&description, pixels_per_unit).or_else(|| {
        let unit = match unit {
            2 => 25_400.0,
            3 => 10_000.0,
            _ => return None,
        };
        believable(unit / pixels_per_unit?)
    })
}

fn of_description(description: &str, pixels_per_unit: Option<f64>) -> Option<f64> {
    if let Some(size) = attribute(description, "PhysicalSizeX") {
        let unit = attribute(description, "PhysicalSizeXUnit").unwrap_or("µm");
        return believable(size.parse::<f64>().ok()? * microns_in(unit)?);
    }
    if description.starts_with("Aperio") {
        let (_, rest) = description.split_once("MPP = ")?;
        return believable(rest.split(['|', '\n', '\r']).next()?.trim().parse().ok()?);
    }
    if description.starts_with("ImageJ=") {
        let unit = description.lines().find_map(|line| line.strip_prefix("unit="))?;
        return believable(microns_in(unit)? / pixels_per_unit?);
    }
    None
}

/// The value of the first XML attribute called exactly `name`.
pub(super) fn attribute<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    xml.match_indices(name).find_map(|(at, _)| {
        let before = xml[..at].chars().next_back()?;
        let value = xml[at + name.len()..].strip_prefix("=\"")?;
        before.is_whitespace().then(|| value.split('"').next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_microscopes_are_understood() {
        let ome = r#"<OME><Pixels PhysicalSizeXUnit="nm" PhysicalSizeX="325.0" SizeX="3"/></OME>"#;
        assert_eq!(of_description(ome, None), Some(0.325));
        assert_eq!(of_description(r#"<Pixels PhysicalSizeX="0.5"/>"#, None), Some(0.5));
        assert_eq!(of_description("Aperio Image\r\n|AppMag = 20|MPP = 0.4990|Left = 2", None), Some(0.499));
        assert_eq!(of_description("ImageJ=1.53t\nunit=micron\nmin=0", Some(4.0)), Some(0.25));
        assert_eq!(of_description("ImageJ=1.53t\nunit=\\u00B5m\n", Some(2.0)), Some(0.5));
        assert_eq!(of_description("ImageJ=1.53t\nmin=0", Some(4.0)), None);
    }

    #[test]
    fn screen_and_printer_resolutions_are_not_believed() {
        for dots_per_inch in [0.0, 1.0, 72.0, 96.0, 300.0, 1200.0, f64::NAN, f64::INFINITY] {
            assert_eq!(believable(25_400.0 / dots_per_inch), None, "{dots_per_inch} dpi");
        }
        assert_eq!(believable(25_400.0 / 50_800.0), Some(0.5));
    }
}
