//! Image files that are as they should be, and others.

use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat};

use super::{Image, Pixels, image_size, read_image, read_labels, write_grey, write_planes};

const SIZE: (u32, u32) = (5, 3);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn saved(folder: &Path, name: &str, image: &DynamicImage) -> PathBuf {
    let path = folder.join(name);
    image.save(&path).unwrap();
    path
}

/// Values that differ from pixel to pixel.
fn values<T>(channels: usize, value: impl Fn(usize) -> T) -> Vec<T> {
    (0..SIZE.0 as usize * SIZE.1 as usize * channels).map(value).collect()
}

#[test]
fn pixels_arrive_as_they_were_stored() {
    let folder = folder();
    let (w, h) = SIZE;
    let grey = values(1, |i| 7 * i as u8);
    let rgb = values(3, |i| 5 * i as u8);
    let wide = values(4, |i| 1000 * i as u16);
    let opaque: Vec<u8> = grey.iter().flat_map(|value| [*value, 255 - value]).collect();
    for ending in ["png", "tif", "bmp"] {
        let image = DynamicImage::from(image::GrayImage::from_raw(w, h, grey.clone()).unwrap());
        let read = read_image(&saved(folder.path(), &format!("grey.{ending}"), &image)).unwrap();
        if read.channels == 1 {
            assert!(matches!(&read.pixels, Pixels::U8(values) if *values == grey), "{ending}");
        } else {
            let tripled: Vec<u8> = grey.iter().flat_map(|value| [*value; 3]).collect();
            assert!(matches!(&read.pixels, Pixels::U8(values) if *values == tripled), "{ending}");
        }
        assert_eq!((read.width, read.height), (5, 3));
        let image = DynamicImage::from(image::RgbImage::from_raw(w, h, rgb.clone()).unwrap());
        let path = saved(folder.path(), &format!("rgb.{ending}"), &image);
        let read = read_image(&path).unwrap();
        assert!(matches!(&read.pixels, Pixels::U8(values) if *values == rgb), "{ending}");
        assert_eq!(image_size(&path).unwrap(), (5, 3));
        assert!(read.view().is_ok());
    }
    for ending in ["png", "tif"] {
        let image = DynamicImage::ImageRgba16(image::ImageBuffer::from_raw(w, h, wide.clone()).unwrap());
        let read = read_image(&saved(folder.path(), &format!("wide.{ending}"), &image)).unwrap();
        assert!(matches!(&read.pixels, Pixels::U16(values) if *values == wide), "{ending}");
        assert_eq!(read.channels, 4);
    }
    let image = DynamicImage::ImageLumaA8(image::ImageBuffer::from_raw(w, h, opaque).unwrap());
    let read = read_image(&saved(folder.path(), "opaque.png", &image)).unwrap();
    assert!(matches!(&read.pixels, Pixels::U8(values) if *values == grey));
    assert_eq!(read.channels, 1);
}

