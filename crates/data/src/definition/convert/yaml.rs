//! As much of YAML as `data.yaml` needs: texts, lists and tables of texts under keys.

/// What stands under a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    Text(String),
    List(Vec<String>),
    Table(Vec<(String, String)>),
}

/// The keys of a file, in order. Texts over several lines, such as scripts, are left out.
pub(super) fn parse(text: &str) -> Result<Vec<(String, Yaml)>, String> {
    let lines: Vec<&str> = text.lines().map(without_remark).collect();
    let mut entries = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        at += 1;
        if line.trim().is_empty() || line == "---" || line == "..." {
            continue;
        }
        let number = at;
        let wrong = || {
            format!(
                "line {number}: expected `key: value`, found `{}`",
                line.trim()
            )
        };
        if line.starts_with([' ', '\t']) {
            return Err(wrong());
        }
        let (key, rest) = entry(line).ok_or_else(wrong)?;
        let value = match rest.chars().next() {
            Some('|' | '>') => {
                while lines.get(at).is_some_and(|line| is_within(line)) {
                    at += 1;
                }
                continue;
            }
            Some(open @ ('[' | '{')) => {
                let close = if open == '[' { ']' } else { '}' };
                let mut all = rest.clone();
                while !all.trim_end().ends_with(close) {
                    let next = lines.get(at).ok_or_else(wrong)?;
                    all = all + " " + next.trim();
                    at += 1;
                }
                flow(&all).ok_or_else(wrong)?
            }
            Some(_) => Yaml::Text(plain(&rest)),
            None => {
                let mut block = Vec::new();
                while let Some(line) = lines
                    .get(at)
                    .filter(|line| is_within(line) || is_item(line))
                {
                    block.extend(Some(line.trim()).filter(|line| !line.is_empty()));
                    at += 1;
                }
                block_value(&block).ok_or_else(wrong)?
            }
        };
        entries.push((key, value));
    }
    Ok(entries)
}

fn is_within(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with([' ', '\t'])
}

/// Whether a line is one of a list, and not a key below 0.
fn is_item(line: &str) -> bool {
    line == "-" || line.starts_with("- ")
}

/// A line before its remark.
fn without_remark(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '#' && before.is_whitespace() => return line[..at].trim_end(),
            // Only at the beginning of a text.
            None if matches!(c, '\'' | '"') && !before.is_alphanumeric() => quote = Some(c),
            None => {}
        }
        before = c;
    }
    line.trim_end()
}

/// `key: value`; the value may be empty.
fn entry(line: &str) -> Option<(String, String)> {
    let end = match line.chars().next()? {
        quote @ ('\'' | '"') => 1 + line[1..].find(quote)? + 1,
        _ => line
            .find(": ")
            .or_else(|| line.strip_suffix(':').map(str::len))?,
    };
    let rest = line[end..].trim_start().strip_prefix(':')?;
    Some((plain(&line[..end]), rest.trim().to_owned()))
}

/// A text without its quotes.
fn plain(text: &str) -> String {
    let text = text.trim();
    for quote in ['\'', '"'] {
        let inner = text
            .strip_prefix(quote)
            .and_then(|text| text.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner.replace("''", "'");
        }
    }
    text.to_owned()
}

fn block_value(lines: &[&str]) -> Option<Yaml> {
    let Some(first) = lines.first() else {
        return Some(Yaml::Text(String::new()));
    };
    if is_item(first) {
        let items = lines.iter().map(|line| line.strip_prefix('-').map(plain));
        return Some(Yaml::List(items.collect::<Option<_>>()?));
    }
    let entries = lines.iter().map(|line| {
        let (key, value) = entry(line)?;
        Some((key, plain(&value)))
    });
    Some(Yaml::Table(entries.collect::<Option<_>>()?))
}

/// `[a, b]` or `{a: b}`.
fn flow(text: &str) -> Option<Yaml> {
    let text = text.trim();
    let inner = &text[1..text.len() - 1];
    let (mut items, mut quote, mut item) = (Vec::new(), None, String::new());
    for c in inner.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '[' | '{') => return None,
            None if c == ',' => {
                items.push(std::mem::take(&mut item));
                continue;
            }
            None if matches!(c, '\'' | '"') && item.trim().is_empty() => quote = Some(c),
            None => {}
        }
        item.push(c);
    }
    items.push(item);
    items.retain(|item| !item.trim().is_empty());
    if text.starts_with('[') {
        return Some(Yaml::List(items.iter().map(|item| plain(item)).collect()));
    }
    let entries = items.iter().map(|item| {
        let (key, value) = entry(item.trim())?;
        Some((key, plain(&value)))
    });
    Some(Yaml::Table(entries.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hold_texts_lists_and_tables() {
        let text = "# a remark\n---\npath: ../data # where\ntrain: 'images/train'\nval: [a, \"b, c\"]\ntest:\n\
                    names:\n  -1: none\n  0: person\n  1: it's #1\n\n  2: 'traffic: light'\nnc: 3\nmore:\n- x\n- \"y\"\n\
                    flat: {0: a,\n  1: b}\ndownload: |\n  import os\n  print('x: y')\nlast: 1\n";
        let found = parse(text).unwrap();
        let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let table = |list: &[(&str, &str)]| {
            let pairs = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
            Yaml::Table(pairs.collect())
        };
        let expected = [
            ("path", Yaml::Text("../data".into())),
            ("train", Yaml::Text("images/train".into())),
            ("val", Yaml::List(texts(&["a", "b, c"]))),
            ("test", Yaml::Text(String::new())),
            (
                "names",
                table(&[
                    ("-1", "none"),
                    ("0", "person"),
                    ("1", "it's"),
                    ("2", "traffic: light"),
                ]),
            ),
            ("nc", Yaml::Text("3".into())),
            ("more", Yaml::List(texts(&["x", "y"]))),
            ("flat", table(&[("0", "a"), ("1", "b")])),
            ("last", Yaml::Text("1".into())),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((key, value), (expected_key, expected)) in found.iter().zip(&expected) {
            assert_eq!((key.as_str(), value), (*expected_key, expected));
        }
        for wrong in ["a", "  a: b", "a: [b", "a: [[b]]", "a:\n  - x\n  y: z"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
