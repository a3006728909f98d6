//! Calibration as inline SVG.

use halfseg_eval::Calibration;

use crate::html::{Cell, grouped, number, percent, table};

/// Side of the diagram and what is left of it for marks, in units of which a letter has 12.
const SIDE: f64 = 240.0;
const LEFT: f64 = 40.0;
const FOOT: f64 = 34.0;
/// Height of the strip that shows how many pixels a bin has.
const STRIP: f64 = 40.0;

/// The diagram, its numbers and the expected calibration error.
pub fn html(calibration: &Calibration) -> String {
    let total = calibration.total();
    let (width, height) = (LEFT + SIDE + 10.0, 10.0 + SIDE + FOOT + STRIP);
    let x = |share: f64| LEFT + share * SIDE;
    let y = |share: f64| 10.0 + (1.0 - share) * SIDE;
    let mut out = format!(
        "<figure class=\"chart narrow\"><figcaption>Accuracy by probability</figcaption>\n\
         <svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Share of right pixels by the probability of the \
         predicted class\">\n"
    );
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        out += &format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
             <text class=\"end\" x=\"{2}\" y=\"{3:.1}\">{tick}</text>\
             <text class=\"mid\" x=\"{4:.1}\" y=\"{5:.1}\">{tick}</text>\n",
            LEFT + SIDE,
            y(tick),
            LEFT - 6.0,
            y(tick) + 4.0,
            x(tick),
            10.0 + SIDE + STRIP + 16.0
        );
    }
    let bin_width = SIDE / Calibration::BINS as f64;
    let most = calibration.bins().iter().map(|bin| bin.pixels).max();
    let most = most.unwrap_or(0).max(1) as f64;
    for (place, bin) in calibration.bins().iter().enumerate() {
        let left = LEFT + place as f64 * bin_width;
        if let Some(accuracy) = bin.accuracy() {
            out += &format!(
                "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\n",
                left + 0.5,
                y(accuracy),
                bin_width - 1.0,
                y(0.0) - y(accuracy)
            );
        }
        let share = bin.pixels as f64 / most * (STRIP - 6.0);
        out += &format!(
            "<rect class=\"count\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{share:.1}\"/>\n",
            left + 0.5,
            10.0 + SIDE + 3.0,
            bin_width - 1.0
        );
    }
    out += &format!(
        "<line class=\"ideal\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\n",
        x(0.0),
        y(0.0),
        x(1.0),
        y(1.0)
    );
    let points: Vec<String> = calibration
        .bins()
        .iter()
        .filter_map(|bin| Some((bin.mean_confidence()?, bin.accuracy()?)))
        .map(|(confidence, accuracy)| format!("{:.1},{:.1}", x(confidence), y(accuracy)))
        .collect();
    out += &format!(
        "<polyline class=\"line s0\" points=\"{}\"/>\n\
         <text class=\"mid dim\" x=\"{:.1}\" y=\"{:.1}\">probability; below: pixels</text>\n\
         </svg></figure>\n",
        points.join(" "),
        LEFT + SIDE / 2.0,
        height - 4.0
    );
    out += &format!(
        "<p>Expected calibration error: <strong>{} %</strong> over {} pixels in {} bins of equal width. The network is \
         right in {} % of them and gives the class that it predicts {} % on average.</p>\n",
        percent(calibration.expected_error()),
        grouped(total.pixels),
        Calibration::BINS,
        percent(total.accuracy()),
        percent(total.mean_confidence())
    );
    let heads = [
        "probability",
        "pixels",
        "mean probability, %",
        "accuracy, %",
    ]
    .map(str::to_owned);
    let bins = calibration.bins().iter().enumerate();
    let rows: Vec<_> = bins
        .filter(|(_, bin)| bin.pixels > 0)
        .map(|(place, bin)| {
            let end = |place: usize| number(Some(place as f64 / Calibration::BINS as f64), 3);
            vec![
                Cell::Text(format!("{} to {}", end(place), end(place + 1))),
                Cell::Number(grouped(bin.pixels)),
                Cell::Number(percent(bin.mean_confidence())),
                Cell::Number(percent(bin.accuracy())),
            ]
        })
        .collect();
    let table = table("Accuracy by probability", &heads, &rows);
    out + &format!("<details><summary>The bins in numbers</summary>\n{table}</details>\n")
}
