//! Damaged image and label files are errors or pictures: nothing panics, takes all memory or runs for ever.
//!
//! `MDM_FUZZ_SECONDS` makes it go on with other damages for so long, and leave what went wrong in `MDM_FUZZ_FOLDER`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat};
use mdm_images::{ChannelChoice, FileError, ReadOptions, ZChoice, image_size, read_image, read_labels};
use tiff::encoder::{Compression, DeflateLevel, TiffEncoder, colortype};
use tiff::tags::Tag;

/// Damages of each file, unless a time is given.
const ROUNDS: u64 = 100;

/// How long one file may take, on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

/// Small sound files of all formats, and of TIFFs the kinds that are read in ways of their own.
fn sound() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random(7);
    let noise = image::RgbImage::from_fn(40, 33, |x, y| {
        image::Rgb([(5 * x) as u8, (7 * y) as u8, random.below(256) as u8])
    });
    let rgb = DynamicImage::from(noise);
    let grey = DynamicImage::from(rgb.to_luma8());
    let wide = DynamicImage::from(rgb.to_luma16());
    let mut files = Vec::new();
    for (name, image, format) in [
        ("rgb.png", &rgb, ImageFormat::Png),
        ("grey.png", &grey, ImageFormat::Png),
        ("wide.png", &wide, ImageFormat::Png),
        ("rgb.jpg", &rgb, ImageFormat::Jpeg),
        ("rgb.tif", &rgb, ImageFormat::Tiff),
        ("rgb.bmp", &rgb, ImageFormat::Bmp),
    ] {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        files.push((name, file.into_inner()));
    }
    let ome = "<OME><Image><Pixels SizeC=\"2\" SizeZ=\"1\" SizeT=\"2\" DimensionOrder=\"XYCZT\" SignificantBits=\"7\" \
               PhysicalSizeX=\"0.5\"><Channel Name=\"DAPI\"/><TiffData/></Pixels></Image></OME>";
    let imagej = "ImageJ=1.53t\nimages=4\nslices=4\nunit=micron\n";
    let compressions = [
        ("plain.tif", Compression::Uncompressed, "scan"),
        ("lzw.tif", Compression::Lzw, ome),
        ("deflate.tif", Compression::Deflate(DeflateLevel::Fast), imagej),
        ("packbits.tif", Compression::Packbits, "Aperio|MPP = 0.5"),
    ];
    for (name, compression, description) in compressions {
        let mut file = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut file).unwrap().with_compression(compression);
        for _ in 0..4 {
            let mut page = encoder.new_image::<colortype::Gray8>(40, 33).unwrap();
            page.rows_per_strip(7).unwrap();
            page.encoder().write_tag(Tag::ImageDescription, description).unwrap();
            page.write_data(grey.as_bytes()).unwrap();
        }
        files.push((name, file.into_inner()));
    }
    let jpeg = files.iter().find(|(name, _)| *name == "rgb.jpg").map(|(_, bytes)| bytes.clone()).unwrap();
    for (name, tiled, meaning, compression, samples, data) in [
        ("jpeg.tif", false, 6, 7, 3, jpeg),
        ("planes.tif", true, 2, 1, 3, rgb.to_rgb8().into_raw()),
        ("palette.tif", false, 3, 1, 1, grey.to_luma8().into_raw()),
        (
            "zstandard.tif",
            false,
            1,
            50000,
            1,
            ruzstd::encoding::compress_to_vec(grey.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest),
        ),
    ] {
        let mut file = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut file).unwrap();
        let mut page = encoder.image_directory().unwrap();
        let at = page.write_data(data.as_slice()).unwrap() as u32;
        page.write_tag(Tag::ImageWidth, 40u32).unwrap();
        page.write_tag(Tag::ImageLength, 33u32).unwrap();
        page.write_tag(Tag::BitsPerSample, 8u16).unwrap();
        page.write_tag(Tag::Compression, compression as u16).unwrap();
        page.write_tag(Tag::PhotometricInterpretation, meaning as u16).unwrap();
        page.write_tag(Tag::SamplesPerPixel, samples as u16).unwrap();
        if meaning == 3 {
            page.write_tag(Tag::ColorMap, &vec![77u16; 768][..]).unwrap();
        }
        if tiled {
            // Three planes of six tiles, all in the same place.
            page.write_tag(Tag::PlanarConfiguration, 2u16).unwrap();
            page.write_tag(Tag::TileWidth, 16u32).unwrap();
            page.write_tag(Tag::TileLength, 16u32).unwrap();
            page.write_tag(Tag::TileOffsets, &[at; 27][..]).unwrap();
            page.write_tag(Tag::TileByteCounts, &[256u32; 27][..]).unwrap();
        } else {
            page.write_tag(Tag::StripOffsets, at).unwrap();
            page.write_tag(Tag::StripByteCounts, data.len() as u32).unwrap();
        }
        page.finish().unwrap();
        files.push((name, file.into_inner()));
    }
    files
}

