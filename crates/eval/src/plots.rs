//! Curves and matrices as SVG.

use std::io::Write;
use std::path::Path;

use plotters::prelude::*;

use crate::{ConfusionMatrix, EvalError};

/// Points beyond it are not drawn, as those that are not finite.
const LARGEST: f64 = 1e30;

/// Width and height of a chart, in pixels.
const CHART: (u32, u32) = (800, 450);

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

fn save(path: &Path, svg: &str) -> Result<(), EvalError> {
    halfseg_files::write_atomically(path, |out| out.write_all(svg.as_bytes()))
        .map_err(|e| EvalError::io(path, e))
}

/// Draws `series` over one another, with a legend.
///
/// # Errors
/// If the file cannot be written.
pub fn curves_svg(
    path: &Path,
    title: &str,
    labels: (&str, &str),
    series: &[Series],
) -> Result<(), EvalError> {
    let mut svg = String::new();
    draw_curves(&mut svg, title, labels, series).map_err(|e| EvalError::Plot {
        path: path.to_owned(),
        found: e.to_string(),
    })?;
    save(path, &svg)
}

/// What one of several charts shows.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below its x axis.
    pub x_label: String,
    /// Beside its y axis.
    pub y_label: String,
    /// Drawn over one another.
    pub series: Vec<Series>,
}

/// Draws charts below one another, each as wide as [`curves_svg`]'s.
///
/// # Errors
/// If the file cannot be written.
pub fn charts_svg(path: &Path, charts: &[Chart]) -> Result<(), EvalError> {
    let draw = |svg: &mut String| -> Result<(), Box<dyn std::error::Error>> {
        let (width, height) = CHART;
        let root = SVGBackend::with_string(svg, (width, height * charts.len().max(1) as u32));
        let root = root.into_drawing_area();
        root.fill(&WHITE)?;
        let areas = root.split_evenly((charts.len().max(1), 1));
        for (area, chart) in areas.iter().zip(charts) {
            let labels = (chart.x_label.as_str(), chart.y_label.as_str());
            draw_chart(area, &chart.title, labels, &chart.series)?;
        }
        root.present()?;
        Ok(())
    };
    let mut svg = String::new();
    draw(&mut svg).map_err(|e| EvalError::Plot {
        path: path.to_owned(),
        found: e.to_string(),
    })?;
    save(path, &svg)
}

fn draw_curves(
    svg: &mut String,
    title: &str,
    labels: (&str, &str),
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, CHART).into_drawing_area();
    root.fill(&WHITE)?;
    draw_chart(&root, title, labels, series)?;
    root.present()?;
    Ok(())
}

