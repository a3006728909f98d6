//! Curves as inline SVG, which takes its colours from the page: light, dark and on paper.

use crate::html::{escaped, note};

/// Width and height of a chart, in units of which a letter has 12.
const SIZE: (f64, f64) = (420.0, 240.0);
/// What is left of them for marks: left, right, top, bottom.
const MARGINS: [f64; 4] = [54.0, 10.0, 10.0, 34.0];
/// Points beyond it are not drawn.
const LARGEST: f64 = 1e30;
/// Colours that the page has for series.
pub const COLORS: usize = 8;

/// One curve.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    /// Which of the page's colours.
    pub color: usize,
    /// Whether it is thin, of what another smoothes.
    pub faint: bool,
    /// Whether each point is marked.
    pub marked: bool,
    pub points: Vec<(f64, f64)>,
}

/// Curves over the iterations.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub unit: String,
    /// Whether the values are powers of two.
    pub powers: bool,
    /// Whether the axis begins at 0.
    pub from_zero: bool,
    pub lines: Vec<Line>,
    /// Iterations that are marked at the lower edge, by colour.
    pub marks: Vec<(usize, Vec<f64>)>,
}

/// Values between `low` and `high` that are written beside an axis, at most `most` or so.
fn ticks(low: f64, high: f64, most: f64) -> Vec<f64> {
    let rough = (high - low) / most;
    let size = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps
        .iter()
        .map(|step| step * size)
        .find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let first = (low / step).ceil();
    let count = ((high - low) / step).floor() as usize + 1;
    let values = (0..count.min(20)).map(|i| (first + i as f64) * step);
    values
        .filter(|value| *value <= high + step * 1e-9)
        .collect()
}

/// A value beside an axis.
fn label(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        0.0 => "0".to_owned(),
        m if m >= 1e9 => format!("{:.1e}", value),
        m if m >= 1e6 => trimmed(value / 1e6, 2) + "M",
        m if m >= 1e4 => trimmed(value / 1e3, 2) + "k",
        m if m >= 1e-3 => trimmed(value, 4),
        _ => format!("{value:.0e}"),
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// From values to places along an axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

fn bounds(values: impl Iterator<Item = f64>, from_zero: bool) -> Option<(f64, f64)> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values {
        (low, high) = (low.min(value), high.max(value));
    }
    if low > high {
        return None;
    }
    if from_zero && low >= 0.0 {
        low = 0.0;
    }
    // Marks between two numbers that are nearly the same are the same.
    let least = (low.abs().max(high.abs()) * 1e-6).max(1e-12);
    match high - low > least {
        true => Some((low, high)),
        false => Some((low - least.max(0.5), high + least.max(0.5))),
    }
}