#[test]
fn planes_are_pages_that_can_be_read_back() {
    let folder = folder();
    let path = folder.path().join("planes.tif");
    let planes: Vec<f32> = (0..130 * 40 * 3).map(|i| i as f32 / 16_000.0).collect();
    let names = ["background", "\u{3b1}-cell & <rest>", "c"];
    write_planes(&mut std::fs::File::create(&path).unwrap(), 40, 130, &names, Some(0.325), &planes).unwrap();
    let Image { width: 40, height: 130, channels: 1, pixels: Pixels::F32(first), more_pages: true, .. } =
        read_image(&path).unwrap()
    else {
        panic!("not as written")
    };
    assert!(first.iter().eq(planes.iter().step_by(3)));
    // A description that claims an ImageJ stack would make readers look for planes where the first one ends.
    let mut decoder = tiff::decoder::Decoder::new(std::fs::File::open(&path).unwrap()).unwrap();
    let description = decoder.get_tag_ascii_string(tiff::tags::Tag::ImageDescription).unwrap();
    assert!(!description.contains("ImageJ"), "{description}");
    assert!(description.contains(r#"Name="&#945;-cell &#38; &#60;rest&#62;""#), "{description}");
    assert!(description.contains(r#"PhysicalSizeX="0.325""#) && description.contains(r#"SizeC="3""#));
    for plane in 0..3 {
        decoder.seek_to_image(plane).unwrap();
        let tiff::decoder::DecodingResult::F32(page) = decoder.read_image().unwrap() else {
            panic!("not f32")
        };
        assert!(page.iter().eq(planes.iter().skip(plane).step_by(3)), "plane {plane}");
    }
    assert_eq!(read_image(&path).unwrap().microns_per_pixel, Some(0.325));
}

#[test]
fn planes_of_another_size_are_refused() {
    let mut file = std::io::Cursor::new(Vec::new());
    assert!(write_planes(&mut file, 2, 2, &["a", "b"], None, &[0.0; 7]).is_err());
}

#[test]
fn a_tiff_says_how_large_its_pixels_are() {
    use tiff::encoder::{Rational, TiffEncoder, colortype::Gray8};
    use tiff::tags::{ResolutionUnit, Tag};
    let folder = folder();
    let path = folder.path().join("scaled.tif");
    let microns = |unit, n, description: &str| {
        let mut encoder = TiffEncoder::new(std::fs::File::create(&path).unwrap()).unwrap();
        let mut page = encoder.new_image::<Gray8>(2, 2).unwrap();
        page.resolution(unit, Rational { n, d: 1 });
        page.encoder().write_tag(Tag::ImageDescription, description).unwrap();
        page.write_data(&[0; 4]).unwrap();
        read_image(&path).unwrap().microns_per_pixel
    };
    assert_eq!(microns(ResolutionUnit::Centimeter, 20_000, "stage 2"), Some(0.5));
    assert_eq!(microns(ResolutionUnit::Inch, 300, "scan"), None);
    assert_eq!(microns(ResolutionUnit::None, 4, "ImageJ=1.53t\nunit=um\n"), Some(0.25));
}

#[test]
fn floating_point_beyond_one_is_refused() {
    let folder = folder();
    let path = folder.path().join("bright.tif");
    write_planes(&mut std::fs::File::create(&path).unwrap(), 2, 1, &["one"], None, &[0.5, 300.0]).unwrap();
    let message = read_image(&path).unwrap_err().to_string();
    assert!(message.contains("bright.tif") && message.contains("300"), "{message}");
}

#[test]
fn the_ending_does_not_matter_but_the_content_does() {
    let folder = folder();
    let image = DynamicImage::new_luma8(4, 4);
    let png = saved(folder.path(), "image.png", &image);
    let disguised = folder.path().join("image.tif");
    std::fs::rename(png, &disguised).unwrap();
    assert_eq!(read_image(&disguised).unwrap().width, 4);
    for (name, content) in
        [("empty.png", b"".as_slice()), ("text.png", b"not an image, whatever its name says")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        assert!(read_image(&path).unwrap_err().to_string().contains(name));
        assert!(read_labels(&path).unwrap_err().to_string().contains(name));
    }
    assert!(read_image(folder.path()).unwrap_err().to_string().contains("is a folder"));
    assert!(read_image(&folder.path().join("none.png")).unwrap_err().to_string().contains("none.png"));
}

#[test]
fn damaged_files_are_errors_or_pictures_but_never_panics() {
    let folder = folder();
    let mut state = 11u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % limit
    };
    let noise = image::RgbImage::from_fn(24, 17, |_, _| image::Rgb([0; 3].map(|_: u8| below(256) as u8)));
    let image = DynamicImage::from(noise);
    for (ending, format) in [
        ("png", ImageFormat::Png),
        ("jpg", ImageFormat::Jpeg),
        ("tif", ImageFormat::Tiff),
        ("bmp", ImageFormat::Bmp),
    ] {
        let mut whole = std::io::Cursor::new(Vec::new());
        image.write_to(&mut whole, format).unwrap();
        let whole = whole.into_inner();
        let path = folder.path().join(format!("damaged.{ending}"));
        for round in 0..400 {
            let mut bytes = whole.clone();
            if round % 2 == 0 {
                bytes.truncate(below(whole.len()));
            } else {
                // Headers are where damage does harm.
                for _ in 0..1 + round % 7 {
                    let at = below(if round % 3 == 0 { 64.min(whole.len()) } else { whole.len() });
                    bytes[at] = below(256) as u8;
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            match read_image(&path) {
                Ok(image) => assert!(image.view().is_ok()),
                Err(error) => assert!(error.to_string().contains("damaged."), "{error}"),
            }
            if let Err(error) = read_labels(&path) {
                assert!(error.to_string().contains("damaged."), "{error}");
            }
        }
    }
}

#[test]
fn labels_are_read_as_they_are_written() {
    let folder = folder();
    let path = folder.path().join("labels.png");
    let labels: Vec<u8> = (0..=255).collect();
    write_grey(std::fs::File::create(&path).unwrap(), 16, 16, &labels).unwrap();
    assert_eq!(read_labels(&path).unwrap().values, labels);
}
