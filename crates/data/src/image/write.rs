//! Writing PNG files.

use std::io::{self, Read, Write};
use std::path::Path;

use halfseg_files::open_regular;
use png::{BitDepth, ColorType};

use crate::{DataError, LabelMap, Plane, RgbImage};

/// A keyword that PNG knows, and what is written under it.
const SOFTWARE: [&str; 2] = ["Software", "halfseg"];
/// Bytes within which it is: it comes next to the header.
const HEAD: u64 = 128;

fn encode<const C: usize>(out: impl Write, plane: &Plane<C>, color: ColorType) -> io::Result<()> {
    let mut encoder = png::Encoder::new(out, plane.width as u32, plane.height as u32);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
    let [keyword, text] = SOFTWARE.map(str::to_owned);
    encoder.add_text_chunk(keyword, text)?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&plane.data)?;
    Ok(writer.finish()?)
}

/// Writes a picture as PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_rgb(path: &Path, image: &RgbImage) -> Result<(), DataError> {
    halfseg_files::write_atomically(path, |out| encode(out, image, ColorType::Rgb))
        .map_err(|e| DataError::io(path, e))
}

/// Writes a picture as PNG to `out`.
///
/// # Errors
/// What `out` returns.
pub fn encode_rgb(out: impl Write, image: &RgbImage) -> io::Result<()> {
    encode(out, image, ColorType::Rgb)
}

/// Writes a label map as 8-bit grey PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_label(path: &Path, label: &LabelMap) -> Result<(), DataError> {
    halfseg_files::write_atomically(path, |out| encode_label(out, label))
        .map_err(|e| DataError::io(path, e))
}

/// Writes a label map as 8-bit grey PNG to `out`.
///
/// # Errors
/// What `out` returns.
pub fn encode_label(out: impl Write, label: &LabelMap) -> io::Result<()> {
    encode(out, label, ColorType::Grayscale)
}

/// Whether the file at `path` is a PNG of this crate, as the text `Software` in it says.
///
/// # Errors
/// If it cannot be read or is no regular file.
pub fn is_own_png(path: &Path) -> Result<bool, DataError> {
    let read = || {
        let mut head = Vec::new();
        open_regular(path)?.take(HEAD).read_to_end(&mut head)?;
        io::Result::Ok(head)
    };
    let head = read().map_err(|e| DataError::io(path, e))?;
    let text = SOFTWARE.join("\0");
    let length = (text.len() as u32).to_be_bytes();
    let chunk = [&length[..], b"tEXt", text.as_bytes()].concat();
    Ok(head.windows(chunk.len()).any(|part| part == chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{read_image, read_label};

    #[test]
    fn what_is_written_reads_back_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let map = LabelMap {
            width: 3,
            height: 2,
            data: vec![1, 2, 3, 4, 5, 6],
        };
        let path = folder.path().join("map.png");
        write_label(&path, &map).unwrap();
        assert_eq!(read_label(&path).unwrap(), map);
        let picture = RgbImage {
            width: 1,
            height: 2,
            data: map.data.clone(),
        };
        write_rgb(&path, &picture).unwrap();
        assert_eq!(read_image(&path).unwrap(), picture);
        assert!(is_own_png(&path).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_label(&folder.path().join("no/map.png"), &map).is_err());
    }

    #[test]
    fn files_of_others_are_not_taken_for_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 1, 1);
        let text = "halfseg-like".to_owned();
        let keyword = SOFTWARE[0].to_owned();
        encoder.add_text_chunk(keyword, text).unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[1]).unwrap();
        drop(writer);
        assert!(!is_own_png(&path).unwrap());
        std::fs::write(&path, "halfseg").unwrap();
        assert!(!is_own_png(&path).unwrap());
        assert!(is_own_png(folder.path()).is_err());
    }
}
