//! What holds the workspace together. In a package of its own there is nothing to look at, which each
//! test says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Each crate with those that it may know, from the top down. All arrows point downwards.
const ARROWS: [(&str, &[&str]); 18] = [
    (
        "cli",
        &[
            "report",
            "tensorboard",
            "train",
            "server",
            "predict",
            "segmentor",
            "eval",
            "amp",
            "data",
            "kernels",
            "devices",
            "onnx",
            "zoo",
            "files",
        ],
    ),
    ("report", &["train", "predict", "eval", "data", "files"]),
    (
        "train",
        &[
            "predict",
            "segmentor",
            "layers",
            "kernels",
            "amp",
            "data",
            "eval",
            "devices",
            "files",
        ],
    ),
    ("server", &["predict", "eval", "data", "devices"]),
    (
        "predict",
        &[
            "segmentor",
            "layers",
            "kernels",
            "amp",
            "data",
            "eval",
            "devices",
            "files",
        ],
    ),
    ("onnx", &["segmentor", "backbone", "heads", "layers"]),
    (
        "segmentor",
        &["backbone", "heads", "layers", "amp", "files"],
    ),
    ("heads", &["layers"]),
    ("backbone", &["layers"]),
    ("layers", &["amp", "kernels", "devices"]),
    ("eval", &["data", "files"]),
    ("amp", &["kernels", "files"]),
    ("data", &["files"]),
    ("zoo", &["files"]),
    ("tensorboard", &[]),
    ("kernels", &[]),
    ("devices", &[]),
    ("files", &[]),
];

/// Crates in which `unsafe` may be written; the program names its files one by one.
const UNSAFE: [&str; 3] = ["kernels", "devices", "cli"];

/// Lines of code that a file may have, without its tests.
const LONGEST: usize = 450;

/// Files that are longer, with the reason.
const LONGER: &[(&str, &str)] = &[
    (
        "data/src/synthetic.rs",
        "one thing: the generated streets, at the limit",
    ),
    (
        "train/src/run/folder.rs",
        "one thing: the files of a run and the states of its folder, told at its head",
    ),
];

/// The checkout that this package is part of.
fn workspace() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
    if !manifest.contains("[workspace]") {
        eprintln!("skipped: this package is not part of its workspace");
        return None;
    }
    Some(root.to_owned())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a folder holds, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    halfseg_files::entries(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The files below `folder` that end with `.rs`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let failed = |path: &Path, error| format!("{}: {error}", path.display());
    let mut files = halfseg_files::walk(folder, failed).unwrap();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .expect("names here are Unicode")
}

