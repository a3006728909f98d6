//! Patterns of file names, and templates for names of masks.

use std::path::{Path, PathBuf};

use regex::Regex;

/// A pattern such as `images/**/*.jpg`, relative to a folder: `*` and `?` stand for characters of one
/// name, `**/` for any number of folders, `{jpg,png}` for either, `[abc]` and `[0-9]` for one of these
/// characters. What each of them stood for can be used in a [`Template`] by its number.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
    /// The folders before the first that is not plain.
    fixed: PathBuf,
}

impl Pattern {
    /// Refuses, with the reason, what cannot be meant.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        check_relative(text)?;
        let mut regex = "^".to_owned();
        let (mut rest, mut in_braces) = (text, false);
        while let Some(first) = rest.chars().next() {
            let len = first.len_utf8();
            let (token, taken) = match first {
                '*' if rest.starts_with("**/") => ("((?:[^/]+/)*)".to_owned(), 3),
                '*' if rest.starts_with("**") => {
                    return Err(
                        "expected `**/`, which stands for any number of folders, found `**`".into(),
                    );
                }
                '*' => ("([^/]*)".to_owned(), 1),
                '?' => ("([^/])".to_owned(), 1),
                '{' if in_braces => return Err("expected no `{` within `{`".into()),
                '{' => {
                    in_braces = true;
                    ("(".to_owned(), 1)
                }
                '}' if in_braces => {
                    in_braces = false;
                    (")".to_owned(), 1)
                }
                ',' if in_braces => ("|".to_owned(), 1),
                '[' => {
                    let end = rest.find(']').ok_or("expected `]` after `[`, found none")?;
                    let set = &rest[1..end];
                    let plain = |c: char| c.is_alphanumeric() || "-_ .".contains(c);
                    if set.is_empty() || !set.chars().all(plain) {
                        return Err(format!("expected letters, digits and ranges in `[{set}]`"));
                    }
                    (format!("([{}])", set.replace('.', "\\.")), end + 1)
                }
                _ => (regex::escape(&rest[..len]), len),
            };
            regex += &token;
            rest = &rest[taken..];
        }
        if in_braces {
            return Err("expected `}` after `{`, found none".into());
        }
        let regex = Regex::new(&(regex + "$")).map_err(|error| error.to_string())?;
        let first = text.find(['*', '?', '{', '[']).unwrap_or(text.len());
        let fixed = text[..first]
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        Ok(Self {
            text: text.to_owned(),
            regex,
            fixed: fixed.into(),
        })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The folder below which all that it fits is.
    pub(super) fn folder(&self) -> &Path {
        &self.fixed
    }

    /// How many wildcards it has.
    pub(super) fn wildcards(&self) -> usize {
        self.regex.captures_len() - 1
    }

    /// What its wildcards stand for in `path`, with `/` between folders; nothing where it does not fit.
    pub(super) fn captures(&self, path: &str) -> Option<Vec<String>> {
        let found = self.regex.captures(path)?;
        let parts = found.iter().skip(1);
        Some(
            parts
                .map(|part| part.map_or("", |part| part.as_str()).to_owned())
                .collect(),
        )
    }
}

/// Refuses what leaves its folder.
fn check_relative(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("expected a path, found an empty one".into());
    }
    if text.contains('\\') {
        return Err("expected `/` between folders, found `\\`".into());
    }
    if text.starts_with('/') || text.split('/').any(|part| part == "." || part == "..") {
        return Err(
            "expected a path below the root, without `.` and `..` (set `root` to the folder above)"
                .into(),
        );
    }
    Ok(())
}

/// A path with places such as `{stem}` in it.
#[derive(Clone, Debug)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Dir,
    Stem,
    Name,
    Line,
    Capture(usize),
}

/// What the places of a [`Template`] stand for.
pub(super) struct Places<'a> {
    /// The picture's path below the set's root, with `/`.
    pub picture: &'a str,
    /// The part of it that does not vary, at the front.
    pub fixed: &'a Path,
    /// What the wildcards of the pattern stood for.
    pub captures: &'a [String],
    /// The line of the list.
    pub line: &'a str,
}

