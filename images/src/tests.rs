//! Image files that are as they should be, and others.

use std::path::{Path, PathBuf};

use image::DynamicImage;

use super::{Image, Pixels, ReadOptions, Result, image_size, read_labels, write_grey, write_planes};

const SIZE: (u32, u32) = (5, 3);

fn read_image(path: &Path) -> Result<Image> {
    super::read_image(path, &ReadOptions::default())
}

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
        let colours: Vec<u16> = wide.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
        assert!(matches!(&read.pixels, Pixels::U16(values) if *values == colours), "{ending}");
        assert_eq!(read.channels, 3);
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
    let Image { width: 40, height: 130, channels: 1, pixels: Pixels::F32(first), left_out, .. } =
        read_image(&path).unwrap()
    else {
        panic!("not as written")
    };
    assert!(left_out.unwrap().contains("of 3"));
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
fn floating_point_values_are_any_but_must_be_numbers() {
    let folder = folder();
    let path = folder.path().join("bright.tif");
    let read = |values: &[f32]| {
        write_planes(&mut std::fs::File::create(&path).unwrap(), 2, 2, &["one"], None, values).unwrap();
        read_image(&path)
    };
    let image = read(&[-0.5, 300.0, 0.0, 1.0]).unwrap();
    assert!(matches!(image.pixels, Pixels::F32(values) if values == [-0.5, 300.0, 0.0, 1.0]));
    for odd in [f32::NAN, f32::INFINITY] {
        let message = read(&[0.0, 0.0, 0.0, odd]).unwrap_err().to_string();
        assert!(message.contains("bright.tif") && message.contains("row 1, column 1"), "{message}");
    }
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
fn labels_are_read_as_they_are_written() {
    let folder = folder();
    let path = folder.path().join("labels.png");
    let labels: Vec<u8> = (0..=255).collect();
    write_grey(std::fs::File::create(&path).unwrap(), 16, 16, &labels).unwrap();
    assert_eq!(read_labels(&path).unwrap().values, labels);
}

/// A TIFF of 8-bit greys with further tags.
fn tagged(path: &Path, size: (u32, u32), grey: &[u8], tags: &[(tiff::tags::Tag, u16)]) {
    use tiff::encoder::{TiffEncoder, colortype::Gray8};
    let mut encoder = TiffEncoder::new(std::fs::File::create(path).unwrap()).unwrap();
    let mut page = encoder.new_image::<Gray8>(size.0, size.1).unwrap();
    for (tag, value) in tags {
        page.encoder().write_tag(*tag, *value).unwrap();
    }
    page.write_data(grey).unwrap();
}

/// Exif data that state nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    exif
}

#[test]
fn images_are_read_as_they_are_meant_to_be_seen() {
    let folder = folder();
    // Stored as three columns, seen as three rows.
    let grey: Vec<u8> = (0..6).map(|i| 40 * i).collect();
    let seen = [120, 0, 160, 40, 200, 80];
    let check = |path: &Path, exact: bool| {
        assert_eq!(image_size(path).unwrap(), (2, 3), "{}", path.display());
        let image = read_image(path).unwrap();
        assert_eq!((image.width, image.height), (2, 3));
        let Pixels::U8(values) = image.pixels else { panic!("not bytes") };
        let near = |(value, want): (&u8, &u8)| value.abs_diff(*want) <= if exact { 0 } else { 12 };
        assert!(values.iter().zip(&seen).all(near), "{}: {values:?}", path.display());
    };
    let tif = folder.path().join("turned.tif");
    tagged(&tif, (3, 2), &grey, &[(tiff::tags::Tag::Orientation, 6)]);
    check(&tif, true);

    let png = folder.path().join("turned.png");
    let mut info = png::Info::with_size(3, 2);
    info.exif_metadata = Some(exif(6).into());
    let mut writer =
        png::Encoder::with_info(std::fs::File::create(&png).unwrap(), info).unwrap().write_header().unwrap();
    writer.write_image_data(&grey).unwrap();
    writer.finish().unwrap();
    check(&png, true);

    let jpg = folder.path().join("turned.jpg");
    let mut encoder =
        image::codecs::jpeg::JpegEncoder::new_with_quality(std::fs::File::create(&jpg).unwrap(), 100);
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif(6)).unwrap();
    encoder.encode(&grey, 3, 2, image::ExtendedColorType::L8).unwrap();
    check(&jpg, false);
}

