//! Label maps as pictures.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use crate::EvalError;

/// RGB of each class in `map`; black where `palette` has no such class.
pub fn colorize(map: &[u8], palette: &[[u8; 3]]) -> Vec<u8> {
    map.iter()
        .flat_map(|&id| palette.get(id as usize).copied().unwrap_or([0; 3]))
        .collect()
}

/// `image` (RGB) under the colours of `map`, which cover with `opacity` from 0 to 1.
///
/// # Panics
/// If the sizes differ.
pub fn overlay(image: &[u8], map: &[u8], palette: &[[u8; 3]], opacity: f32) -> Vec<u8> {
    assert_eq!(image.len(), 3 * map.len(), "image and map differ in size");
    let colors = colorize(map, palette);
    let mix =
        |(&a, &b): (&u8, &u8)| (a as f32 * (1.0 - opacity) + b as f32 * opacity).round() as u8;
    image.iter().zip(&colors).map(mix).collect()
}

/// Pictures of one height side by side, `gap` white columns apart: `(rgb, width)` each. Returns the
/// picture and its width.
///
/// # Panics
/// If a picture's length does not fit its width and `height`.
pub fn panel(pictures: &[(&[u8], usize)], height: usize, gap: usize) -> (Vec<u8>, usize) {
    for (rgb, width) in pictures {
        assert_eq!(rgb.len(), 3 * width * height, "a picture of another size");
    }
    let gaps = gap * pictures.len().saturating_sub(1);
    let width = pictures.iter().map(|(_, width)| width).sum::<usize>() + gaps;
    let mut out = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for (i, (rgb, width)) in pictures.iter().enumerate() {
            if i > 0 {
                out.resize(out.len() + 3 * gap, 255);
            }
            out.extend_from_slice(&rgb[3 * width * y..3 * width * (y + 1)]);
        }
    }
    (out, width)
}

fn write_png(
    path: &Path,
    data: &[u8],
    (width, height): (usize, usize),
    color: png::ColorType,
) -> Result<(), EvalError> {
    assert_eq!(
        data.len(),
        width * height * color.samples(),
        "data of another size"
    );
    let fill = |out: &mut BufWriter<File>| {
        let mut encoder = png::Encoder::new(out, width as u32, height as u32);
        encoder.set_color(color);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(data)?;
        Ok(writer.finish()?)
    };
    halfseg_files::write_atomically(path, fill).map_err(|e| EvalError::io(path, e))
}

/// Writes RGB data as PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If the data do not fit `(width, height)`.
pub fn write_rgb_png(path: &Path, rgb: &[u8], size: (usize, usize)) -> Result<(), EvalError> {
    write_png(path, rgb, size, png::ColorType::Rgb)
}

/// Writes a map of ids as 8-bit grey PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If the data do not fit `(width, height)`.
pub fn write_gray_png(path: &Path, map: &[u8], size: (usize, usize)) -> Result<(), EvalError> {
    write_png(path, map, size, png::ColorType::Grayscale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_mix_and_panels_join() {
        let palette = [[0, 0, 0], [200, 100, 0]];
        assert_eq!(colorize(&[1, 255], &palette), [200, 100, 0, 0, 0, 0]);
        assert_eq!(
            overlay(&[100, 100, 100], &[1], &palette, 0.5),
            [150, 100, 50]
        );
        let (joined, width) = panel(&[(&[1, 2, 3], 1), (&[4, 5, 6], 1)], 1, 1);
        assert_eq!((joined, width), (vec![1, 2, 3, 255, 255, 255, 4, 5, 6], 3));
    }

    #[test]
    fn a_written_png_reads_back_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        write_gray_png(&path, &[1, 2, 3, 4, 5, 6], (3, 2)).unwrap();
        let file = std::io::BufReader::new(File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut data = vec![0; 6];
        reader.next_frame(&mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4, 5, 6]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_gray_png(&folder.path().join("no/map.png"), &[0], (1, 1)).is_err());
    }
}
