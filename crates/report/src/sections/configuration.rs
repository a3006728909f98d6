//! Configurations, and where they differ.

use std::collections::{BTreeMap, BTreeSet};

use halfseg_train::Recipe;
use serde_json::Value;

use super::overview::plain;
use crate::html::{Cell, escaped, words};
use crate::run::Run;

/// The values of a configuration by key.
fn flat(recipe: &Recipe) -> BTreeMap<String, String> {
    fn add(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    add(&format!("{prefix}{dot}{key}"), value, out);
                }
            }
            Value::Object(_) => {
                out.insert(prefix.to_owned(), "none".into());
            }
            value => {
                out.insert(prefix.to_owned(), plain(value));
            }
        }
    }
    let mut out = BTreeMap::new();
    if let Ok(value) = serde_json::to_value(recipe) {
        add("", &value, &mut out);
    }
    out
}

/// The keys whose values are not the same everywhere, with these values.
fn differing(all: &[BTreeMap<String, String>]) -> Vec<(String, Vec<String>)> {
    let keys: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let rows = keys.into_iter().map(|key| {
        let values = all.iter().map(|one| one.get(key).cloned());
        let values = values.map(|value| value.unwrap_or_else(|| "–".into()));
        (key.clone(), values.collect::<Vec<_>>())
    });
    rows.filter(|(_, values)| values.iter().any(|value| *value != values[0]))
        .collect()
}

fn rows(differing: Vec<(String, Vec<String>)>) -> Vec<Vec<Cell>> {
    let row = |(key, values): (String, Vec<String>)| {
        let mut row = vec![Cell::Text(key)];
        row.extend(values.into_iter().map(|value| match value.is_empty() {
            true => Cell::Text("\"\"".into()),
            false => Cell::Text(value),
        }));
        row
    };
    differing.into_iter().map(row).collect()
}

pub fn html(runs: &[Run]) -> String {
    let known: Vec<(&Run, &Recipe)> = runs
        .iter()
        .filter_map(|run| Some((run, run.record.recipe.as_ref()?)))
        .collect();
    let mut out = String::new();
    match known.as_slice() {
        [] => return out,
        [(_, recipe)] => {
            let published = Recipe::published(recipe.model.method, recipe.model.backbone);
            let differing = differing(&[flat(&published), flat(recipe)]);
            let heads = ["key", "published recipe", "here"].map(str::to_owned);
            out += &format!(
                "<p>Where it differs from the published recipe of {} on {}:</p>\n",
                recipe.model.method, recipe.model.backbone
            );
            let rows = rows(differing);
            out += &words("Differences from the published recipe", &heads, &rows);
        }
        several => {
            let all: Vec<_> = several.iter().map(|(_, recipe)| flat(recipe)).collect();
            let differing = differing(&all);
            if differing.is_empty() {
                out += "<p>All runs have the same configuration.</p>\n";
            } else {
                let mut heads = vec!["key".to_owned()];
                heads.extend(several.iter().map(|(run, _)| run.name.clone()));
                out += "<p>Where the runs differ:</p>\n";
                out += &words("Differences between the runs", &heads, &rows(differing));
            }
        }
    }
    for (run, recipe) in known {
        out += &format!(
            "<details><summary>The whole configuration of {}</summary>\n<pre>{}</pre>\n</details>\n",
            escaped(&run.name),
            escaped(recipe.to_toml().trim_end())
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfseg_train::Recipe;

    #[test]
    fn only_what_differs_is_listed() {
        let published = Recipe::published("fcn".parse().unwrap(), "resnet101".parse().unwrap());
        let mut other = published.clone();
        other.set("optimizer.lr=0.25").unwrap();
        other.set("precision.dtype=bf16").unwrap();
        let found = differing(&[flat(&published), flat(&other)]);
        let expected = [
            ("optimizer.lr", ["0.01", "0.25"]),
            ("precision.dtype", ["f16", "bf16"]),
        ];
        let expected =
            expected.map(|(key, values)| (key.to_owned(), values.map(str::to_owned).to_vec()));
        assert_eq!(found, expected);
    }
}
