//! Label files as the programs of the field write them.

use std::path::{Path, PathBuf};

use ::png::{BitDepth, ColorType};
use ::tiff::encoder::{TiffEncoder, colortype};
use ::tiff::tags::Tag;

use super::*;

/// A PNG of 4 x 2 pixels.
fn written(
    folder: &Path,
    color: ColorType,
    depth: BitDepth,
    samples: &[u8],
    palette: &[u8],
    trns: &[u8],
) -> PathBuf {
    let path = folder.join("labels.png");
    let mut encoder = ::png::Encoder::new(File::create(&path).unwrap(), 4, 2);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if !palette.is_empty() {
        encoder.set_palette(palette.to_vec());
    }
    if !trns.is_empty() {
        encoder.set_trns(trns.to_vec());
    }
    encoder.write_header().unwrap().write_image_data(samples).unwrap();
    path
}

fn bytes(numbers: LabelNumbers) -> Vec<u8> {
    let Numbers::Bytes(values) = numbers.numbers else { panic!("the numbers are wide") };
    values
}

#[test]
fn transparent_pixels_are_unlabelled() {
    let folder = tempfile::tempdir().unwrap();
    let opaque = [[0, 255], [1, 255], [0, 0], [1, 0], [0, 0], [0, 255], [1, 255], [9, 0]];
    let grey = opaque.concat();
    let read = read_label_numbers(
        &written(folder.path(), ColorType::GrayscaleAlpha, BitDepth::Eight, &grey, &[], &[]),
        None,
    )
    .unwrap();
    assert_eq!(read.transparent, 4);
    assert_eq!(bytes(read), [0, 1, 255, 255, 255, 0, 1, 255]);
    let rgba: Vec<u8> = opaque.iter().flat_map(|[grey, opacity]| [*grey, *grey, *grey, *opacity]).collect();
    let path = written(folder.path(), ColorType::Rgba, BitDepth::Eight, &rgba, &[], &[]);
    assert_eq!(read_labels(&path).unwrap().values, [0, 1, 255, 255, 255, 0, 1, 255]);
    let wide: Vec<u8> = grey.chunks(2).flat_map(|pixel| [0, pixel[0], pixel[1], pixel[1]]).collect();
    let path = written(folder.path(), ColorType::GrayscaleAlpha, BitDepth::Sixteen, &wide, &[], &[]);
    assert_eq!(read_labels(&path).unwrap().values, [0, 1, 255, 255, 255, 0, 1, 255]);
    // An indexed PNG whose first entry is transparent, and one grey that stands for "transparent".
    let palette = [0, 0, 0, 200, 30, 30, 30, 200, 30];
    let indices = [0, 1, 2, 1, 0, 0, 0, 2];
    let path = written(folder.path(), ColorType::Indexed, BitDepth::Eight, &indices, &palette, &[0]);
    assert_eq!(read_labels(&path).unwrap().values, [255, 1, 2, 1, 255, 255, 255, 2]);
    let path = written(folder.path(), ColorType::Grayscale, BitDepth::Eight, &indices, &[], &[0, 2]);
    assert_eq!(read_labels(&path).unwrap().values, [0, 1, 255, 1, 0, 0, 0, 255]);
}

#[test]
fn partly_transparent_pixels_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let grey = [[0, 255], [1, 255], [0, 0], [1, 0], [0, 120], [0, 255], [1, 255], [9, 0]].concat();
    let path = written(folder.path(), ColorType::GrayscaleAlpha, BitDepth::Eight, &grey, &[], &[]);
    assert!(read_labels(&path).unwrap_err().to_string().contains("antialiased"));
    let path = written(
        folder.path(),
        ColorType::Indexed,
        BitDepth::Eight,
        &[0, 1, 1, 0, 0, 1, 1, 0],
        &[0; 6],
        &[90, 255],
    );
    assert!(read_labels(&path).unwrap_err().to_string().contains("antialiased"));
}

#[test]
fn greys_of_a_palette_are_labels_and_its_colours_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let indices = [0, 1, 2, 2, 1, 0, 0, 0];
    let read = |greys: &[[u8; 3]]| {
        let path =
            written(folder.path(), ColorType::Indexed, BitDepth::Eight, &indices, &greys.concat(), &[]);
        read_labels(&path).unwrap().values
    };
    // As programs write it that make PNG files smaller.
    assert_eq!(read(&[[255; 3], [1; 3], [0; 3]]), [255, 1, 0, 0, 1, 255, 255, 255]);
    assert_eq!(read(&[[2; 3], [0; 3], [5; 3]]), [2, 0, 5, 5, 0, 2, 2, 2]);
    // Shades and colours that show what the indices are.
    assert_eq!(read(&[[0; 3], [128; 3], [255; 3]]), indices);
    assert_eq!(read(&[[0; 3], [255; 3], [90; 3]]), indices);
    assert_eq!(read(&[[1; 3], [0; 3], [200, 0, 0]]), indices);
    let ramp: Vec<[u8; 3]> = (0..=255).map(|grey| [grey; 3]).collect();
    assert_eq!(read(&ramp), indices);
    let inverted: Vec<[u8; 3]> = (0..=255).rev().map(|grey| [grey; 3]).collect();
    assert_eq!(read(&inverted), indices);
}

