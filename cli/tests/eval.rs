//! `mdm eval` on small label images.

mod support;

use png::{BitDepth, ColorType};
use support::{folders, mdm, write_labels, write_png, write_png_of_depth};

const MEASURES: [&str; 5] = ["dice", "iou", "object_dice", "aji", "mean_iou"];

#[test]
fn scores_are_per_image_with_mean_and_deviation() {
    let folder = folders(&["truth", "prediction"]);
    let (truth, prediction) = (folder.path().join("truth"), folder.path().join("prediction"));
    write_labels(&truth.join("a.png"), 4, &[1, 1, 0, 0, 1, 1, 0, 0]);
    write_labels(&prediction.join("a.png"), 4, &[1, 1, 0, 0, 1, 1, 0, 0]);
    write_labels(&truth.join("b.png"), 4, &[1, 1, 1, 1, 0, 0, 0, 0]);
    write_labels(&prediction.join("b.png"), 4, &[1, 1, 0, 0, 0, 0, 0, 0]);
    let run = mdm(folder.path(), &["eval", "--prediction", "prediction", "--truth", "truth", "--json"]);
    let report = run.expect(0, &[]).json();
    let images = report["images"].as_array().expect("a list");
    assert_eq!(images.len(), 2);
    assert_eq!(images[0]["name"], "a");
    for measure in MEASURES {
        assert_eq!(images[0][measure], 1.0, "{measure} of equal images");
        let (a, b) = (images[0][measure].as_f64(), images[1][measure].as_f64());
        let (Some(a), Some(b)) = (a, b) else { panic!("{measure} is not a number") };
        let mean = report["mean"][measure].as_f64().expect("a number");
        assert!((mean - (a + b) / 2.0).abs() < 1e-12, "mean {measure}");
        let deviation = report["std"][measure].as_f64().expect("a number");
        assert!((deviation - (a - b).abs() / 2f64.sqrt()).abs() < 1e-12, "deviation of {measure}");
    }
    assert!((images[1]["dice"].as_f64().expect("a number") - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(images[1]["iou"], 0.5);
}

#[test]
fn csv_and_table_tell_the_same() {
    let folder = folders(&["t", "p"]);
    for name in ["t/x, y.png", "p/x, y.png"] {
        write_labels(&folder.path().join(name), 2, &[0, 1]);
    }
    let csv = mdm(folder.path(), &["eval", "--prediction", "p", "--truth", "t", "--csv"]).expect(0, &[]);
    let lines: Vec<&str> = csv.out.lines().collect();
    assert_eq!(lines[0], "name,dice,iou,object_dice,aji,mean_iou");
    assert_eq!(lines[1], "\"x, y\",1,1,1,1,1");
    assert_eq!(lines[2], "mean,1,1,1,1,1");
    let table = mdm(folder.path(), &["eval", "--prediction", "p", "--truth", "t"]).expect(0, &[]);
    assert!(table.out.contains("1.0000") && table.out.contains("mean of 1"), "{}", table.out);
}

#[test]
fn indices_count_however_the_png_stores_them() {
    let folder = folders(&["t", "p"]);
    let indices = [0, 1, 2, 1, 0, 2];
    write_labels(&folder.path().join("t/palette.png"), 3, &indices);
    write_png(&folder.path().join("p/palette.png"), 3, ColorType::Indexed, &indices);
    write_labels(&folder.path().join("t/packed.png"), 3, &indices);
    let packed = [0b0001_1000, 0b0100_1000];
    write_png_of_depth(&folder.path().join("p/packed.png"), 3, 2, ColorType::Indexed, BitDepth::Two, &packed);
    write_labels(&folder.path().join("t/wide.png"), 3, &indices);
    let wide: Vec<u8> = indices.iter().flat_map(|index| [0, *index]).collect();
    write_png_of_depth(
        &folder.path().join("p/wide.png"),
        3,
        2,
        ColorType::Grayscale,
        BitDepth::Sixteen,
        &wide,
    );
    write_labels(&folder.path().join("t/grey-as-rgb.png"), 3, &indices);
    let rgb: Vec<u8> = indices.iter().flat_map(|index| [*index; 3]).collect();
    write_png(&folder.path().join("p/grey-as-rgb.png"), 3, ColorType::Rgb, &rgb);
    let run = mdm(folder.path(), &["eval", "--prediction", "p", "--truth", "t", "--json"]).expect(0, &[]);
    assert_eq!(run.json()["mean"]["mean_iou"], 1.0);
    assert_eq!(run.json()["images"].as_array().map(Vec::len), Some(4));
}

#[test]
fn unlabelled_pixels_do_not_count() {
    let folder = folders(&[]);
    write_labels(&folder.path().join("truth.png"), 4, &[1, 0, 255, 255]);
    write_labels(&folder.path().join("mask.png"), 4, &[1, 0, 1, 0]);
    let run = |more: &[&str]| {
        let mut arguments = vec!["eval", "--prediction", "mask.png", "--truth", "truth.png", "--json"];
        arguments.extend(more);
        mdm(folder.path(), &arguments).expect(0, &[]).json()["mean"]["dice"].as_f64()
    };
    assert_eq!(run(&[]), Some(1.0));
    // Masks of 0 and 255: now the last two pixels are foreground.
    assert_eq!(run(&["--ignore", "none"]), Some(0.8));
}

#[test]
fn what_cannot_be_compared_is_named_and_the_rest_counts() {
    let folder = folders(&["t", "p"]);
    for name in ["t/good.png", "p/good.png", "t/missing.png", "t/large.png", "t/cut.png", "t/colour.png"] {
        write_labels(&folder.path().join(name), 2, &[0, 1]);
    }
    write_labels(&folder.path().join("p/large.png"), 2, &[0, 1, 1, 1]);
    write_png(&folder.path().join("p/colour.png"), 2, ColorType::Rgb, &[0, 0, 0, 200, 10, 10]);
    let whole = std::fs::read(folder.path().join("t/cut.png")).expect("the file is there");
    std::fs::write(folder.path().join("p/cut.png"), &whole[..whole.len() - 20]).expect("a cut file");
    let run = mdm(folder.path(), &["eval", "--prediction", "p", "--truth", "t", "--json"]);
    let run = run.expect(1, &["missing.png", "large.png: is 2 x 2", "is 2 x 1", "cut.png", "colour picture"]);
    assert_eq!(run.json()["images"].as_array().map(Vec::len), Some(1));
    assert_eq!(run.json()["failed"].as_array().map(Vec::len), Some(4));
    assert_eq!(run.json()["mean"]["dice"], 1.0);
}

#[test]
fn wrong_usage_is_exit_code_two() {
    let folder = folders(&["empty"]);
    write_labels(&folder.path().join("a.png"), 1, &[0]);
    mdm(folder.path(), &[]).expect(2, &["Usage"]);
    mdm(folder.path(), &["eval"]).expect(2, &["--prediction", "--truth"]);
    mdm(folder.path(), &["eval", "--prediction", "a.png", "--truth", "nowhere"]).expect(2, &["nowhere"]);
    mdm(folder.path(), &["eval", "--prediction", "a.png", "--truth", "empty"])
        .expect(1, &["empty", "no PNG"]);
    mdm(folder.path(), &["eval", "--prediction", "a.png", "--truth", "a.png", "--ignore", "300"])
        .expect(2, &["0 to 255"]);
    mdm(folder.path(), &["eval", "--prediction", "a.png", "--truth", "a.png", "--json", "--csv"])
        .expect(2, &["--csv"]);
}

#[test]
fn a_huge_claim_is_refused_before_memory_is_taken() {
    let folder = folders(&[]);
    write_labels(&folder.path().join("small.png"), 1, &[0]);
    let mut file = std::fs::read(folder.path().join("small.png")).expect("the file is there");
    // Width and height of the header, whose checksum is then wrong too.
    file[16..24].copy_from_slice(&[0, 15, 0, 0, 0, 15, 0, 0]);
    let checksum = crc(&file[12..29]);
    file[29..33].copy_from_slice(&checksum.to_be_bytes());
    std::fs::write(folder.path().join("huge.png"), file).expect("a file for the test");
    mdm(folder.path(), &["eval", "--prediction", "huge.png", "--truth", "small.png"])
        .expect(1, &["huge.png", "983040 x 983040", "damaged"]);
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}
