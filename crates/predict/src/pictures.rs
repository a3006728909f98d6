//! Class maps as pictures.

use std::fs;
use std::path::Path;

use halfseg_data::{IGNORE, LabelMap, PictureRef, RgbImage, Sample, write_label, write_rgb};

use crate::PredictError;

/// White columns between the pictures of a panel that [`draw_prediction`] writes.
pub const GAP_PX: usize = 4;

/// What is wrong in a [`difference`].
const WRONG: [u8; 3] = [230, 30, 30];

/// RGB of each class in `map`; black where `palette` has no such class.
pub fn colorize(map: &LabelMap, palette: &[[u8; 3]]) -> RgbImage {
    let color = |&id: &u8| palette.get(id as usize).copied().unwrap_or([0; 3]);
    RgbImage {
        width: map.width,
        height: map.height,
        data: map.data.iter().flat_map(color).collect(),
    }
}

/// `image` under the colours of `map`, which cover with `opacity` from 0 to 1.
///
/// # Panics
/// If the sizes differ.
pub fn overlay(image: &RgbImage, map: &LabelMap, palette: &[[u8; 3]], opacity: f32) -> RgbImage {
    let (size, of_map) = ((image.width, image.height), (map.width, map.height));
    assert_eq!(size, of_map, "image and map differ in size");
    let mut mixed = colorize(map, palette);
    for (out, &value) in mixed.data.iter_mut().zip(&image.data) {
        *out = (value as f32 * (1.0 - opacity) + *out as f32 * opacity).round() as u8;
    }
    mixed
}

/// Pictures of one height side by side, `gap` white columns apart.
///
/// # Panics
/// If there is none, or their heights differ.
pub fn panel(pictures: &[&RgbImage], gap: usize) -> RgbImage {
    let height = pictures
        .first()
        .expect("a panel of at least one picture")
        .height;
    for picture in pictures {
        assert_eq!(picture.height, height, "pictures of one height");
    }
    let gaps = gap * (pictures.len() - 1);
    let width = pictures.iter().map(|picture| picture.width).sum::<usize>() + gaps;
    let mut data = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for (i, picture) in pictures.iter().enumerate() {
            if i > 0 {
                data.resize(data.len() + 3 * gap, 255);
            }
            data.extend_from_slice(picture.row(y));
        }
    }
    RgbImage {
        width,
        height,
        data,
    }
}

/// The pictures of equal width that [`panel`] has joined; `None` where `picture` is no panel of `count` of them.
pub fn panel_parts(picture: &RgbImage, count: usize, gap: usize) -> Option<Vec<RgbImage>> {
    let gaps = gap * count.checked_sub(1)?;
    let width = picture.width.checked_sub(gaps)? / count;
    if width == 0 || count * width + gaps != picture.width {
        return None;
    }
    let part = |index: usize| {
        let left = index * (width + gap);
        let rows = (0..picture.height).map(|y| &picture.row(y)[3 * left..3 * (left + width)]);
        RgbImage {
            width,
            height: picture.height,
            data: rows.flatten().copied().collect(),
        }
    };
    Some((0..count).map(part).collect())
}

/// Where `map` is wrong: red, over `image` in grey. Pixels without a label stay grey.
///
/// # Panics
/// If the sizes differ.
pub fn difference(image: &RgbImage, map: &LabelMap, label: &LabelMap) -> RgbImage {
    let size = (image.width, image.height);
    assert_eq!(
        size,
        (map.width, map.height),
        "image and map differ in size"
    );
    assert_eq!(
        size,
        (label.width, label.height),
        "image and label differ in size"
    );
    let pixels = image.data.as_chunks::<3>().0.iter();
    let classes = map.data.iter().zip(&label.data);
    let pixels = pixels.zip(classes).map(|([r, g, b], (class, truth))| {
        // Luma of ITU-R BT.601.
        let grey = 0.299 * f32::from(*r) + 0.587 * f32::from(*g) + 0.114 * f32::from(*b);
        let grey = grey.round() as u8;
        match *truth == IGNORE || class == truth {
            true => [grey; 3],
            false => WRONG,
        }
    });
    RgbImage {
        data: pixels.flatten().collect(),
        ..*image
    }
}

