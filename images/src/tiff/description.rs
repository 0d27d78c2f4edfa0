//! What programs write into a TIFF's description: OME-XML, ImageJ's lines, Aperio's.

use std::collections::HashMap;

use roxmltree::{Document, Node};

use crate::pixel_size::PixelSize;

/// A description, as far as it says something about the pixels.
#[derive(Debug)]
pub(super) enum Description {
    Ome(Ome),
    ImageJ(ImageJ),
    /// Its micrometres a pixel.
    Aperio(PixelSize),
    /// OME-XML that is none.
    Broken(String),
    Other,
}

/// An axis of an image beyond its rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Axis {
    Channel,
    Z,
    Time,
}

/// What OME-XML says about the first image.
#[derive(Debug)]
pub(super) struct Ome {
    pub(super) channels: usize,
    pub(super) z: usize,
    pub(super) times: usize,
    /// The axis that changes from one plane to the next first.
    pub(super) order: [Axis; 3],
    pub(super) channel_names: Vec<Option<String>>,
    pub(super) significant_bits: Option<u8>,
    pub(super) pixel_size: PixelSize,
    /// Planes whose place is stated, by channel, z and time.
    pub(super) places: HashMap<[usize; 3], Place>,
}

/// Where a plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The number of the directory in this file, from 0 on.
    Here(usize),
    /// The name of another file of the set.
    Elsewhere(String),
}

/// What ImageJ says about a stack.
#[derive(Debug, PartialEq)]
pub(super) struct ImageJ {
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) slices: usize,
    pub(super) frames: usize,
    pub(super) unit: Option<String>,
}

impl Description {
    /// From the tag's bytes, which should be ASCII and are often UTF-8 or Latin-1. `file` is the name of the file.
    pub(super) fn parse(bytes: &[u8], file: &str) -> Self {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().copied().map(char::from).collect(),
        };
        if text.starts_with("ImageJ=") {
            return Self::ImageJ(ImageJ::parse(&text));
        }
        if text.starts_with("Aperio") {
            return Self::Aperio(aperio(&text));
        }
        let is_ome = text.contains("<OME") || text.contains(":OME");
        if !is_ome {
            return Self::Other;
        }
        match Document::parse(text.trim()) {
            Ok(document) => Ome::parse(&document, file).map_or(Self::Other, Self::Ome),
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}

/// Aperio's `|MPP = 0.4990|`.
fn aperio(text: &str) -> PixelSize {
    text.split(['|', '\n', '\r'])
        .filter_map(|part| part.split_once('='))
        .find(|(name, _)| name.trim() == "MPP")
        .map_or(PixelSize::Absent, |(_, size)| PixelSize::stated(size, None, "µm"))
}

impl ImageJ {
    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            text.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| key.trim() == name)
        };
        let count =
            |name: &str| value(name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(1).max(1);
        Self {
            images: count("images"),
            channels: count("channels"),
            slices: count("slices"),
            frames: count("frames"),
            unit: value("unit").map(|(_, unit)| unit.trim().to_owned()),
        }
    }

    /// From pixels per unit, which the resolution tags hold.
    pub(super) fn pixel_size(&self, density: Option<(f64, f64)>) -> Option<PixelSize> {
        let unit = self.unit.as_deref()?;
        let Some((x, y)) = density.filter(|(x, y)| *x > 0.0 && *y > 0.0) else {
            return Some(PixelSize::Absent);
        };
        Some(PixelSize::stated(&(1.0 / x).to_string(), Some(&(1.0 / y).to_string()), unit))
    }
}

impl Ome {
    fn parse(document: &Document<'_>, file: &str) -> Option<Self> {
        let named = |node: &Node<'_, '_>, name: &str| node.is_element() && node.tag_name().name() == name;
        let pixels = document.descendants().find(|node| named(node, "Pixels"))?;
        let size =
            |name: &str| pixels.attribute(name).and_then(|text| text.trim().parse().ok()).unwrap_or(1).max(1);
        let channels: Vec<Node<'_, '_>> = pixels.children().filter(|node| named(node, "Channel")).collect();
        let uuid = document.root_element().attribute("UUID");
        let mut ome = Self {
            channels: size("SizeC"),
            z: size("SizeZ"),
            times: size("SizeT"),
            order: order(pixels.attribute("DimensionOrder").unwrap_or_default()),
            channel_names: channels
                .iter()
                .map(|channel| channel.attribute("Name").map(str::trim).filter(|name| !name.is_empty()))
                .map(|name| name.map(str::to_owned))
                .collect(),
            significant_bits: pixels.attribute("SignificantBits").and_then(|bits| bits.trim().parse().ok()),
            pixel_size: pixel_size(&pixels),
            places: HashMap::new(),
        };
        for data in pixels.children().filter(|node| named(node, "TiffData")) {
            ome.place(&data, uuid, file);
        }
        Some(ome)
    }

