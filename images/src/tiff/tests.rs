//! TIFF files of all kinds, made byte by byte.

use std::path::{Path, PathBuf};

use crate::{Image, NumberKind, Pixels, ReadOptions, Result, image_size, read_image};

const SHORT: u16 = 3;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

/// A tag, its type, and its bytes.
type Entry = (u16, u16, Vec<u8>);

fn shorts(tag: u16, values: &[u16]) -> Entry {
    (tag, SHORT, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn longs(tag: u16, values: &[u32]) -> Entry {
    (tag, LONG, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn text(text: &str) -> Entry {
    (270, 2, [text.as_bytes(), b"\0"].concat())
}

/// A page: its tags, and its strips or tiles.
struct Page {
    tags: Vec<Entry>,
    chunks: Vec<Vec<u8>>,
}

impl Page {
    /// Of one strip.
    fn new((width, height): (u32, u32), bits: u16, samples: u16, meaning: u16, data: Vec<u8>) -> Self {
        let tags = vec![
            longs(256, &[width]),
            longs(257, &[height]),
            shorts(258, &vec![bits; samples.into()]),
            shorts(262, &[meaning]),
            shorts(277, &[samples]),
        ];
        Self { tags, chunks: vec![data] }
    }

    fn grey(size: (u32, u32), data: &[u8]) -> Self {
        Self::new(size, 8, 1, 1, data.to_vec())
    }

    fn with(mut self, tag: Entry) -> Self {
        self.tags.push(tag);
        self
    }

    fn tiles(mut self, side: u32, tiles: Vec<Vec<u8>>) -> Self {
        self.chunks = tiles;
        self.with(longs(322, &[side])).with(longs(323, &[side]))
    }
}

/// A file of these pages, of which no data follow the directories.
fn file(pages: Vec<Page>) -> Vec<u8> {
    let mut file = b"II*\0\0\0\0\0".to_vec();
    let mut link = 4;
    for mut page in pages {
        let mut offsets = Vec::new();
        for chunk in &page.chunks {
            offsets.push(if chunk.is_empty() { 0 } else { file.len() as u32 });
            file.extend(chunk);
        }
        let counts: Vec<u32> = page.chunks.iter().map(|chunk| chunk.len() as u32).collect();
        let (begin, count) =
            if page.tags.iter().any(|(tag, ..)| *tag == 322) { (324, 325) } else { (273, 279) };
        page.tags.extend([longs(begin, &offsets), longs(count, &counts)]);
        page.tags.sort();
        let mut directory = (page.tags.len() as u16).to_le_bytes().to_vec();
        for (tag, kind, bytes) in page.tags {
            let size = match kind {
                SHORT => 2,
                LONG => 4,
                5 | 12 => 8,
                _ => 1,
            };
            directory.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
            directory.extend(((bytes.len() / size) as u32).to_le_bytes());
            if bytes.len() <= 4 {
                directory.extend([bytes, vec![0; 4]].concat().into_iter().take(4));
            } else {
                directory.extend((file.len() as u32).to_le_bytes());
                file.extend(bytes);
            }
        }
        directory.extend([0; 4]);
        let at = file.len() as u32;
        file[link..link + 4].copy_from_slice(&at.to_le_bytes());
        file.extend(directory);
        link = file.len() - 4;
    }
    file
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("odd.tif")
    }

    fn read_with(&self, pages: Vec<Page>, options: &ReadOptions) -> Result<Image> {
        let path = self.path();
        std::fs::write(&path, file(pages)).unwrap();
        read_image(&path, options)
    }

    fn read(&self, page: Page) -> Result<Image> {
        self.read_with(vec![page], &ReadOptions::default())
    }

    fn bytes(&self, page: Page) -> Vec<u8> {
        match self.read(page).unwrap().pixels {
            Pixels::U8(values) => values,
            other => panic!("{other:?}"),
        }
    }
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// A colour of a pixel that differs from its neighbours'.
fn value(x: u32, y: u32, channel: u32) -> u8 {
    (7 * x + 31 * y + 80 * channel) as u8
}

/// Tiles of `side` pixels of an image of `size`; at its borders they are filled up. `pixel` has the values of a tile's pixel.
fn tiled(size: (u32, u32), side: u32, pixel: impl Fn(u32, u32) -> Vec<u8>) -> Vec<Vec<u8>> {
    let corners = (0..size.1.div_ceil(side)).flat_map(|y| (0..size.0.div_ceil(side)).map(move |x| (x, y)));
    corners
        .map(|(left, top)| {
            (0..side * side).flat_map(|at| pixel(left * side + at % side, top * side + at / side)).collect()
        })
        .collect()
}

const SIZE: (u32, u32) = (37, 21);

fn interleaved(channels: u32) -> Vec<u8> {
    let pixels = (0..SIZE.0 * SIZE.1).map(|at| (at % SIZE.0, at / SIZE.0));
    pixels.flat_map(|(x, y)| (0..channels).map(move |channel| value(x, y, channel))).collect()
}

#[test]
fn planes_in_tiles_are_read_whatever_the_height() {
    let folder = Folder::new();
    let planes = (0..3).flat_map(|channel| tiled(SIZE, 16, |x, y| vec![value(x, y, channel)])).collect();
    let page = Page::new(SIZE, 8, 3, 2, Vec::new()).with(shorts(284, &[2])).tiles(16, planes);
    assert_eq!(folder.bytes(page), interleaved(3));
    let tiles = tiled(SIZE, 16, |x, y| (0..3).map(|channel| value(x, y, channel)).collect());
    assert_eq!(folder.bytes(Page::new(SIZE, 8, 3, 2, Vec::new()).tiles(16, tiles)), interleaved(3));
}

#[test]
fn tiles_that_were_left_out_are_zeros() {
    let folder = Folder::new();
    let mut tiles = tiled(SIZE, 16, |x, y| vec![value(x, y, 0)]);
    tiles[1].clear();
    let read = folder.bytes(Page::new(SIZE, 8, 1, 1, Vec::new()).tiles(16, tiles));
    let expected: Vec<u8> = (0..SIZE.0 * SIZE.1)
        .map(|at| (at % SIZE.0, at / SIZE.0))
        .map(|(x, y)| if (16..32).contains(&x) && y < 16 { 0 } else { value(x, y, 0) })
        .collect();
    assert_eq!(read, expected);
}

#[test]
fn all_common_compressions_are_read_or_named() {
    use std::io::Write;
    let folder = Folder::new();
    let plain = interleaved(1);
    let deflate = |data: &[u8]| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let lzw = weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8).encode(&plain).unwrap();
    let zstandard =
        ruzstd::encoding::compress_to_vec(plain.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    let packed: Vec<u8> = plain.iter().flat_map(|value| [0, *value]).collect();
    let page = |number: u16, data: &[u8]| Page::grey(SIZE, data).with(shorts(259, &[number]));
    for (number, data) in [(5, lzw), (8, deflate(&plain)), (50000, zstandard), (32773, packed)] {
        assert_eq!(folder.bytes(page(number, &data)), plain, "{number}");
        let cut = message(folder.read(page(number, &data[..data.len() / 2])));
        assert!(cut.contains("damaged or cut short"), "{number}: {cut}");
    }
    let mut differences = plain.clone();
    for row in differences.chunks_mut(SIZE.0 as usize) {
        for at in (1..row.len()).rev() {
            row[at] = row[at].wrapping_sub(row[at - 1]);
        }
    }
    assert_eq!(folder.bytes(page(8, &deflate(&differences)).with(shorts(317, &[2]))), plain);
    let advice = message(folder.read(page(34712, &[1, 2, 3])));
    assert!(advice.contains("JPEG 2000") && advice.contains("LZW, Deflate or Zstandard"), "{advice}");
}

/// A smooth picture as JPEG.
fn jpeg(side: u32, channels: u32) -> (Vec<u8>, Vec<u8>) {
    let pixels: Vec<u8> = (0..side * side * channels)
        .map(|at| (at / channels % side * 6 + at / channels / side * 3 + 40 * (at % channels)) as u8)
        .collect();
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
    let colours = if channels == 3 { image::ExtendedColorType::Rgb8 } else { image::ExtendedColorType::L8 };
    encoder.encode(&pixels, side, side, colours).unwrap();
    (pixels, bytes)
}

/// Parts a JPEG into its tables and the rest, both with a beginning and an end, as TIFF wants them.
fn parted(jpeg: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rest) = (vec![0xFF, 0xD8], vec![0xFF, 0xD8]);
    let mut at = 2;
    while jpeg[at + 1] != 0xDA {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        let part = if matches!(jpeg[at + 1], 0xDB | 0xC4) { &mut tables } else { &mut rest };
        part.extend_from_slice(&jpeg[at..end]);
        at = end;
    }
    rest.extend_from_slice(&jpeg[at..]);
    tables.extend([0xFF, 0xD9]);
    (tables, rest)
}

#[test]
fn jpeg_within_tiff_is_read_in_the_colours_that_are_seen() {
    let folder = Folder::new();
    let near = |read: &[u8], pixels: &[u8]| {
        read.len() == pixels.len() && read.iter().zip(pixels).all(|(a, b)| a.abs_diff(*b) < 12)
    };
    let (pixels, bytes) = jpeg(24, 3);
    let page = |data: &[u8]| Page::new((24, 24), 8, 3, 6, data.to_vec()).with(shorts(259, &[7]));
    assert!(near(&folder.bytes(page(&bytes)), &pixels));
    let (tables, rest) = parted(&bytes);
    let tabled = |data: &[u8]| page(data).with((347, UNDEFINED, tables.clone()));
    assert!(near(&folder.bytes(tabled(&rest)), &pixels));
    // What lies beyond the image in its last tile is left out.
    let tile =
        Page::new((20, 17), 8, 3, 6, Vec::new()).with(shorts(259, &[7])).tiles(24, vec![bytes.clone()]);
    let cropped: Vec<u8> = (0..17).flat_map(|y| pixels[72 * y..72 * y + 60].to_vec()).collect();
    assert!(near(&folder.bytes(tile), &cropped));
    for share in [30, 60, 90, 99] {
        let cut = message(folder.read(tabled(&rest[..rest.len() * share / 100])));
        assert!(cut.contains("damaged or cut short"), "{share} %: {cut}");
    }
    let (pixels, bytes) = jpeg(24, 1);
    let grey = Page::new((24, 24), 8, 1, 1, bytes).with(shorts(259, &[7]));
    assert!(near(&folder.bytes(grey), &pixels));
}

#[test]
fn palettes_are_greys_or_colours() {
    let folder = Folder::new();
    let indices = [0, 1, 2, 255, 7, 9];
    let page = |map: Vec<u16>| Page::new((3, 2), 8, 1, 3, indices.to_vec()).with(shorts(320, &map));
    let inverted: Vec<u16> = (0..256).map(|index| (255 - index) * 257).collect();
    let read = folder.bytes(page([inverted.clone(), inverted.clone(), inverted].concat()));
    assert_eq!(read, indices.map(|index| 255 - index));
    let green = [vec![0; 256], (0..256).map(|index| index * 257).collect(), vec![0; 256]].concat();
    let expected: Vec<u8> = indices.iter().flat_map(|index| [0, *index, 0]).collect();
    assert_eq!(folder.bytes(page(green)), expected);
    assert!(message(folder.read(Page::new((3, 2), 8, 1, 3, indices.to_vec()))).contains("palette"));
}

#[test]
fn all_types_of_numbers_are_read() {
    let folder = Folder::new();
    let read = |bits: u16, format: u16, data: Vec<u8>| {
        folder.read(Page::new((2, 1), bits, 1, 1, data).with(shorts(339, &[format])))
    };
    let floats = |image: Image| match image.pixels {
        Pixels::F32(values) => values,
        other => panic!("{other:?}"),
    };
    let bytes = |values: [i64; 2], bytes: usize| {
        values.iter().flat_map(|value| value.to_le_bytes()[..bytes].to_vec()).collect::<Vec<u8>>()
    };
    for (bits, values) in [(8, [-128, 127]), (16, [-4095, 4095]), (32, [-70_000, 9]), (64, [-3, 4])] {
        let image = read(bits, 2, bytes(values, usize::from(bits) / 8)).unwrap();
        assert_eq!((image.stored.kind, image.stored.bits), (NumberKind::Signed, bits as u8));
        assert_eq!(floats(image), values.map(|value| value as f32));
    }
    assert_eq!(floats(read(32, 1, bytes([70_000, 5], 4)).unwrap()), [70_000.0, 5.0]);
    let half = [half::f16::from_f32(0.5), half::f16::from_f32(-2.0)];
    assert_eq!(
        floats(read(16, 3, half.iter().flat_map(|v| v.to_le_bytes()).collect()).unwrap()),
        [0.5, -2.0]
    );
    let double = |values: [f64; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(floats(read(64, 3, double([0.25, 1e6])).unwrap()), [0.25, 1e6]);
    let beyond = message(read(64, 3, double([0.25, 1e300])));
    assert!(beyond.contains("row 0, column 1"), "{beyond}");
    let image = read(12, 1, vec![0x12, 0x3F, 0xFF]).unwrap();
    assert!(matches!(&image.pixels, Pixels::U16(values) if *values == [0x123, 0xFFF]));
    assert_eq!(image.declared_range.unwrap().channels, [(0.0, 4095.0)]);
    assert!(
        matches!(read(1, 1, vec![0b0100_0000]).unwrap().pixels, Pixels::U8(values) if values == [0, 255])
    );
    assert!(message(read(24, 1, vec![0; 6])).contains("24-bit unsigned values"));
}

fn options(channels: &str, z: &str, time: Option<usize>) -> ReadOptions {
    ReadOptions {
        channels: channels.split_terminator(',').map(|channel| channel.parse().unwrap()).collect(),
        z: z.parse().ok(),
        time,
        ..ReadOptions::default()
    }
}

/// Pages of 2 x 1 pixels, of which page n holds n and 100 - n.
fn stack(pages: u8, description: &str) -> Vec<Page> {
    let page = |n: u8| Page::grey((2, 1), &[n, 100 - n]);
    (0..pages).map(|n| if n == 0 { page(n).with(text(description)) } else { page(n) }).collect()
}

fn planes(folder: &Folder, pages: Vec<Page>, options: &ReadOptions) -> Result<(Vec<u8>, Option<String>)> {
    folder.read_with(pages, options).map(|image| (image.pixels.bytes().to_vec(), image.left_out))
}

#[test]
fn planes_of_ome_files_are_chosen_by_channel_plane_and_time() {
    let folder = Folder::new();
    let ome = r#"<OME><Image><Pixels SizeC="2" SizeZ="3" SizeT="2" DimensionOrder="XYZCT" Type="uint8">
        <Channel Name="DAPI"/><Channel Name="GFP"/><TiffData/></Pixels></Image></OME>"#;
    let read = |channels: &str, z: &str, time| planes(&folder, stack(12, ome), &options(channels, z, time));
    let (first, left_out) = read("", "", None).unwrap();
    assert_eq!(
        (first, left_out.unwrap().as_str()),
        (vec![0, 100], "channel 1 (DAPI) of 2, plane 1 of 3, time 1 of 2")
    );
    assert_eq!(read("gfp", "2", Some(2)).unwrap(), (vec![6 + 3 + 1, 90], None));
    assert_eq!(read("2,1,2", "mid", Some(1)).unwrap().0, [4, 1, 4, 96, 99, 96]);
    assert_eq!(read("1", "max", Some(2)).unwrap().0, [8, 94]);
    let cut = planes(&folder, stack(11, ome), &options("2", "3", Some(2)));
    assert!(message(cut).contains("channel 2, z 3 and time 2 is missing"));
    let elsewhere = ome.replace(
        "<TiffData/>",
        r#"<TiffData FirstZ="1" IFD="0"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>"#,
    );
    let other = planes(&folder, stack(12, &elsewhere), &options("1", "2", Some(1)));
    assert!(message(other).contains("another file of the set: b.ome.tif"));
}

#[test]
fn stacks_of_imagej_are_found_with_and_without_directories() {
    let folder = Folder::new();
    let description = "ImageJ=1.53t\nimages=6\nchannels=2\nslices=3\nhyperstack=true\n";
    let (_, left_out) = planes(&folder, stack(6, description), &ReadOptions::default()).unwrap();
    assert_eq!(left_out.unwrap(), "channel 1 of 2, plane 1 of 3");
    let one = || {
        let mut page = Page::grey((2, 1), &(0..12).collect::<Vec<u8>>()).with(text(description));
        page.chunks[0].extend([99; 3]);
        vec![page]
    };
    let (first, left_out) = planes(&folder, one(), &ReadOptions::default()).unwrap();
    assert_eq!((first, left_out.unwrap().as_str()), (vec![0, 1], "channel 1 of 2, plane 1 of 3"));
    assert_eq!(planes(&folder, one(), &options("2", "3", None)).unwrap(), (vec![10, 11], None));
}

#[test]
fn pages_without_a_meaning_are_what_is_asked_for() {
    let folder = Folder::new();
    let read = |channels: &str, z: &str, time| planes(&folder, stack(3, "scan"), &options(channels, z, time));
    assert_eq!(read("", "", None).unwrap(), (vec![0, 100], Some("plane 1 of 3".to_owned())));
    assert_eq!(read("", "3", None).unwrap(), (vec![2, 98], None));
    assert_eq!(read("3,1,2", "", None).unwrap().0, [2, 0, 1, 98, 100, 99]);
    assert_eq!(read("", "", Some(2)).unwrap().0, [1, 99]);
    assert!(
        message(read("1", "2", None)).contains("does not say whether they are channels, planes or times")
    );
    // Levels of a pyramid, previews and pages of another size are no planes.
    let mut pages = stack(1, "scan");
    pages.push(Page::grey((2, 1), &[5, 5]).with(longs(254, &[1])));
    pages.push(Page::grey((1, 1), &[5]));
    assert_eq!(planes(&folder, pages, &ReadOptions::default()).unwrap().1, None);
}

#[test]
fn several_values_a_pixel_are_channels() {
    let folder = Folder::new();
    let page = || vec![Page::new((2, 1), 8, 5, 1, (0..10).collect())];
    let read = |channels: &str| planes(&folder, page(), &options(channels, "", None)).unwrap();
    assert_eq!(read(""), (vec![0, 5], Some("channel 1 of 5".to_owned())));
    assert_eq!(read("5,1").0, [4, 0, 9, 5]);
    let two = folder.read_with(page(), &options("5,1", "", None)).unwrap();
    assert!(two.view().unwrap_err().to_string().contains("2 channels were chosen"));
    let opaque = vec![Page::new((2, 1), 8, 2, 1, vec![1, 255, 2, 0]).with(shorts(338, &[2]))];
    assert_eq!(planes(&folder, opaque, &ReadOptions::default()).unwrap(), (vec![1, 2], None));
}

/// Pixels a centimetre.
fn resolution(tag: u16, number: u32) -> Entry {
    (tag, 5, [number.to_le_bytes(), 1u32.to_le_bytes()].concat())
}

#[test]
fn pixels_must_be_square_unless_somebody_says_so() {
    let folder = Folder::new();
    let page = |x, y| {
        let page = Page::grey((2, 1), &[1, 2]).with(shorts(296, &[3]));
        vec![page.with(resolution(282, x)).with(resolution(283, y))]
    };
    let read = |x, y, options: &ReadOptions| folder.read_with(page(x, y), options);
    let plain = ReadOptions::default();
    assert_eq!(read(20_000, 20_000, &plain).unwrap().microns_per_pixel, Some(0.5));
    let refused = message(read(40_000, 20_000, &plain));
    assert!(refused.contains("0.25 um wide and 0.5 um high") && refused.contains("--mpp"), "{refused}");
    let said = ReadOptions { microns_per_pixel: Some(2.0), ..plain };
    assert_eq!(read(40_000, 20_000, &said).unwrap().microns_per_pixel, Some(2.0));
}

#[test]
fn a_size_that_is_not_understood_is_never_replaced() {
    let folder = Folder::new();
    let page = |description: &str| {
        let page = Page::grey((2, 1), &[1, 2]).with(shorts(296, &[3])).with(text(description));
        page.with(resolution(282, 10_000)).with(resolution(283, 10_000))
    };
    let ome = |size: &str| format!("<OME><Image><Pixels {size}/></Image></OME>");
    let odd = folder.read(page(&ome(r#"PhysicalSizeX="0.25" PhysicalSizeXUnit="furlong""#))).unwrap();
    assert_eq!((odd.microns_per_pixel, odd.odd_pixel_size.as_deref()), (None, Some("0.25 furlong")));
    let entity = folder.read(page(&ome(r#"PhysicalSizeX="0.25" PhysicalSizeXUnit="&#181;m""#))).unwrap();
    assert_eq!((entity.microns_per_pixel, entity.odd_pixel_size), (Some(0.25), None));
    assert_eq!(folder.read(page(&ome(""))).unwrap().microns_per_pixel, Some(1.0));
    assert!(folder.read(page("<OME><Image>")).unwrap().odd_pixel_size.unwrap().contains("broken"));
}

#[test]
fn claims_beyond_the_limit_are_refused_by_name() {
    let folder = Folder::new();
    let options = ReadOptions { most_bytes: Some(5), ..ReadOptions::default() };
    let refused = message(folder.read_with(vec![Page::grey((3, 2), &[0; 6])], &options));
    assert!(refused.contains("3 x 2 pixels") && refused.contains("--max-image-memory"), "{refused}");
    assert_eq!(size_of(&folder.path()), (3, 2));
}

fn size_of(path: &Path) -> (usize, usize) {
    image_size(path).unwrap()
}
