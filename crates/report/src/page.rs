//! The page around the sections.

use halfseg_train::REPORT_MARK;

use crate::html::escaped;
use crate::run::Run;
use crate::sections::{
    calibration, classes, configuration, confusion, curves, overview, pictures, precision, slices,
};

const STYLE: &str = include_str!("style.css");

/// The page of `runs`, of which there is at least one.
pub fn page(runs: &[Run]) -> String {
    let names: Vec<_> = runs.iter().map(|run| escaped(&run.name)).collect();
    let title = match runs {
        [one] => format!("Training run {}", one.name),
        all => format!("{} training runs", all.len()),
    };
    // As long as a tab shows.
    let short = escaped(title.chars().take(60).collect::<String>());
    let title = escaped(title);
    // Nothing is loaded from anywhere, whatever a name in the page may be taken for.
    let policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n{REPORT_MARK} {}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <title>{short}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        env!("CARGO_PKG_VERSION")
    );
    if runs.len() > 1 {
        out += &format!("<p class=\"dim\">{}</p>\n", names.join(" · "));
    }
    let mut body = String::new();
    let mut links = Vec::new();
    let mut section = |body: &mut String, id: String, title: String, html: String| {
        if html.is_empty() {
            return;
        }
        *body += &format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{html}</section>\n");
        links.push(format!("<li><a href=\"#{id}\">{title}</a></li>"));
    };
    section(
        &mut body,
        "overview".into(),
        "Overview".into(),
        overview::html(runs),
    );
    section(
        &mut body,
        "curves".into(),
        "Curves".into(),
        curves::html(runs),
    );
    section(
        &mut body,
        "classes".into(),
        "Classes".into(),
        classes::html(runs),
    );
    section(
        &mut body,
        "configuration".into(),
        "Configuration".into(),
        configuration::html(runs),
    );
    for (place, run) in runs.iter().enumerate() {
        // Of one run, its name is in the title.
        let of = match runs.len() {
            1 => String::new(),
            _ => format!(": {}", names[place]),
        };
        for (id, title, html) in [
            ("confusion", "Confusion", confusion::html(run)),
            ("calibration", "Calibration", calibration::html(run)),
            ("pictures", "Pictures", pictures::html(run, runs.len())),
            ("slices", "Pictures by class", slices::html(run)),
            ("precision", "Precision audit", precision::html(run)),
        ] {
            section(
                &mut body,
                format!("{id}-{}", place + 1),
                format!("{title}{of}"),
                html,
            );
        }
    }
    out += &format!(
        "<nav aria-label=\"Sections\"><ul>{}</ul></nav>\n",
        links.concat()
    );
    out += "</header>\n<main>\n";
    out += &body;
    out + &format!(
        "</main>\n<footer>\n<p>Written by halfseg {}. IoU, accuracy and the like are in percent; a dash stands where \
         there is no number.</p>\n</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}
