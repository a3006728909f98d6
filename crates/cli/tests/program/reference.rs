//! `docs/files.md` lists every key of a configuration, as the code has it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use halfseg_segmentor::{Depth, Method};
use halfseg_train::Recipe;
use toml::{Table, Value};

/// Where the list is in the page.
const BEGIN: &str = "<!-- the keys of a configuration, written by a test: HALFSEG_WRITE=1 cargo test -p halfseg-cli reference -->\n";
const END: &str = "<!-- end of the keys -->\n";

/// A field of a struct.
#[derive(Clone)]
struct Field {
    name: String,
    kind: String,
    doc: String,
}

/// The fields of the structs in `text`, by the struct's name.
fn structs(text: &str, found: &mut BTreeMap<String, Vec<Field>>) {
    let (mut open, mut doc) = (None, String::new());
    for line in text.lines() {
        let line = line.trim_end();
        let trimmed = line.trim_start();
        if let Some(name) = line.strip_prefix("pub struct ") {
            open = name.strip_suffix(" {").map(ToOwned::to_owned);
        } else if line == "}" {
            open = None;
        } else if let Some(sentence) = trimmed.strip_prefix("///") {
            doc = format!("{doc} {}", sentence.trim());
            continue;
        } else if trimmed.starts_with("#[") {
            continue;
        } else if let (Some(name), Some(field)) = (&open, trimmed.strip_prefix("pub "))
            && let Some((field, kind)) = field.trim_end_matches(',').split_once(": ")
        {
            found.entry(name.clone()).or_default().push(Field {
                name: field.to_owned(),
                kind: kind.to_owned(),
                doc: doc.trim().to_owned(),
            });
        }
        doc.clear();
    }
}

/// The rows of the struct `kind` whose values are in `values`, and after them those of the structs in
/// it.
fn rows(
    structs: &BTreeMap<String, Vec<Field>>,
    kind: &str,
    values: &Table,
    prefix: &str,
    page: &mut String,
) {
    let fields = structs
        .get(kind)
        .unwrap_or_else(|| panic!("no struct {kind}"));
    let names: Vec<_> = fields.iter().map(|field| &*field.name).collect();
    let keys: Vec<_> = values.keys().map(|key| &**key).collect();
    assert!(
        names.len() == keys.len() && keys.iter().all(|key| names.contains(key)),
        "fields of {kind}: {names:?}, keys: {keys:?}"
    );
    *page += "| key | default | |\n|---|---|---|\n";
    let is_table =
        |field: &&Field| values[&field.name].is_table() && structs.contains_key(&field.kind);
    for field in fields.iter().filter(|field| !is_table(field)) {
        let default = match &values[&field.name] {
            Value::Table(table) if table.is_empty() => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let (name, doc) = (&field.name, plain(&field.doc));
        assert!(!doc.is_empty(), "{prefix}{name} is not documented");
        writeln!(page, "| `{prefix}{name}` | {default} | {doc} |").unwrap();
    }
    for field in fields.iter().filter(is_table) {
        let (name, doc) = (&field.name, plain(&field.doc));
        writeln!(page, "\n### `[{prefix}{name}]`\n\n{doc}\n").unwrap();
        let table = values[name].as_table().expect("filtered above");
        rows(
            structs,
            &field.kind,
            table,
            &format!("{prefix}{name}."),
            page,
        );
    }
}

/// A comment of the code as a page has it: without links to other code, on one line of a table.
fn plain(doc: &str) -> String {
    let mut text = String::new();
    let mut rest = doc;
    while let Some((before, after)) = rest.split_once("[`") {
        let (name, after) = after.split_once("`]").expect("a link that ends");
        text += &format!("{before}`{name}`");
        rest = match after.strip_prefix('(') {
            Some(target) => target.split_once(')').expect("a target that ends").1,
            None => after,
        };
    }
    (text + rest).replace('|', "\\|")
}

fn page() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    root.join("crates")
        .is_dir()
        .then(|| root.join("docs/files.md"))
}

#[test]
fn every_key_is_listed_with_its_default_and_meaning() {
    let Some(page) = page() else {
        eprintln!("skipped: this package is not part of its workspace");
        return;
    };
    let crates = page.ancestors().nth(2).unwrap().join("crates");
    let mut found = BTreeMap::new();
    for folder in ["train", "predict", "segmentor"] {
        let failed = |path: &Path, error| format!("{}: {error}", path.display());
        // The order of the list, in which an earlier struct of a name wins.
        for file in
            halfseg_files::walk(&crates.join(folder).join("src"), failed).unwrap_or_default()
        {
            if file.extension().is_some_and(|extension| extension == "rs") {
                structs(&fs::read_to_string(file).unwrap(), &mut found);
            }
        }
    }
    let published = Recipe::published(Method::Fcn, Depth::R101).to_toml();
    let mut list = String::from(
        "Defaults are those of the published recipe for FCN on ResNet-101; `halfseg config --method M \
         --backbone B` prints those of another network.\n\n",
    );
    rows(&found, "Recipe", &published.parse().unwrap(), "", &mut list);

    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("the place where the list begins");
    let (old, after) = rest.split_once(END).expect("the place where the list ends");
    if std::env::var_os("HALFSEG_WRITE").is_some() {
        fs::write(
            &page,
            [before, BEGIN, "\n", &list, "\n", END, after].concat(),
        )
        .unwrap();
        return;
    }
    let how = "docs/files.md is not what the code says: HALFSEG_WRITE=1 cargo test -p halfseg-cli reference";
    for (old, new) in old.trim().lines().zip(list.trim().lines()) {
        assert_eq!(old, new, "{how}");
    }
    assert_eq!(old.trim().len(), list.trim().len(), "{how}");
}
