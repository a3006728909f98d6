//! `halfseg export`.

use std::path::Path;

use serde_json::Value;

use crate::support::*;

#[test]
fn an_exported_checkpoint_gives_the_same_scores() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "pspnet");
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
}