/// Writes `<name>_color.png`, `<name>_overlay.png`, `<name>_trainIds.png` and, beside them, a
/// panel `<name>.png` of picture, prediction and truth, in the colours of `palette`; where the truth is known,
/// `<name>_difference.png`, too.
///
/// # Errors
/// When a file cannot be written, and a picture that is no RGB: [`halfseg_data::PictureFormat::shown`] makes one
/// of it.
pub fn draw_prediction(
    folder: &Path,
    sample: &Sample,
    map: &LabelMap,
    palette: &[[u8; 3]],
) -> Result<(), PredictError> {
    let PictureRef::Rgb(image) = (&sample.image).into() else {
        return Err(PredictError::Channels {
            expected: 3,
            found: PictureRef::from(&sample.image).channels(),
        });
    };
    write_maps(folder, &sample.name, image, map, (palette, 0.5))?;
    let colors = colorize(map, palette);
    let truth = sample.label.as_ref().map(|label| colorize(label, palette));
    if let Some(label) = &sample.label {
        let file = folder.join(format!("{}_difference.png", sample.name));
        write_rgb(&file, &difference(image, map, label))?;
    }
    let parts = [image, &colors].into_iter().chain(&truth);
    let joined = panel(&parts.collect::<Vec<_>>(), GAP_PX);
    Ok(write_rgb(
        &folder.join(format!("{}.png", sample.name)),
        &joined,
    )?)
}

/// Writes `<stem>_color.png`, `<stem>_overlay.png` (the colours cover with an opacity, 0 to 1) and
/// `<stem>_trainIds.png`, making `folder` if need be. `colors` are those of the classes, and the opacity.
///
/// # Errors
/// When a file cannot be written.
pub fn write_maps(
    folder: &Path,
    stem: &str,
    image: &RgbImage,
    map: &LabelMap,
    colors: (&[[u8; 3]], f32),
) -> Result<(), PredictError> {
    let (palette, opacity) = colors;
    fs::create_dir_all(folder).map_err(|source| PredictError::Write {
        path: folder.to_owned(),
        source,
    })?;
    let file = |suffix: &str| folder.join(format!("{stem}_{suffix}.png"));
    write_rgb(&file("color"), &colorize(map, palette))?;
    write_rgb(&file("overlay"), &overlay(image, map, palette, opacity))?;
    Ok(write_label(&file("trainIds"), map)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const C: usize>(data: &[u8]) -> halfseg_data::Plane<C> {
        halfseg_data::Plane {
            width: data.len() / C,
            height: 1,
            data: data.to_vec(),
        }
    }

    #[test]
    fn overlays_mix_and_panels_join() {
        let palette = [[0, 0, 0], [200, 100, 0]];
        assert_eq!(
            colorize(&row(&[1, 255]), &palette),
            row(&[200, 100, 0, 0, 0, 0])
        );
        assert_eq!(
            overlay(&row(&[100, 100, 100]), &row(&[1]), &palette, 0.5),
            row(&[150, 100, 50])
        );
        let joined = panel(&[&row(&[1, 2, 3]), &row(&[4, 5, 6])], 1);
        assert_eq!(joined, row(&[1, 2, 3, 255, 255, 255, 4, 5, 6]));
        let parts = panel_parts(&joined, 2, 1).unwrap();
        assert_eq!(parts, [row(&[1, 2, 3]), row(&[4, 5, 6])]);
        assert_eq!(panel_parts(&joined, 3, 1), None);
        assert_eq!(panel_parts(&joined, 9, 1), None);
    }

    #[test]
    fn what_is_wrong_is_red_and_what_has_no_label_is_not() {
        let image = row(&[10, 10, 10, 255, 0, 0, 7, 7, 7]);
        let found = difference(&image, &row(&[1, 2, 0]), &row(&[0, 2, IGNORE]));
        assert_eq!(found, row(&[230, 30, 30, 76, 76, 76, 7, 7, 7]));
    }
}