    /// Planes that one `TiffData` speaks of.
    fn place(&mut self, data: &Node<'_, '_>, uuid: Option<&str>, file: &str) {
        let number = |name: &str| data.attribute(name).and_then(|text| text.trim().parse::<usize>().ok());
        let elsewhere = data
            .children()
            .find(|node| node.is_element() && node.tag_name().name() == "UUID")
            .filter(|other| other.text().map(str::trim) != uuid)
            .map(|other| other.attribute("FileName").unwrap_or("another file").to_owned())
            .filter(|name| name != file);
        let first = [number("FirstC"), number("FirstZ"), number("FirstT")];
        if number("IFD").is_none() && first.iter().all(Option::is_none) && elsewhere.is_none() {
            // All planes in their order.
            return;
        }
        let ifd = number("IFD").unwrap_or(0);
        let all = self.channels.saturating_mul(self.z).saturating_mul(self.times);
        // With a number of a directory that is one plane, otherwise all that the file has.
        let count = number("PlaneCount").unwrap_or(if number("IFD").is_some() { 1 } else { all });
        let [c, z, t] = first.map(Option::unwrap_or_default);
        let begin = self.index([c, z, t]);
        for step in 0..count.min(all.saturating_sub(begin)).min(MOST_PLANES) {
            let place = match &elsewhere {
                Some(name) => Place::Elsewhere(name.clone()),
                None => Place::Here(ifd + step),
            };
            self.places.insert(self.at(begin + step), place);
        }
    }

    fn sizes(&self) -> [(Axis, usize); 3] {
        self.order.map(|axis| match axis {
            Axis::Channel => (axis, self.channels),
            Axis::Z => (axis, self.z),
            Axis::Time => (axis, self.times),
        })
    }

    /// The number of a plane in the order of the file.
    fn index(&self, plane: [usize; 3]) -> usize {
        plane_index(&self.sizes(), plane)
    }

    /// Channel, z and time of a plane.
    fn at(&self, mut index: usize) -> [usize; 3] {
        let mut plane = [0; 3];
        for (axis, size) in self.sizes() {
            plane[axis as usize] = index % size;
            index /= size;
        }
        plane
    }
}

/// Planes of one `TiffData` that are looked at.
const MOST_PLANES: usize = 1 << 22;

/// The number of the plane of a channel, z and time in files with axes of these sizes, the fastest first.
pub(super) fn plane_index(sizes: &[(Axis, usize); 3], plane: [usize; 3]) -> usize {
    sizes
        .iter()
        .rev()
        .fold(0usize, |index, (axis, size)| index.saturating_mul(*size).saturating_add(plane[*axis as usize]))
}

/// `XYCZT` and the like.
fn order(text: &str) -> [Axis; 3] {
    let mut order = text.chars().filter_map(|letter| match letter {
        'C' => Some(Axis::Channel),
        'Z' => Some(Axis::Z),
        'T' => Some(Axis::Time),
        _ => None,
    });
    let known = [order.next(), order.next(), order.next()];
    match known {
        [Some(a), Some(b), Some(c)] if a != b && b != c && a != c => [a, b, c],
        _ => [Axis::Channel, Axis::Z, Axis::Time],
    }
}

