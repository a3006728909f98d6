//! Plots and pictures.

use std::fs;
use std::path::Path;

use halfseg_data::{LabelMap, PALETTE, RgbImage, Sample, write_label, write_rgb};
use halfseg_eval::{Series, colorize, curves_svg, overlay, panel};
use serde_json::Value;

use crate::{Error, Log};

/// Iterations that a point of the smoothed loss averages at least.
const SMOOTH: usize = 20;
/// White columns between pictures of a panel.
const GAP_PX: usize = 4;

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

/// Writes `<name>_color.png`, `<name>_overlay.png`, `<name>_trainIds.png` and, beside them, a
/// panel `<name>.png` of picture, prediction and truth.
///
/// # Errors
///
/// When a file cannot be written.
pub fn draw_prediction(folder: &Path, sample: &Sample, map: &LabelMap) -> Result<(), Error> {
    write_maps(folder, &sample.name, &sample.image, map, 0.5)?;
    let colors = colorize(map, &PALETTE);
    let truth = sample.label.as_ref().map(|label| colorize(label, &PALETTE));
    let parts = [&sample.image, &colors].into_iter().chain(&truth);
    let joined = panel(&parts.collect::<Vec<_>>(), GAP_PX);
    Ok(write_rgb(
        &folder.join(format!("{}.png", sample.name)),
        &joined,
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
    image: &RgbImage,
    map: &LabelMap,
    opacity: f32,
) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.to_owned(),
        source,
    })?;
    let file = |suffix: &str| folder.join(format!("{stem}_{suffix}.png"));
    write_rgb(&file("color"), &colorize(map, &PALETTE))?;
    write_rgb(&file("overlay"), &overlay(image, map, &PALETTE, opacity))?;
    Ok(write_label(&file("trainIds"), map)?)
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
}
