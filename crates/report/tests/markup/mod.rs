//! Whether a page is well-formed: every tag is closed in order, every attribute is quoted, and every id is there once.

use std::collections::{BTreeMap, BTreeSet};

/// Elements without an end.
const VOID: [&str; 4] = ["meta", "img", "br", "link"];

/// The attributes of a tag, which has to be all there is in `text`.
fn attributes(text: &str, tag: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(['=', ' ', '\n']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == ':';
        assert!(
            !name.is_empty() && name.chars().all(legal),
            "an attribute of <{tag} {text}>"
        );
        let value = match after.strip_prefix("=\"") {
            Some(value) => {
                let (value, after) = value.split_once('"').expect("a quote that ends");
                rest = after.trim_start();
                assert!(!value.contains('<'), "{value} in <{tag}>");
                value
            }
            None => {
                assert!(!after.starts_with('='), "unquoted: <{tag} {text}>");
                rest = after.trim_start();
                ""
            }
        };
        let before = found.insert(name.to_owned(), value.to_owned());
        assert!(before.is_none(), "{name} twice in <{tag}>");
    }
    found
}

/// Checks `page`, and gives its text without markup.
pub fn check(page: &str) -> String {
    let page = page
        .strip_prefix("<!DOCTYPE html>\n")
        .expect("it says that it is HTML");
    let mut open: Vec<String> = Vec::new();
    let (mut ids, mut links) = (BTreeSet::new(), Vec::new());
    let mut text = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once('<') {
        if open.last().is_none_or(|tag| tag != "style") {
            check_text(before);
            text += &before
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"");
        }
        let (tag, after) = after.split_once('>').expect("a tag that ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "</{name}>");
            continue;
        }
        let (tag, closed) = match tag.strip_suffix('/') {
            Some(tag) => (tag, true),
            None => (tag, false),
        };
        let name = tag.split([' ', '\n']).next().unwrap_or_default();
        assert!(
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()),
            "<{tag}>"
        );
        assert!(
            !["script", "iframe", "object", "embed"].contains(&name),
            "<{tag}>"
        );
        for (key, value) in attributes(&tag[name.len()..], name) {
            assert!(!key.starts_with("on"), "<{tag}>");
            match key.as_str() {
                "id" => assert!(ids.insert(value.clone()), "two of id {value}"),
                "href" => links.push(value),
                "src" => assert!(value.starts_with("data:image/png;base64,"), "{value}"),
                _ => {}
            }
        }
        if !closed && !VOID.contains(&name) {
            open.push(name.to_owned());
        }
        text.push(' ');
    }
    assert_eq!(rest.trim(), "");
    assert!(open.is_empty(), "never closed: {open:?}");
    for link in links {
        let id = link
            .strip_prefix('#')
            .unwrap_or_else(|| panic!("{link} leads elsewhere"));
        assert!(ids.contains(id), "{link} leads nowhere");
    }
    text
}

/// Text in which each `&` begins one of the names that the page uses.
fn check_text(text: &str) {
    let names = ["amp;", "lt;", "gt;", "quot;", "#39;"];
    for (_, after) in text.match_indices('&').map(|(at, _)| text.split_at(at + 1)) {
        assert!(
            names.iter().any(|name| after.starts_with(name)),
            "&{}",
            &after[..8.min(after.len())]
        );
    }
    let control = text
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    assert_eq!(control, None);
}