fn pixel_size(pixels: &Node<'_, '_>) -> PixelSize {
    let unit = |name: &str| pixels.attribute(name).unwrap_or("µm");
    let (x, y) = (pixels.attribute("PhysicalSizeX"), pixels.attribute("PhysicalSizeY"));
    let Some(x) = x else { return PixelSize::Absent };
    let along_x = PixelSize::stated(x, None, unit("PhysicalSizeXUnit"));
    match y.map(|y| PixelSize::stated(y, None, unit("PhysicalSizeYUnit"))) {
        Some(PixelSize::Known { x: y, .. }) => match along_x {
            PixelSize::Known { x, .. } => PixelSize::Known { x, y },
            other => other,
        },
        Some(problem @ PixelSize::NotUnderstood(_)) => problem,
        _ => along_x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ome(attributes: &str, children: &str) -> Ome {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><OME UUID=\"urn:uuid:1\"><Image><Pixels {attributes}>{children}</Pixels></Image></OME>"
        );
        match Description::parse(text.as_bytes(), "a.ome.tif") {
            Description::Ome(ome) => ome,
            other => panic!("{other:?}"),
        }
    }

    fn known(x: f64, y: f64) -> PixelSize {
        PixelSize::Known { x, y }
    }

    #[test]
    fn sizes_in_xml_are_read_however_they_are_written() {
        for (attributes, size) in [
            (r#"PhysicalSizeX="0.25""#, known(0.25, 0.25)),
            (r#"PhysicalSizeX="0.25" PhysicalSizeXUnit="&#181;m""#, known(0.25, 0.25)),
            (r#"PhysicalSizeX="0.25" PhysicalSizeXUnit="&#xB5;m""#, known(0.25, 0.25)),
            (r#"PhysicalSizeX = '250,0' PhysicalSizeXUnit = 'nm' SizeX='3'"#, known(0.25, 0.25)),
            (r#"PhysicalSizeX="0.25" PhysicalSizeY="0.5""#, known(0.25, 0.5)),
            (r#"PhysicalSizeX="1" PhysicalSizeXUnit="pixel""#, PixelSize::Absent),
        ] {
            assert_eq!(ome(attributes, "").pixel_size, size, "{attributes}");
        }
        let odd = ome(r#"PhysicalSizeX="0.25" PhysicalSizeXUnit="?m""#, "").pixel_size;
        assert_eq!(odd, PixelSize::NotUnderstood("0.25 ?m".to_owned()));
        let latin1 = b"<OME><Pixels PhysicalSizeX='0.25' PhysicalSizeXUnit='\xb5m'/></OME>\0";
        let Description::Ome(ome) = Description::parse(latin1, "a.tif") else { panic!("not OME") };
        assert_eq!(ome.pixel_size, known(0.25, 0.25));
        assert!(matches!(Description::parse(b"<OME><Pixels", "a.tif"), Description::Broken(_)));
    }

    #[test]
    fn planes_are_found_in_the_order_of_their_axes() {
        let sizes = r#"SizeC="2" SizeZ="3" SizeT="4" DimensionOrder="XYZTC""#;
        let plain = ome(sizes, "<TiffData/>");
        assert!(plain.places.is_empty());
        assert_eq!(plain.index([1, 2, 3]), 2 + 3 * (3 + 4));
        assert_eq!(plain.at(2 + 3 * (3 + 4)), [1, 2, 3]);
        let stated = ome(
            sizes,
            r#"<Channel Name="DAPI"/><Channel Name=" "/>
               <TiffData IFD="5" FirstC="1"/>
               <TiffData FirstZ="1" PlaneCount="2"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>
               <TiffData FirstT="1" IFD="0"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>"#,
        );
        assert_eq!(stated.channel_names, [Some("DAPI".to_owned()), None]);
        assert_eq!(stated.places[&[1, 0, 0]], Place::Here(5));
        assert_eq!(stated.places[&[0, 2, 0]], Place::Here(1));
        assert_eq!(stated.places[&[0, 0, 1]], Place::Elsewhere("b.ome.tif".to_owned()));
        assert_eq!(stated.places.len(), 4);
    }

    #[test]
    fn other_descriptions_state_sizes_too() {
        let imagej = |text: &str, density| match Description::parse(text.as_bytes(), "") {
            Description::ImageJ(imagej) => imagej.pixel_size(density),
            other => panic!("{other:?}"),
        };
        for unit in ["micron", "um", "\\u00B5m"] {
            let text = format!("ImageJ=1.53t\nimages=6\nunit={unit}\nmin=0");
            assert_eq!(imagej(&text, Some((4.0, 4.0))), Some(known(0.25, 0.25)));
        }
        assert_eq!(imagej("ImageJ=1.53t\nmin=0", Some((4.0, 4.0))), None);
        assert_eq!(imagej("ImageJ=1.53t\nunit=pixel", Some((1.0, 1.0))), Some(PixelSize::Absent));
        for text in ["Aperio Image\r\n|AppMag = 20|MPP = 0.4990|Left = 2", "Aperio|MPP=0,4990"] {
            let Description::Aperio(size) = Description::parse(text.as_bytes(), "") else { panic!("{text}") };
            assert_eq!(size, known(0.499, 0.499));
        }
    }
}
