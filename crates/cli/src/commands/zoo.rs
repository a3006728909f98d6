//! `halfseg zoo`.

use anyhow::{Context, Result, bail};
use halfseg_zoo::{Cache, Entry};
use serde_json::{Value, json};

use crate::args::ZooArgs;
use crate::failure::Usage;
use crate::output::{check_writable, print, print_table, write_json};
use crate::published;

/// Lists published checkpoints, or fetches them.
pub fn run(args: &ZooArgs) -> Result<()> {
    check_writable(&[&args.json], &[])?;
    let cache = published::cache()?;
    if args.fetch {
        return fetch(&cache, &args.names);
    }
    let entries: Vec<&Entry> = cache
        .entries()
        .iter()
        .filter(|entry| is_wanted(entry, &args.names))
        .collect();
    if entries.is_empty() {
        bail!(
            "no published checkpoint has {} in its name, method, backbone or data",
            args.names.join(" and ")
        );
    }
    let mut table = format!(
        "{:<54}{:<16}{:<17}{:<10}{:>9}{:>6}{:>7}{:>7}{:>8}  {}\n",
        "name", "backbone", "data", "crop", "schedule", "dtype", "GB", "mIoU", "ms+flip", "here"
    );
    for entry in &entries {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let number = |number: Option<f64>| number.map_or("-".to_owned(), |n| format!("{n:.2}"));
        table += &format!(
            "{:<54}{:<16}{:<17.16}{:<10}{:>9}{:>6}{:>7}{:>7}{:>8}  {}\n",
            entry.name,
            entry.backbone,
            entry.data,
            text(&entry.crop),
            text(&entry.schedule),
            entry.precision,
            number(entry.memory_gb),
            number(entry.miou),
            number(entry.miou_ms_flip),
            if cache.path(entry).is_file() {
                "yes"
            } else {
                ""
            }
        );
    }
    print_table(&table, args.json.as_deref())?;
    message!(
        "{} of {}; `halfseg zoo NAME` lists more, `--checkpoint zoo:NAME` uses one; files are kept in {}",
        entries.len(),
        cache.entries().len(),
        cache.folder().display()
    );
    if let Some(path) = &args.json {
        let entries: Vec<Value> = entries.iter().map(|entry| object(&cache, entry)).collect();
        write_json(path, &Value::Array(entries))?;
    }
    Ok(())
}

fn fetch(cache: &Cache, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Err(Usage("zoo --fetch: expected names, found none".into()).into());
    }
    // Before anything is fetched.
    for name in names {
        cache.find(plain(name))?;
    }
    for name in names {
        let name = plain(name);
        let path = published::fetch(cache, name).with_context(|| format!("zoo:{name}"))?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

fn plain(name: &str) -> &str {
    name.strip_prefix("zoo:").unwrap_or(name)
}

/// Whether all words are in what the list shows; without words, whether it is one of the models in half
/// precision or a backbone.
fn is_wanted(entry: &Entry, words: &[String]) -> bool {
    if words.is_empty() {
        return entry.method == "backbone"
            || (entry.precision == "f16" && entry.crop.as_deref() == Some("512x1024"));
    }
    let shown = [&entry.name, &entry.method, &entry.backbone, &entry.data];
    let shown = shown.map(|text| text.to_lowercase()).join(" ");
    words
        .iter()
        .all(|word| shown.contains(&plain(word).to_lowercase()))
}

fn object(cache: &Cache, entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "config": entry.config,
        "method": entry.method,
        "backbone": entry.backbone,
        "data": entry.data,
        "crop": entry.crop,
        "schedule": entry.schedule,
        "precision": entry.precision,
        "memory_gb": entry.memory_gb,
        "miou": entry.miou,
        "miou_ms_flip": entry.miou_ms_flip,
        "file": entry.file_name(),
        "url": entry.url,
        "sha256_prefix": entry.sha256_prefix(),
        "log": entry.log,
        "path": cache.path(entry),
        "here": cache.path(entry).is_file(),
    })
}