#[test]
fn files_say_between_which_intensities_they_lie() {
    use super::RangeSource;
    use tiff::encoder::{TiffEncoder, colortype::Gray16};
    use tiff::tags::Tag;
    let folder = folder();
    let path = folder.path().join("camera.tif");
    let declared = |values: &[u16; 2], description: &str, highest: Option<u16>| {
        let mut encoder = TiffEncoder::new(std::fs::File::create(&path).unwrap()).unwrap();
        let mut page = encoder.new_image::<Gray16>(2, 1).unwrap();
        page.encoder().write_tag(Tag::ImageDescription, description).unwrap();
        if let Some(highest) = highest {
            page.encoder().write_tag(Tag::MinSampleValue, 10u16).unwrap();
            page.encoder().write_tag(Tag::MaxSampleValue, highest).unwrap();
        }
        page.write_data(values).unwrap();
        read_image(&path).unwrap().declared_range.map(|range| (range.source, range.channels))
    };
    let ome = |bits: u8| {
        format!(
            r#"<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="2" SizeY="1" SizeC="1" SizeZ="1" SizeT="1" SignificantBits="{bits}"><TiffData/></Pixels></Image></OME>"#
        )
    };
    assert_eq!(
        declared(&[10, 4000], &ome(12), None),
        Some((RangeSource::OmeSignificantBits, vec![(0.0, 4095.0)]))
    );
    // All that many programs know is the type.
    assert_eq!(declared(&[10, 4000], &ome(16), None), None);
    assert_eq!(declared(&[10, 5000], &ome(12), None), None);
    assert_eq!(
        declared(&[10, 4000], "scan", Some(4000)),
        Some((RangeSource::TiffSampleValues, vec![(10.0, 4000.0)]))
    );
    assert_eq!(declared(&[9, 4000], "scan", Some(4000)), None);
    // How it was shown on a screen.
    assert_eq!(declared(&[10, 4000], "ImageJ=1.53t\nmin=10.0\nmax=4000.0\n", None), None);

    let png = folder.path().join("camera.png");
    let mut info = png::Info::with_size(2, 1);
    info.bit_depth = png::BitDepth::Sixteen;
    let mut writer =
        png::Encoder::with_info(std::fs::File::create(&png).unwrap(), info).unwrap().write_header().unwrap();
    writer.write_chunk(png::chunk::sBIT, &[12]).unwrap();
    writer.write_image_data(&[0, 5, 0x0F, 0xFF]).unwrap();
    writer.finish().unwrap();
    let range = read_image(&png).unwrap().declared_range.unwrap();
    assert_eq!(range.channels, [(0.0, 4095.0)]);
}

#[test]
fn jpegs_that_are_not_whole_are_errors() {
    let folder = folder();
    let noise = image::RgbImage::from_fn(97, 61, |x, y| {
        let value = (x * x + 3 * y * y + x * y) as u8;
        image::Rgb([value, value / 2, 255 - value])
    });
    let whole = folder.path().join("whole.jpg");
    noise.save(&whole).unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    assert!(read_image(&whole).is_ok());
    let damaged = folder.path().join("damaged.jpg");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&damaged, bytes).unwrap();
        let message = read_image(&damaged).unwrap_err().to_string();
        assert!(message.contains("damaged or cut short"), "{what}: {message}");
    };
    for percent in [10, 50, 75, 90, 99] {
        let cut = &bytes[..bytes.len() * percent / 100];
        refused(cut, &format!("{percent} %"));
        refused(&[cut, &[0xFF, 0xD9]].concat(), &format!("{percent} % with an end"));
    }
    let mut zeroed = bytes.clone();
    zeroed[bytes.len() / 2..bytes.len() * 3 / 4].fill(0);
    refused(&zeroed, "zeros in the middle");
    // Cameras and messengers add things.
    std::fs::write(&damaged, [bytes, b"added by a camera".to_vec()].concat()).unwrap();
    assert!(read_image(&damaged).is_ok());
}

#[test]
fn a_small_png_may_not_claim_all_memory() {
    let folder = folder();
    let path = folder.path().join("huge.png");
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        [&(data.len() as u32).to_be_bytes()[..], kind, data, &crc.sum().to_be_bytes()].concat()
    };
    let header = [&65535u32.to_be_bytes()[..], &65535u32.to_be_bytes(), &[8, 6, 0, 0, 0]].concat();
    let png = [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &[0x78, 0x9C]),
        chunk(b"paDd", &vec![0; 5 << 20]),
        chunk(b"IEND", &[]),
    ];
    std::fs::write(&path, png.concat()).unwrap();
    let message = read_image(&path).unwrap_err().to_string();
    assert!(message.contains("65535 x 65535") && message.contains("--max-image-memory"), "{message}");
    // Where that much is allowed, memory is taken for what there is.
    let options = ReadOptions { most_bytes: Some(u64::MAX), ..ReadOptions::default() };
    assert!(super::read_image(&path, &options).is_err());
}