/// Names of dependencies in all tables of `manifest` that are called one of `kinds`, also those of
/// single targets.
fn dependencies(manifest: &Table, kinds: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in manifest {
        match value {
            Value::Table(table) if kinds.contains(&&**key) => found.extend(table.keys().cloned()),
            Value::Table(table) if key == "target" => {
                let targets = table.values().filter_map(Value::as_table);
                found.extend(targets.flat_map(|target| dependencies(target, kinds)));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn crates_know_only_those_below_them() {
    let Some(root) = workspace() else { return };
    let level = |name: &str| ARROWS.iter().position(|(known, _)| *known == name);
    for folder in entries(&root.join("crates")) {
        let this = name(&folder);
        let (_, allowed) = ARROWS[level(this).unwrap_or_else(|| panic!("{this} is in no row"))];
        let manifest: Table = read(&folder.join("Cargo.toml")).parse().unwrap();
        let ours = |names: BTreeSet<String>| {
            let ours = names
                .into_iter()
                .filter_map(|name| Some(name.strip_prefix("halfseg-")?.to_owned()));
            ours.collect::<Vec<_>>()
        };
        let all = dependencies(&manifest, &["dependencies", "build-dependencies"]);
        if this == "files" {
            assert!(
                !all.iter().any(|name| name.starts_with("burn")),
                "{this} knows Burn"
            );
        }
        for other in ours(all) {
            assert!(allowed.contains(&&*other), "{this} may not know {other}");
        }
        // Tests may look further down, never up.
        for other in ours(dependencies(&manifest, &["dev-dependencies"])) {
            assert!(
                level(&other) > level(this),
                "the tests of {this} may not know {other}"
            );
        }
    }
    for (place, (this, allowed)) in ARROWS.iter().enumerate() {
        let up = allowed.iter().find(|other| level(other) <= Some(place));
        assert_eq!(up, None, "in the row of {this}");
    }
}

#[test]
fn unsafe_code_is_where_it_is_expected() {
    let Some(root) = workspace() else { return };
    for folder in entries(&root.join("crates")) {
        let this = name(&folder);
        if UNSAFE.contains(&this) {
            continue;
        }
        let text = read(&folder.join("src/lib.rs"));
        assert!(
            text.contains("\n#![forbid(unsafe_code)]\n"),
            "{this} does not forbid it"
        );
    }
    let program = root.join("crates/cli/src");
    assert!(read(&program.join("main.rs")).contains("\n#![deny(unsafe_code)]\n"));
    let allows = |path: &PathBuf| {
        let text: String = read(path).split_whitespace().collect();
        text.contains("allow(unsafe_code,")
    };
    let files: Vec<_> = sources(&program).into_iter().filter(allows).collect();
    let files: Vec<_> = files.iter().map(|path| name(path)).collect();
    assert_eq!(files, ["allocator.rs", "peak.rs", "interrupt.rs"]);
}

#[test]
fn the_four_examples_have_one_shape() {
    let Some(root) = workspace() else { return };
    let examples = [
        ("fcn", "Fcn"),
        ("pspnet", "PspNet"),
        ("deeplabv3", "DeepLabV3"),
        ("deeplabv3plus", "DeepLabV3Plus"),
    ];
    let shape = |(file, method): (&str, &str)| {
        let text = read(&root.join(format!("examples/{file}.rs")));
        // The first words are the method's name and year in its paper.
        let (title, rest) = text.split_once(") ").expect("a year in parentheses");
        assert!(
            title.starts_with("//! ") && !title.contains('\n'),
            "{title}"
        );
        rest.replace(&format!("Method::{method},"), "Method::X,")
            .replace(&format!("--example {file}`"), "--example X`")
            .replace(&format!("runs/example-{file}"), "runs/example-X")
    };
    let first = shape(examples[0]);
    for example in &examples[1..] {
        for (ours, first) in shape(*example).lines().zip(first.lines()) {
            assert_eq!(ours, first, "in examples/{}.rs", example.0);
        }
        assert_eq!(
            shape(*example).len(),
            first.len(),
            "examples/{}.rs",
            example.0
        );
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let Some(root) = workspace() else { return };
    let mut long = Vec::new();
    for folder in entries(&root.join("crates")) {
        for file in sources(&folder.join("src")) {
            // Tests that have a file of their own.
            if name(&file) == "tests.rs" {
                continue;
            }
            let text = read(&file);
            let code = text
                .lines()
                .take_while(|line| *line != "#[cfg(test)]")
                .count();
            let path = file.strip_prefix(root.join("crates")).unwrap();
            let path = path
                .to_str()
                .expect("names here are Unicode")
                .replace('\\', "/");
            if code > LONGEST {
                long.push(path.clone());
                let reason = LONGER.iter().find(|(file, _)| *file == path);
                assert!(
                    reason.is_some(),
                    "{path} has {code} lines of code, more than {LONGEST}"
                );
            }
        }
    }
    for (path, _) in LONGER {
        assert!(
            long.contains(&(*path).to_owned()),
            "{path} needs no reason any more"
        );
    }
}

#[test]
fn copies_are_those_of_their_originals() {
    let Some(root) = workspace() else { return };
    let (ours, theirs) = (
        root.join("crates/cli/tests"),
        root.join("crates/segmentor/tests"),
    );
    for folder in ["recordings", "backbones"] {
        let failed = |path: &Path, error| format!("{}: {error}", path.display());
        let files = halfseg_files::walk(&ours.join(folder), failed).unwrap();
        assert!(!files.is_empty());
        for file in files {
            let original = theirs.join(file.strip_prefix(&ours).unwrap());
            let same = fs::read(&file).unwrap() == fs::read(&original).unwrap();
            assert!(same, "{} is not {}", file.display(), original.display());
        }
    }
}
