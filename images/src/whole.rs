//! Whether a file that was written earlier is all there, and what it says about itself.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use png::text_metadata::TEXtChunk;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

/// A PNG's last chunk.
const END: [u8; 12] = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xAE, 0x42, 0x60, 0x82];

/// Whether the PNG or TIFF at `path` has an end: nothing was cut off. Its pixels are not decoded.
pub fn is_whole(path: &Path) -> bool {
    png_ends(path).unwrap_or(false) || tiff_ends(path).unwrap_or(false)
}

fn png_ends(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut start = [0; 8];
    file.read_exact(&mut start)?;
    let mut end = [0; END.len()];
    file.seek(SeekFrom::End(-(END.len() as i64)))?;
    file.read_exact(&mut end)?;
    Ok(start == *b"\x89PNG\r\n\x1a\n" && end == END)
}

/// Whether the parts of all pages lie within the file.
fn tiff_ends(path: &Path) -> tiff::TiffResult<bool> {
    let length = std::fs::metadata(path)?.len();
    let mut decoder = Decoder::new(BufReader::new(File::open(path)?))?;
    loop {
        let (offsets, counts) = match decoder.find_tag(Tag::TileOffsets)? {
            Some(_) => (Tag::TileOffsets, Tag::TileByteCounts),
            None => (Tag::StripOffsets, Tag::StripByteCounts),
        };
        let (offsets, counts) = (decoder.get_tag_u64_vec(offsets)?, decoder.get_tag_u64_vec(counts)?);
        let inside = |(offset, count): (&u64, &u64)| offset.saturating_add(*count) <= length;
        if offsets.is_empty() || offsets.len() != counts.len() || !offsets.iter().zip(&counts).all(inside) {
            return Ok(false);
        }
        if !decoder.more_images() {
            return Ok(true);
        }
        decoder.next_image()?;
    }
}

/// The text that a PNG keeps under `keyword` ahead of its pixels.
pub fn png_note(path: &Path, keyword: &str) -> Option<String> {
    let reader = png::Decoder::new(BufReader::new(File::open(path).ok()?)).read_info().ok()?;
    let found = |chunk: &&TEXtChunk| chunk.keyword == keyword;
    reader.info().uncompressed_latin1_text.iter().find(found).map(|chunk| chunk.text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_files_are_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let mut png = Vec::new();
        crate::write_labels(&mut png, 2, 2, &[0, 1, 2, 3], Some(("mdm", "a note"))).unwrap();
        let mut tiff = std::io::Cursor::new(Vec::new());
        crate::write_planes(&mut tiff, 2, 2, &["a", "b"], None, &[0.0; 8]).unwrap();
        for (name, content) in [("a.png", png), ("a.tif", tiff.into_inner())] {
            let path = write(name, &content);
            assert!(is_whole(&path), "{name}");
            for cut in [0, 4, 20, content.len() / 2, content.len() - 1] {
                write(name, &content[..cut]);
                assert!(!is_whole(&path), "{name} of {cut} bytes");
            }
            write(name, &content);
        }
        assert_eq!(png_note(&folder.path().join("a.png"), "mdm").as_deref(), Some("a note"));
        assert_eq!(png_note(&folder.path().join("a.png"), "other"), None);
        assert_eq!(png_note(&folder.path().join("a.tif"), "mdm"), None);
        assert_eq!(crate::read_labels(&folder.path().join("a.png")).unwrap().values, [0, 1, 2, 3]);
    }
}
