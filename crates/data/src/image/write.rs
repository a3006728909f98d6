//! Writing PNG files.

use std::io::{self, Write};
use std::path::Path;

use png::{BitDepth, ColorType};

use crate::{DataError, LabelMap, Plane, RgbImage};

fn encode<const C: usize>(out: impl Write, plane: &Plane<C>, color: ColorType) -> io::Result<()> {
    let mut encoder = png::Encoder::new(out, plane.width as u32, plane.height as u32);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
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
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_label(&folder.path().join("no/map.png"), &map).is_err());
    }
}
