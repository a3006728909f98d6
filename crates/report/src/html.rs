//! Text and numbers in a page.

use std::fmt::Display;

/// `text` as it appears in a page, wherever it comes from: markup in it is shown, and what no page may have becomes
/// a replacement character.
pub fn escaped(text: impl Display) -> String {
    let mut out = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A share from 0 to 1 in percent, or a dash.
pub fn percent(share: Option<f64>) -> String {
    number(share.map(|share| 100.0 * share), 2)
}

/// A number with so many digits behind the point, or a dash.
pub fn number(value: Option<f64>, digits: usize) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) => format!("{value:.digits$}"),
        None => "–".to_owned(),
    }
}

/// Digits in groups of three.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A time for people.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "–".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", 1000.0 * s),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A cell of a table: `Text` stands left, `Number` right.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Escaped already.
    Html(String),
    /// From anywhere.
    Text(String),
    /// Digits.
    Number(String),
    /// As those, of a row or column that stands out.
    Strong(String),
}

/// A table with its first column as the heads of its rows; `name` tells it apart for whoever cannot see it.
pub fn table(name: &str, heads: &[String], rows: &[Vec<Cell>]) -> String {
    table_of("", name, heads, rows)
}

/// A [`table`] of words, which stand left.
pub fn words(name: &str, heads: &[String], rows: &[Vec<Cell>]) -> String {
    table_of(" class=\"words\"", name, heads, rows)
}

fn table_of(class: &str, name: &str, heads: &[String], rows: &[Vec<Cell>]) -> String {
    let mut out = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"{}\"><table{class}>\n<thead><tr>",
        escaped(name)
    );
    for head in heads {
        out += &format!("<th scope=\"col\">{}</th>", escaped(head));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for (place, cell) in row.iter().enumerate() {
            let (class, text) = match cell {
                Cell::Html(html) => ("", html.clone()),
                Cell::Text(text) => ("", escaped(text)),
                Cell::Number(text) => (" class=\"n\"", escaped(text)),
                Cell::Strong(text) => (" class=\"n strong\"", escaped(text)),
            };
            out += &match place {
                0 => format!("<th scope=\"row\">{text}</th>"),
                _ => format!("<td{class}>{text}</td>"),
            };
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

/// A note about something that is missing or out of the ordinary.
pub fn note(text: impl Display) -> String {
    format!("<p class=\"note\">{}</p>\n", escaped(text))
}

/// The colour of a class and its name.
pub fn class_name([r, g, b]: [u8; 3], name: &str) -> String {
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 1 1\" aria-hidden=\"true\"><rect width=\"1\" height=\"1\" \
         fill=\"rgb({r},{g},{b})\"/></svg>{}",
        escaped(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_markup() {
        let check = |text: &str, expected: &str| assert_eq!(escaped(text), expected);
        check("<b a=\"1\">&'", "&lt;b a=&quot;1&quot;&gt;&amp;&#39;");
        check("a\u{1b}[2J\u{0}\nb", "a\u{fffd}[2J\u{fffd}\nb");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(12), "12");
        assert_eq!(percent(Some(0.12345)), "12.35");
        assert_eq!(
            (number(None, 1), number(Some(f64::NAN), 1)),
            ("–".into(), "–".into())
        );
        let times = [0.05, 5.0, 600.0, 9000.0].map(duration);
        assert_eq!(times, ["50 ms", "5.0 s", "10 min", "2.5 h"]);
    }
}
