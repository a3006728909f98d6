//! `halfseg export`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::*;

#[test]
fn an_exported_checkpoint_gives_the_same_scores() {
    let folder = tempfile::tempdir().unwrap();
    // A run that began with weights of its own, whose place its recipe names.
    let weights = trained(&folder, "pspnet");
    let out = folder.path().join("again");
    let args = [
        "train",
        "--checkpoint",
        text(&weights),
        "--data",
        "synthetic",
    ];
    check(&[&args[..], &["--out", text(&out)], &TINY].concat(), 0, &[]);
    let file = folder.path().join("exported.safetensors");
    check(
        &[
            "export",
            "--checkpoint",
            text(&out),
            "--to",
            "mmseg",
            "--out",
            text(&file),
        ],
        0,
        &[],
    );
    let miou = |checkpoint: &Path| {
        let args = [
            "eval",
            "--checkpoint",
            text(checkpoint),
            "--data",
            "synthetic",
            "--json",
            "-",
        ];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
        scores["miou"].as_f64().unwrap()
    };
    assert_eq!(miou(&out), miou(&file));
    // What goes to others says nothing of this machine's folders.
    let bytes = fs::read(&file).unwrap();
    let place = text(folder.path()).as_bytes();
    assert!(!bytes.windows(place.len()).any(|part| part == place));
    assert!(bytes.windows(14).any(|part| part == b"halfseg.recipe"));
}