impl Chart {
    /// The chart with its title and legend; a note where there is nothing to draw.
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        let mut out = format!("<figure class=\"chart\"><figcaption>{title}</figcaption>\n");
        match self.svg() {
            Some(svg) => {
                out += &svg;
                out += &self.legend();
            }
            None => out += &note(format!("No values of {} were logged.", self.title)),
        }
        out + "</figure>\n"
    }

    fn value(&self, y: f64) -> f64 {
        if self.powers { y.log2() } else { y }
    }

    fn svg(&self) -> Option<String> {
        let drawn = |&&(x, y): &&(f64, f64)| x.abs() <= LARGEST && self.value(y).abs() <= LARGEST;
        let points = || {
            self.lines
                .iter()
                .flat_map(|line| line.points.iter().filter(drawn))
        };
        let marks = self
            .marks
            .iter()
            .flat_map(|(_, marks)| marks.iter().copied());
        let (x0, x1) = bounds(points().map(|point| point.0).chain(marks), false)?;
        let (mut y0, mut y1) = bounds(points().map(|point| self.value(point.1)), self.from_zero)?;
        if self.powers {
            (y0, y1) = (y0.floor() - 0.5, y1.ceil() + 0.5);
        }
        let [left, right, top, bottom] = MARGINS;
        let (width, height) = SIZE;
        let (xs, ys) = (
            Axis {
                low: x0,
                high: x1,
                from: left,
                to: width - right,
            },
            Axis {
                low: y0,
                high: y1,
                from: height - bottom,
                to: top,
            },
        );
        let mut out = format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n",
            escaped(format!("{} over the iterations", self.title))
        );
        let y_ticks = match self.powers {
            true => {
                let step = ((y1 - y0) / 6.0).ceil().max(1.0);
                let count = ((y1 - y0.ceil()) / step) as usize + 1;
                (0..count).map(|i| y0.ceil() + i as f64 * step).collect()
            }
            false => ticks(y0, y1, 5.0),
        };
        for value in y_ticks {
            let y = ys.place(value);
            let text = if self.powers {
                label(value.exp2())
            } else {
                label(value)
            };
            out += &format!(
                "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"end\" x=\"{}\" y=\"{:.1}\">{text}</text>\n",
                width - right,
                left - 6.0,
                y + 4.0
            );
        }
        for value in ticks(x0, x1, 5.0) {
            let x = xs.place(value);
            // One at the edge would leave the picture.
            let anchor = if x > width - 26.0 { "end" } else { "mid" };
            out += &format!(
                "<text class=\"{anchor}\" x=\"{:.1}\" y=\"{}\">{}</text>\n",
                if anchor == "end" { width - 2.0 } else { x },
                height - bottom + 16.0,
                label(value)
            );
        }
        out += &format!(
            "<text class=\"mid dim\" x=\"{:.1}\" y=\"{}\">iteration</text>\n\
             <text class=\"dim\" x=\"{left}\" y=\"{}\">{}</text>\n",
            (left + width - right) / 2.0,
            height - 4.0,
            height - 4.0,
            escaped(&self.unit)
        );
        for (color, marks) in &self.marks {
            let mut path = String::new();
            let (foot, head) = (height - bottom, height - bottom - 9.0);
            let mut last = f64::NEG_INFINITY;
            for x in marks.iter().map(|x| xs.place(*x)) {
                // Marks at one place are one.
                if x - last >= 0.25 {
                    path += &format!("M{x:.1} {foot}V{head}");
                    last = x;
                }
            }
            out += &format!("<path class=\"mark s{}\" d=\"{path}\"/>\n", color % COLORS);
        }
        for line in &self.lines {
            let color = line.color % COLORS;
            let faint = if line.faint { " faint" } else { "" };
            let places = line.points.iter().filter(drawn);
            let places: Vec<(f64, f64)> = places
                .map(|(x, y)| (xs.place(*x), ys.place(self.value(*y))))
                .collect();
            let text: Vec<String> = places
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            out += &format!(
                "<polyline class=\"line s{color}{faint}\" points=\"{}\"/>\n",
                text.join(" ")
            );
            if line.marked || places.len() == 1 {
                for (x, y) in &places {
                    out += &format!(
                        "<circle class=\"dot s{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>\n"
                    );
                }
            }
        }
        Some(out + "</svg>\n")
    }

    fn legend(&self) -> String {
        let named: Vec<_> = self
            .lines
            .iter()
            .filter(|line| !line.name.is_empty())
            .collect();
        if named.is_empty() {
            return String::new();
        }
        let mut out = String::from("<ul class=\"legend\">");
        for line in named {
            let faint = if line.faint { " faint" } else { "" };
            out += &format!(
                "<li><svg class=\"key\" viewBox=\"0 0 18 6\" aria-hidden=\"true\"><line class=\"line s{}{faint}\" \
                 x1=\"0\" x2=\"18\" y1=\"3\" y2=\"3\"/></svg>{}</li>",
                line.color % COLORS,
                escaped(&line.name)
            );
        }
        out + "</ul>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_beside_axes_are_round() {
        assert_eq!(
            ticks(0.0, 1.0, 5.0),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(ticks(1.0, 500.0, 5.0), [100.0, 200.0, 300.0, 400.0, 500.0]);
        assert_eq!(
            [0.2, 20000.0, 1.5e6, 0.00005, 512.0, 0.6000000000000001].map(label),
            ["0.2", "20k", "1.5M", "5e-5", "512", "0.6"]
        );
    }

    #[test]
    fn no_numbers_keep_curves_from_their_end() {
        for points in [
            vec![],
            vec![(1.0, f64::NAN)],
            vec![(9e18, 1e29), (9e18 + 2048.0, 1e29)],
            vec![(1.0, 1e-320), (2.0, 1e-300)],
            vec![(1.0, f64::MAX), (2.0, -f64::MAX), (3.0, 1.0)],
            vec![(-1e30, 0.0), (1e30, 0.0)],
        ] {
            for powers in [false, true] {
                let line = Line {
                    name: "a".into(),
                    color: 9,
                    faint: false,
                    marked: true,
                    points: points.clone(),
                };
                let chart = Chart {
                    title: "<loss>".into(),
                    unit: "x".into(),
                    powers,
                    from_zero: true,
                    lines: vec![line],
                    marks: vec![(0, vec![3.0, 3.0])],
                };
                let html = chart.html();
                assert!(
                    html.contains("&lt;loss&gt;") && !html.contains("NaN"),
                    "{html}"
                );
                assert!(html.len() < 20_000);
            }
        }
    }
}
