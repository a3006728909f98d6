//! What was found, as a page.

use halfseg_data::{Report, Severity};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}\
td.n{text-align:right}.error{color:#b00020;font-weight:bold}.warning{color:#a66300}.note{color:#555}\
i{display:inline-block;width:1em;height:1em;margin-right:.5em;border:1px solid #888}";

/// `text` as it appears in a page.
pub fn escaped(text: &str) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    text.replace('"', "&quot;")
}

/// A page that needs nothing else.
pub fn page(data: &str, report: &Report) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escaped(data)
    );
    out += match report.findings.is_empty() {
        true => "<p>Nothing was found to be wrong.</p>\n",
        false => "<table><tr><th>severity<th>kind<th>split<th>count<th>what\n",
    };
    for finding in &report.findings {
        let class = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            _ => "note",
        };
        out += &format!(
            "<tr><td class=\"{class}\">{class}<td>{}<td>{}<td class=\"n\">{}<td>{}\n",
            finding.kind,
            escaped(finding.split.as_deref().unwrap_or("")),
            finding.count,
            escaped(&finding.message)
        );
    }
    if !report.findings.is_empty() {
        out += "</table>\n";
    }
    out += "<h2>Classes</h2>\n<table><tr><th>class";
    for split in &report.splits {
        out += &format!(
            "<th>{0}, % of pixels<th>{0}, pictures",
            escaped(&split.name)
        );
    }
    out += "<th>weight\n";
    let classes = report
        .classes
        .names()
        .into_iter()
        .zip(report.classes.colors());
    for (class, (name, [r, g, b])) in classes.enumerate() {
        out += &format!(
            "<tr><td><i style=\"background:rgb({r},{g},{b})\"></i>{}",
            escaped(name)
        );
        for split in &report.splits {
            let all: u64 = split.pixels.iter().sum();
            let share = 100.0 * split.pixels[class] as f64 / all.max(1) as f64;
            out += &format!(
                "<td class=\"n\">{share:.3}<td class=\"n\">{}",
                split.pictures_with[class]
            );
        }
        let weight = report.weights.get(class).copied().flatten();
        out += &format!(
            "<td class=\"n\">{}\n",
            weight.map_or("-".into(), |weight| format!("{weight:.3}"))
        );
    }
    out += "</table>\n<h2>Splits</h2>\n<table><tr><th>split<th>pictures<th>read<th>sizes\n";
    for split in &report.splits {
        let sizes = split.sizes.map_or(String::new(), |[a, b]| {
            format!("{}x{} to {}x{}", a.0, a.1, b.0, b.1)
        });
        out += &format!(
            "<tr><td>{}<td class=\"n\">{}<td class=\"n\">{}<td>{sizes}\n",
            escaped(&split.name),
            split.pictures,
            split.read
        );
    }
    out + "</table>\n</html>\n"
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn names_are_no_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