impl Template {
    /// Refuses, with the reason, unknown places; `listed` says whether `{line}` is one.
    pub(super) fn new(text: &str, listed: bool) -> Result<Self, String> {
        check_relative(text)?;
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or("expected `}` after `{`, found none")?;
            parts.push(Part::Text(before.to_owned()));
            let number = name.parse().ok().filter(|number| *number > 0);
            parts.push(match (name, number) {
                ("dir", _) => Part::Dir,
                ("stem", _) => Part::Stem,
                ("name", _) => Part::Name,
                ("line", _) if listed => Part::Line,
                (_, Some(number)) => Part::Capture(number),
                _ => {
                    let line = if listed { ", {line}" } else { "" };
                    return Err(format!(
                        "expected {{dir}}, {{stem}}, {{name}}{line} or the number of a wildcard, found {{{name}}}"
                    ));
                }
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { parts })
    }

    /// Whether nothing in it depends on the picture.
    pub(super) fn is_fixed(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// The highest number of a wildcard.
    pub(super) fn captures(&self) -> usize {
        let number = |part: &Part| match part {
            Part::Capture(number) => *number,
            _ => 0,
        };
        self.parts.iter().map(number).max().unwrap_or(0)
    }

    /// The path of a picture's mask, or of a line's picture.
    pub(super) fn fill(&self, places: &Places<'_>) -> String {
        let (folder, name) = places
            .picture
            .rsplit_once('/')
            .unwrap_or(("", places.picture));
        let dir = Path::new(folder).strip_prefix(places.fixed);
        let dir = dir.ok().and_then(Path::to_str).unwrap_or(folder);
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Dir => dir.to_owned(),
            Part::Stem => name
                .rsplit_once('.')
                .map_or(name, |(stem, _)| stem)
                .to_owned(),
            Part::Name => name.to_owned(),
            Part::Line => places.line.to_owned(),
            Part::Capture(number) => places.captures.get(number - 1).cloned().unwrap_or_default(),
        };
        let filled: String = self.parts.iter().map(text).collect();
        // Of folders that are none.
        let parts = filled.split('/').filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("/")
    }

    /// The folder that all masks are below.
    pub(super) fn folder(&self) -> PathBuf {
        let Some(Part::Text(first)) = self.parts.first() else {
            return PathBuf::new();
        };
        first
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder)
            .into()
    }

    /// A pattern of all paths that it could give.
    pub(super) fn pattern(&self) -> Option<Regex> {
        let text = |part: &Part| match part {
            Part::Text(text) => regex::escape(text),
            Part::Dir => ".*".to_owned(),
            _ => "[^/]+".to_owned(),
        };
        let parts: String = self.parts.iter().map(text).collect();
        // Folders that are none leave no slash.
        Regex::new(&format!("^{}$", parts.replace(".*/", "(?:.*/)?"))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(pattern: &str, path: &str) -> Option<Vec<String>> {
        Pattern::new(pattern).unwrap().captures(path)
    }

    #[test]
    fn wildcards_fit_as_in_a_shell_and_tell_what_they_stood_for() {
        let some = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect());
        assert_eq!(captures("a/*.png", "a/x.png"), some(&["x"]));
        assert_eq!(captures("a/*.png", "a/b/x.png"), None);
        assert_eq!(captures("a/*.png", "a/x.jpg"), None);
        assert_eq!(captures("a/**/*.png", "a/b/c/x.png"), some(&["b/c/", "x"]));
        assert_eq!(captures("a/**/*.png", "a/x.png"), some(&["", "x"]));
        assert_eq!(
            captures("*/?_[ab0-9].{jpg,png}", "k/ä_7.png"),
            some(&["k", "ä", "7", "png"])
        );
        assert_eq!(captures("a+(b)/$.png", "a+(b)/$.png"), some(&[]));
        assert_eq!(captures("a.b", "axb"), None);
        let pattern = Pattern::new("left/train/*/x*.png").unwrap();
        assert_eq!(pattern.folder(), Path::new("left/train"));
        assert_eq!(Pattern::new("*.png").unwrap().folder(), Path::new(""));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in [
            "", "/a/*", "../a/*", "a\\*.png", "a/**", "a/{x", "a/[", "a/[^x]", "a/{b{c}}",
        ] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
        for text in ["", "{stim}", "{stem", "/a", "a/../{stem}", "{line}", "{0}"] {
            assert!(Template::new(text, false).is_err(), "{text}");
        }
        assert!(Template::new("{line}.png", true).is_ok());
    }

    #[test]
    fn masks_are_named_after_their_pictures() {
        let fill = |template: &str, picture: &str| {
            let captures = ["bonn".to_owned(), "1".to_owned()];
            let places = Places {
                picture,
                fixed: Path::new("images"),
                captures: &captures,
                line: "l",
            };
            let template = Template::new(template, true).unwrap();
            let filled = template.fill(&places);
            let fits = template.pattern().unwrap();
            assert!(fits.is_match(&filled), "{fits} should fit {filled}");
            filled
        };
        assert_eq!(fill("masks/{stem}.png", "images/x.y.jpg"), "masks/x.y.png");
        assert_eq!(
            fill("m/{dir}/{name}.png", "images/a/b/x.jpg"),
            "m/a/b/x.jpg.png"
        );
        assert_eq!(fill("m/{dir}/{stem}.png", "images/x.jpg"), "m/x.png");
        assert_eq!(
            fill("gt/{1}/{2}_{line}.png", "images/x.jpg"),
            "gt/bonn/1_l.png"
        );
    }
}