#[test]
fn colours_are_listed_and_can_be_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let (black, red, grey) = ([0, 0, 0], [255, 0, 0], [128; 3]);
    let pixels = [black, red, grey, grey, black, black, black, red].concat();
    let path = written(folder.path(), ColorType::Rgb, BitDepth::Eight, &pixels, &[], &[]);
    let message = read_labels(&path).unwrap_err().to_string();
    assert!(message.contains("colour picture"), "{message}");
    assert!(message.contains("#000000 (4 pixels), #808080 (2 pixels), #ff0000 (2 pixels)"), "{message}");
    let colours: LabelColours = "#000000=0, #FF0000=1,808080=255".parse().unwrap();
    assert_eq!(bytes(read_label_numbers(&path, Some(&colours)).unwrap()), [0, 1, 255, 255, 0, 0, 0, 1]);
    let colours = "#000000=0,#ff0000=1".parse().unwrap();
    let message = read_label_numbers(&path, Some(&colours)).unwrap_err().to_string();
    assert!(message.contains("no class was given, #808080"), "{message}");
    // Masks of black and white, whatever their depth.
    let colours = "#000000=0,#ffffff=1".parse().unwrap();
    let path =
        written(folder.path(), ColorType::Grayscale, BitDepth::One, &[0b1010_0000, 0b0001_0000], &[], &[]);
    assert_eq!(bytes(read_label_numbers(&path, Some(&colours)).unwrap()), [1, 0, 1, 0, 0, 0, 0, 1]);
    for wrong in ["", "#000000", "#00000=1", "#00000g=1", "#000000=256", "#000000=0,#000000=1"] {
        assert!(wrong.parse::<LabelColours>().is_err(), "{wrong:?} was taken");
    }
}

#[test]
fn wide_numbers_arrive_whole_and_are_no_classes() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = [0u16, 300, 255, 1, 0, 0, 2, 65535];
    let samples: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    let path = written(folder.path(), ColorType::Grayscale, BitDepth::Sixteen, &samples, &[], &[]);
    let read = read_label_numbers(&path, None).unwrap();
    assert_eq!(read.numbers, Numbers::Wide(numbers.map(u32::from).to_vec()));
    assert!(read_labels(&path).unwrap_err().to_string().contains("65535"));
}

#[test]
fn tiff_labels_of_all_depths_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.tif");
    macro_rules! read {
        ($kind:ty, $values:expr) => {{
            let mut encoder = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
            encoder.write_image::<$kind>(4, 2, &$values).unwrap();
            read_label_numbers(&path, None)
        }};
    }
    let expected = [0, 1, 2, 255, 0, 0, 1, 2];
    assert_eq!(bytes(read!(colortype::Gray8, expected).unwrap()), expected);
    assert_eq!(bytes(read!(colortype::Gray16, expected.map(u16::from)).unwrap()), expected);
    assert_eq!(bytes(read!(colortype::Gray32, expected.map(u32::from)).unwrap()), expected);
    assert_eq!(bytes(read!(colortype::GrayI32, expected.map(i32::from)).unwrap()), expected);
    assert_eq!(bytes(read!(colortype::Gray32Float, expected.map(f32::from)).unwrap()), expected);
    let wide = [0, 70_000, 1, 2, 3, 4, 5, 6];
    assert_eq!(read!(colortype::Gray32, wide).unwrap().numbers, Numbers::Wide(wide.to_vec()));
    let refused = read!(colortype::Gray32Float, [0.0, 0.25, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]).unwrap_err();
    assert!(refused.to_string().contains("0.25"), "{refused}");
    let refused = read!(colortype::GrayI16, [0, -1, 0, 0, 0, 0, 0, 0]).unwrap_err();
    assert!(refused.to_string().contains("-1"), "{refused}");
}

#[test]
fn tiff_palettes_and_inverted_greys_are_indices() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.tif");
    let indices = [0, 1, 2, 255, 0, 0, 1, 2];
    let write = |interpretation: u16, map: Option<&[u16]>| {
        let mut encoder = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
        let mut page = encoder.new_image::<colortype::Gray8>(4, 2).unwrap();
        page.encoder().write_tag(Tag::PhotometricInterpretation, interpretation).unwrap();
        if let Some(map) = map {
            page.encoder().write_tag(Tag::ColorMap, map).unwrap();
        }
        page.write_data(&indices).unwrap();
    };
    write(0, None);
    assert_eq!(read_labels(&path).unwrap().values, indices);
    let mut map = vec![0u16; 768];
    for (index, value) in map.iter_mut().enumerate() {
        *value = (index * 7919 % 65536) as u16;
    }
    write(3, Some(&map));
    assert_eq!(read_labels(&path).unwrap().values, indices);
}

#[test]
fn label_files_of_several_pages_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.tif");
    let mut encoder = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
    for _ in 0..2 {
        encoder.write_image::<colortype::Gray8>(4, 2, &[0; 8]).unwrap();
    }
    drop(encoder);
    assert!(read_labels(&path).unwrap_err().to_string().contains("several pages"));
}

#[test]
fn other_files_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.png");
    for (content, words) in
        [(b"\xFF\xD8\xFF\xE0".as_slice(), "JPEG"), (b"", "empty"), (b"GIF89a", "neither PNG nor TIFF")]
    {
        std::fs::write(&path, content).unwrap();
        let message = read_labels(&path).unwrap_err().to_string();
        assert!(message.contains(words) && message.contains("labels.png"), "{message}");
    }
}

#[test]
fn labels_are_turned_as_their_images_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.tif");
    let stored = [0, 1, 2, 3, 4, 5, 6, 7];
    let mut encoder = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
    let mut page = encoder.new_image::<colortype::Gray8>(4, 2).unwrap();
    page.encoder().write_tag(Tag::Orientation, 6u16).unwrap();
    page.write_data(&stored).unwrap();
    let image = crate::read_image(&path, &crate::ReadOptions::default()).unwrap();
    let labels = read_labels(&path).unwrap();
    assert_eq!((labels.width, labels.height), (2, 4));
    assert_eq!((image.width, image.height), (2, 4));
    assert_eq!(labels.values, image.pixels.bytes());
}
