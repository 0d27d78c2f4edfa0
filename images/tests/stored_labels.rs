//! Properties of label files whatever they hold, and of files that are damaged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use mdm_images::{Numbers, read_label_numbers, read_labels};
use png::{BitDepth, ColorType};
use proptest::prelude::*;
use tiff::encoder::{TiffEncoder, TiffValue, colortype};
use tiff::tags::Tag;

/// The ways in which a test stores labels.
const KINDS: usize = 9;

/// A file of `width` columns that holds `labels`.
fn stored(kind: usize, width: usize, labels: &[u8]) -> Vec<u8> {
    let grey = |channels: usize, opaque: bool| -> Vec<u8> {
        let pixel = |label: &u8| {
            let mut pixel = vec![*label; channels];
            if opaque {
                pixel[channels - 1] = 255;
            }
            pixel
        };
        labels.iter().flat_map(pixel).collect()
    };
    let wide: Vec<u8> = labels.iter().flat_map(|label| [0, *label]).collect();
    match kind {
        0 => png_of(width, ColorType::Grayscale, BitDepth::Eight, labels),
        1 => png_of(width, ColorType::Grayscale, BitDepth::Sixteen, &wide),
        2 => png_of(width, ColorType::GrayscaleAlpha, BitDepth::Eight, &grey(2, true)),
        3 => png_of(width, ColorType::Rgb, BitDepth::Eight, &grey(3, false)),
        4 => png_of(width, ColorType::Rgba, BitDepth::Eight, &grey(4, true)),
        5 => png_of(width, ColorType::Indexed, BitDepth::Eight, labels),
        6 => tiff_of::<colortype::Gray8>(width, labels, None),
        7 => {
            let wide: Vec<u16> = labels.iter().map(|label| u16::from(*label)).collect();
            tiff_of::<colortype::Gray16>(width, &wide, None)
        }
        _ => tiff_of::<colortype::Gray8>(width, labels, Some(3)),
    }
}

fn png_of(width: usize, color: ColorType, depth: BitDepth, samples: &[u8]) -> Vec<u8> {
    let row = width * color.samples() * (depth as usize / 8);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, (samples.len() / row) as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ColorType::Indexed {
        let colours = (0..=255u8).flat_map(|index| [index.wrapping_mul(37), index, 255 - index]);
        encoder.set_palette(colours.collect::<Vec<u8>>());
    }
    encoder.write_header().unwrap().write_image_data(samples).unwrap();
    file
}

fn tiff_of<C: colortype::ColorType>(
    width: usize,
    samples: &[C::Inner],
    interpretation: Option<u16>,
) -> Vec<u8>
where
    [C::Inner]: TiffValue,
{
    let mut file = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut file).unwrap();
    let mut page = encoder.new_image::<C>(width as u32, (samples.len() / width) as u32).unwrap();
    if let Some(interpretation) = interpretation {
        page.encoder().write_tag(Tag::PhotometricInterpretation, interpretation).unwrap();
        let map: Vec<u16> = (0..768u32).map(|entry| (entry * 7919 % 65536) as u16).collect();
        page.encoder().write_tag(Tag::ColorMap, &map[..]).unwrap();
    }
    page.write_data(samples).unwrap();
    file.into_inner()
}

/// Rows of labels, and their width.
fn labels() -> impl Strategy<Value = (usize, Vec<u8>)> {
    (1usize..12, 1usize..12).prop_flat_map(|(width, height)| {
        (Just(width), proptest::collection::vec(any::<u8>(), width * height))
    })
}

fn written(folder: &tempfile::TempDir, content: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join("labels");
    std::fs::write(&path, content).unwrap();
    path
}

proptest! {
    #[test]
    fn labels_come_back_in_whatever_way_they_are_stored((width, labels) in labels(), kind in 0..KINDS) {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &stored(kind, width, &labels));
        let read = read_labels(&path).unwrap();
        prop_assert_eq!((read.width, read.height), (width, labels.len() / width));
        prop_assert_eq!(read.values, labels);
    }

    #[test]
    fn damaged_files_are_errors_or_labels_but_never_panics(
        (width, labels) in labels(),
        kind in 0..KINDS,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        colours in proptest::option::of(Just("#000000=0,#ffffff=1")),
    ) {
        let mut file = stored(kind, width, &labels);
        for (at, value, in_header) in damage {
            // Headers are where damage does harm.
            let reach = if in_header { file.len().min(96) } else { file.len() };
            file[at.index(reach)] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &file);
        let colours = colours.map(|colours| colours.parse().unwrap());
        match read_label_numbers(&path, colours.as_ref()) {
            Ok(read) => {
                let count = match read.numbers {
                    Numbers::Bytes(values) => values.len(),
                    Numbers::Wide(values) => values.len(),
                };
                prop_assert_eq!(count, read.width * read.height);
            }
            Err(error) => prop_assert!(error.path == path && !error.reason.is_empty()),
        }
    }
}
