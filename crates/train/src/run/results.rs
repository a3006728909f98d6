//! Scores, plots and pictures.

use std::fs;
use std::path::Path;

use halfseg_data::{PALETTE, Sample};
use halfseg_eval::{
    ClassScore, ConfusionMatrix, Scores, Series, colorize, confusion_svg, curves_svg, overlay,
    panel, write_gray_png, write_rgb_png,
};
use serde_json::{Map, Value, json};

use crate::{Error, Log, class_names};

/// Iterations that a point of the smoothed loss averages at least.
const SMOOTH: usize = 20;
/// White columns between pictures of a panel.
const GAP_PX: usize = 4;

/// Scores as JSON: `miou`, `macc`, `aacc`, the mIoU of the best constant prediction, and each
/// class's numbers by name; shares from 0 to 1, `null` for an absent class.
pub fn scores_json(scores: &Scores) -> Value {
    let classes = by_class(scores, |class| {
        Some(json!({
            "iou": class.iou,
            "accuracy": class.accuracy,
            "precision": class.precision,
            "dice": class.dice,
            "pixels": class.pixels,
        }))
    });
    json!({
        "miou": scores.mean_iou,
        "macc": scores.mean_accuracy,
        "aacc": scores.pixel_accuracy,
        "constant_miou": scores.constant_mean_iou,
        "classes": classes,
    })
}

/// One value per class by its name; classes beyond the Cityscapes table are `class_N`.
pub(crate) fn by_class<T: Into<Value>>(
    scores: &Scores,
    value: impl Fn(&ClassScore) -> Option<T>,
) -> Value {
    let names = class_names();
    let name = |id: usize| {
        names
            .get(id)
            .map_or(format!("class_{id}"), ToString::to_string)
    };
    let entries = scores.classes.iter().enumerate();
    let map: Map<_, _> = entries
        .map(|(id, class)| (name(id), value(class).map_or(Value::Null, Into::into)))
        .collect();
    map.into()
}

/// Draws the losses of the log at `log`, and their running mean, as SVG.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn draw_curves(log: &Path, svg: &Path) -> Result<(), Error> {
    let lines = Log::read(log, "train")?;
    let points = |key: &str| -> Vec<(f64, f64)> {
        let point = |line: &Value| Some((line["iteration"].as_f64()?, line[key].as_f64()?));
        lines.iter().filter_map(point).collect()
    };
    let loss = points("loss");
    let window = SMOOTH.max(loss.len() / 50);
    let mean = |part: &[(f64, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    let smooth = (0..loss.len())
        .map(|end| {
            (
                loss[end].0,
                mean(&loss[(end + 1).saturating_sub(window)..=end]),
            )
        })
        .collect();
    let series = [
        Series {
            name: "loss".into(),
            points: loss,
        },
        Series {
            name: format!("mean over {window}"),
            points: smooth,
        },
        Series {
            name: "auxiliary".into(),
            points: points("aux_loss"),
        },
    ];
    Ok(curves_svg(
        svg,
        "Training loss",
        ("iteration", "loss"),
        &series,
    )?)
}

/// Draws the confusion matrix as SVG.
///
/// # Errors
///
/// When the file cannot be written.
pub fn draw_confusion(matrix: &ConfusionMatrix, svg: &Path) -> Result<(), Error> {
    Ok(confusion_svg(svg, matrix, &class_names())?)
}

/// Writes `<name>_color.png`, `<name>_overlay.png`, `<name>_trainIds.png` and, beside them, a
/// panel `<name>.png` of picture, prediction and truth.
///
/// # Errors
///
/// When a file cannot be written.
pub fn draw_prediction(folder: &Path, sample: &Sample, map: &[u8]) -> Result<(), Error> {
    write_maps(
        folder,
        &sample.name,
        &sample.image.data,
        map,
        sample.image.width,
        0.5,
    )?;
    let (width, height) = (sample.image.width, sample.image.height);
    let colors = colorize(map, &PALETTE);
    let truth = sample
        .label
        .as_ref()
        .map(|label| colorize(&label.data, &PALETTE));
    let mut parts = vec![(&sample.image.data[..], width), (&colors[..], width)];
    parts.extend(truth.as_deref().map(|truth| (truth, width)));
    let (rgb, total) = panel(&parts, height, GAP_PX);
    Ok(write_rgb_png(
        &folder.join(format!("{}.png", sample.name)),
        &rgb,
        (total, height),
    )?)
}

/// Writes `<stem>_color.png`, `<stem>_overlay.png` (the colours cover with `opacity`, 0 to 1) and
/// `<stem>_trainIds.png`, making `folder` if need be.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write_maps(
    folder: &Path,
    stem: &str,
    image: &[u8],
    map: &[u8],
    width: usize,
    opacity: f32,
) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.to_owned(),
        source,
    })?;
    let size = (width, map.len() / width);
    let file = |suffix: &str| folder.join(format!("{stem}_{suffix}.png"));
    write_rgb_png(&file("color"), &colorize(map, &PALETTE), size)?;
    write_rgb_png(
        &file("overlay"),
        &overlay(image, map, &PALETTE, opacity),
        size,
    )?;
    Ok(write_gray_png(&file("trainIds"), map, size)?)
}

/// At most `count` places spread over `0..len`.
pub(crate) fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |i| i * len / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_spread_over_the_split() {
        assert_eq!(spread(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(spread(2, 4).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(0, 4).count(), 0);
    }

    #[test]
    fn scores_name_their_classes() {
        let mut matrix = ConfusionMatrix::new(19);
        matrix.update(&[0, 13, 13], &[0, 13, 0], 255).unwrap();
        let json = scores_json(&matrix.scores());
        assert_eq!(json["classes"]["car"]["iou"], 0.5);
        assert_eq!(json["classes"]["train"]["iou"], Value::Null);
        assert_eq!(json["miou"], 0.5);
    }
}