fn draw_chart(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    (x_label, y_label): (&str, &str),
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let drawn = |(x, y): &(f64, f64)| x.abs() <= LARGEST && y.abs() <= LARGEST;
    let points = || {
        let points = series.iter().flat_map(|s| &s.points);
        points.copied().filter(drawn)
    };
    let bounds = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Marks between two numbers that are nearly the same are the same.
        let least = low.abs().max(high.abs()) * 1e-6;
        match high - low {
            width if width > least => (low, high),
            width if width >= 0.0 => (low - least.max(0.5), high + least.max(0.5)),
            _ => (0.0, 1.0),
        }
    };
    let (x0, x1) = bounds(points().map(|p| p.0).collect());
    let (y0, y1) = bounds(points().map(|p| p.1).chain([0.0]).collect());
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d(x0..x1, y0..y1 * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(x_label)
        .y_desc(y_label)
        .x_label_formatter(&|x| x.to_string())
        .label_style(("sans-serif", 13))
        .draw()?;
    for (i, one) in series.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        let points = one.points.iter().copied().filter(drawn);
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(&one.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

/// Draws the matrix with a row for each true class that occurs, in percent of its pixels.
///
/// # Errors
/// If the file cannot be written.
pub fn confusion_svg(
    path: &Path,
    matrix: &ConfusionMatrix,
    names: &[&str],
) -> Result<(), EvalError> {
    let mut svg = String::new();
    draw_confusion(&mut svg, matrix, names).map_err(|e| EvalError::Plot {
        path: path.to_owned(),
        found: e.to_string(),
    })?;
    save(path, &svg)
}

fn draw_confusion(
    svg: &mut String,
    matrix: &ConfusionMatrix,
    names: &[&str],
) -> Result<(), Box<dyn std::error::Error>> {
    let n = matrix.classes();
    let total = |truth: usize| (0..n).map(|p| matrix.count(truth, p)).sum::<u64>();
    let shown: Vec<usize> = (0..n)
        .filter(|&k| total(k) > 0 || (0..n).any(|t| matrix.count(t, k) > 0))
        .collect();
    let (cell, left, top) = (44, 130, 130);
    let side = cell * shown.len() as i32;
    let size = ((left + side + 20) as u32, (top + side + 20) as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let font = ("sans-serif", 13).into_font();
    let right = TextStyle::from(font.clone()).pos(Pos::new(HPos::Right, VPos::Center));
    let upright = TextStyle::from(font.clone().transform(FontTransform::Rotate270))
        .pos(Pos::new(HPos::Left, VPos::Center));
    let center =
        TextStyle::from(("sans-serif", 12).into_font()).pos(Pos::new(HPos::Center, VPos::Center));
    root.draw(&Text::new(
        "true class down, predicted class across, percent of true pixels",
        (8, 16),
        font,
    ))?;
    for (row, &truth) in shown.iter().enumerate() {
        let y = top + cell * row as i32;
        let name = |k: usize| {
            names
                .get(k)
                .map_or(format!("class_{k}"), ToString::to_string)
        };
        root.draw(&Text::new(
            name(truth),
            (left - 8, y + cell / 2),
            right.clone(),
        ))?;
        root.draw(&Text::new(
            name(truth),
            (left + cell * row as i32 + cell / 2, top - 8),
            upright.clone(),
        ))?;
        for (column, &predicted) in shown.iter().enumerate() {
            let x = left + cell * column as i32;
            let share = matrix.count(truth, predicted) as f64 / total(truth).max(1) as f64;
            let fade = |from: f64, to: f64| (from + (to - from) * share.sqrt()) as u8;
            let color = RGBColor(fade(250.0, 20.0), fade(250.0, 70.0), fade(250.0, 130.0));
            root.draw(&Rectangle::new(
                [(x, y), (x + cell - 1, y + cell - 1)],
                color.filled(),
            ))?;
            if share >= 0.005 {
                let ink = if share > 0.4 { WHITE } else { BLACK };
                let text = format!("{:.0}", 100.0 * share);
                root.draw(&Text::new(
                    text,
                    (x + cell / 2, y + cell / 2),
                    center.clone().color(&ink),
                ))?;
            }
        }
    }
    root.present()?;
    drop(root);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_and_matrices_become_svg_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        let points = vec![(0.0, 3.0), (1.0, f64::NAN), (2.0, 1.0)];
        let series = [Series {
            name: "f16 run".into(),
            points,
        }];
        curves_svg(&path, "Loss", ("iteration", "loss"), &series).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("f16 run") && svg.contains("iteration"));

        let mut matrix = ConfusionMatrix::new(3);
        matrix.update(&[0, 1, 1], &[0, 1, 0], 255).unwrap();
        let path = folder.path().join("confusion.svg");
        confusion_svg(&path, &matrix, &["road", "car", "absent"]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("road") && svg.contains("car") && !svg.contains("absent"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn no_numbers_keep_curves_from_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        for points in [
            vec![],
            vec![(9e18, 1.0)],
            vec![(9e18, 1e29), (9e18 + 2048.0, 1e29)],
            vec![(1.0, f64::MAX), (2.0, -f64::MAX), (3.0, 1.0)],
            vec![(1.0, 1e-320), (2.0, 1e-300)],
            vec![(-1e30, 0.0), (1e30, 0.0)],
        ] {
            let name = "loss".into();
            curves_svg(&path, "Loss", ("x", "y"), &[Series { name, points }]).unwrap();
        }
    }
}
