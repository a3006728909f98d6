//! What a client wants of a prediction.

use std::str::FromStr;

/// A form of a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// The class of each pixel, a grey PNG.
    Map,
    /// The picture under the classes' colours.
    Overlay,
    /// The classes' colours.
    Colors,
    /// Pixels and polygons of each class.
    Json,
}

impl Output {
    pub(crate) const NAMES: [&str; 4] = ["map", "overlay", "colors", "json"];

    /// What `Accept` may say.
    pub(crate) const ACCEPTED: [&str; 5] = [
        "image/png",
        "image/png; output=overlay",
        "image/png; output=colors",
        "application/json",
        "application/geo+json",
    ];

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            _ => "image/png",
        }
    }

    /// What the header `Accept` prefers (RFC 9110, 12.5.1): of the largest `q`, the first. Nothing where it asks for
    /// nothing that there is.
    pub(crate) fn accepted(accept: &str) -> Option<Self> {
        let ranges = accept.split(',').filter(|range| !range.trim().is_empty());
        let mut best: Option<(f32, Self)> = None;
        for range in ranges {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut output) = (1.0, None);
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                let value = value.trim().trim_matches('"');
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => weight = value.parse().unwrap_or(0.0),
                    "output" => output = Some(value),
                    _ => {}
                }
            }
            let found = match (media.as_str(), output) {
                ("*/*" | "image/*" | "image/png", None) => Some(Self::Map),
                ("image/*" | "image/png", Some(name)) => {
                    name.parse().ok().filter(|found| *found != Self::Json)
                }
                ("application/json" | "application/geo+json" | "application/*", None) => {
                    Some(Self::Json)
                }
                _ => None,
            };
            let better = weight > best.map_or(0.0, |(weight, _)| weight);
            if let Some(found) = found.filter(|_| better) {
                best = Some((weight, found));
            }
        }
        best.map(|(_, found)| found)
    }
}

impl FromStr for Output {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "map" => Ok(Self::Map),
            "overlay" => Ok(Self::Overlay),
            "colors" => Ok(Self::Colors),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_asks_for_an_output() {
        for (accept, expected) in [
            ("*/*", Some(Output::Map)),
            ("image/png", Some(Output::Map)),
            ("IMAGE/PNG;output=overlay", Some(Output::Overlay)),
            ("image/png; output=\"colors\"", Some(Output::Colors)),
            ("image/png; output=json", None),
            ("image/png; output=nothing", None),
            ("application/geo+json", Some(Output::Json)),
            (
                "text/html, application/json;q=0.9, */*;q=0.8",
                Some(Output::Json),
            ),
            ("image/png;q=0.5, application/json", Some(Output::Json)),
            ("image/png;q=0", None),
            ("image/png;q=x", None),
            ("text/html", None),
            (";;,,=", None),
        ] {
            assert_eq!(Output::accepted(accept), expected, "{accept}");
        }
        for name in Output::NAMES {
            assert!(name.parse::<Output>().is_ok(), "{name}");
        }
        for accept in Output::ACCEPTED {
            assert!(Output::accepted(accept).is_some(), "{accept}");
        }
    }
}