/// The file with a part cut off, bytes changed, or bytes moved.
fn damage(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    match random.below(5) {
        0 => bytes.truncate(random.below(whole.len())),
        1 => {
            let (from, to) = (random.below(whole.len()), random.below(whole.len()));
            let count = random.below(16).min(whole.len() - from.max(to));
            bytes.copy_within(from..from + count, to);
        }
        2 => {
            let at = random.below(whole.len());
            let end = (at + random.below(200)).min(whole.len());
            bytes[at..end].fill(0);
        }
        kind => {
            for _ in 0..1 + random.below(8) {
                // Headers and directories, at either end, are where damage does harm.
                let near = 300.min(whole.len());
                let at = match (kind, random.below(2)) {
                    (3, _) => random.below(whole.len()),
                    (_, 0) => random.below(near),
                    _ => whole.len() - 1 - random.below(near),
                };
                bytes[at] = match random.below(4) {
                    0 => [0, 1, 2, 3, 4, 8, 16, 32, 64, 127, 128, 255][random.below(12)],
                    1 => bytes[at].wrapping_add(1),
                    _ => random.below(256) as u8,
                };
            }
        }
    }
    bytes
}

/// Reads the file in all ways; what is wrong with how that went.
fn read(path: &Path, bytes: &[u8], options: &ReadOptions) -> Option<String> {
    std::fs::write(path, bytes).unwrap();
    let began = Instant::now();
    let mut wrong = None;
    let mut check = |error: FileError| {
        let text = error.to_string();
        if !text.contains("damaged.") || text.contains("the decoder gave up") {
            wrong = Some(text);
        }
    };
    let size = image_size(path);
    match read_image(path, options) {
        Ok(image) => {
            assert!(image.view().is_ok(), "{}", path.display());
            assert_eq!(size.map_err(&mut check), Ok((image.width, image.height)));
        }
        Err(error) => check(error),
    }
    if let Err(error) = read_labels(path) {
        check(error);
    }
    let took = began.elapsed();
    wrong.or_else(|| (took > LONGEST).then(|| format!("took {took:?}")))
}

#[test]
fn damaged_files_are_errors_or_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = std::env::var("MDM_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let kept = std::env::var_os("MDM_FUZZ_FOLDER");
    let (began, files) = (Instant::now(), sound());
    let choices = [
        ReadOptions { most_bytes: Some(64 << 20), ..ReadOptions::default() },
        ReadOptions { z: Some(ZChoice::Maximum), most_bytes: Some(64 << 20), ..ReadOptions::default() },
        ReadOptions {
            channels: vec![ChannelChoice::Number(1)],
            time: Some(1),
            most_bytes: Some(64 << 20),
            ..ReadOptions::default()
        },
    ];
    let (mut round, mut read_count, mut found) = (0, 0, Vec::new());
    loop {
        for (kind, (name, whole)) in files.iter().enumerate() {
            let mut random = Random(round * 1000 + kind as u64);
            let bytes = if round == 0 { whole.clone() } else { damage(whole, &mut random) };
            let path = folder.path().join(format!("damaged.{name}"));
            let options = &choices[random.below(choices.len())];
            read_count += 1;
            if let Some(wrong) = read(&path, &bytes, options) {
                if let Some(kept) = &kept {
                    std::fs::write(Path::new(kept).join(format!("{round}-{name}")), &bytes).unwrap();
                }
                found.push(format!("round {round}: {wrong}"));
            }
        }
        round += 1;
        let more = match seconds {
            Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
            None => round < ROUNDS,
        };
        if !more {
            break;
        }
    }
    println!("{read_count} files read, {} findings", found.len());
    assert!(
        found.is_empty(),
        "{} of {read_count}:\n{}",
        found.len(),
        found[..found.len().min(20)].join("\n")
    );
}
