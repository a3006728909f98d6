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

#[test]
fn a_checkpoint_goes_back_to_mmsegmentation() {
    let folder = tempfile::tempdir().unwrap();
    let weights = trained(&folder, "deeplabv3plus");
    let out = folder.path().join("network.pth");
    let args = [
        "export",
        "--checkpoint",
        text(&weights),
        "--out",
        text(&out),
    ];
    check(&args, 0, &["network.py", "as torch.save does"]);
    let config = fs::read_to_string(folder.path().join("network.py")).unwrap();
    for part in [
        "type='DepthwiseSeparableASPPHead'",
        "base_channels=4",
        "'traffic light'",
        "num_classes=19",
    ] {
        assert!(config.contains(part), "{part} in {config}");
    }
    // The same weights under both formats. A `.pth` says nothing of the run's scenes.
    let scenes = ["--set", "data.scale=64x32", "--set", "data.synthetic_val=2"];
    let score = |checkpoint: &Path| {
        let args = [&eval_flags(checkpoint, "synthetic")[..], &scenes].concat();
        let output = run(&[&args[..], &["--precision", "f16", "--json", "-"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
        scores["classes"].clone()
    };
    assert_eq!(score(&weights), score(&out));
    // Again, but not over what somebody else wrote.
    check(&args, 0, &[]);
    fs::write(folder.path().join("network.py"), "model = None\n").unwrap();
    check(&args, 1, &["network.py", "not this program's"]);
    let backbone = folder.path().join("backbone.pt");
    let to = ["--to", "timm-backbone", "--out", text(&backbone)];
    check(
        &[&["export", "--checkpoint", text(&weights)], &to[..]].concat(),
        0,
        &["timm"],
    );
    assert!(!folder.path().join("backbone.py").exists());
}

#[test]
fn flags_of_onnx_belong_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("network");
    let args = ["export", "--checkpoint", "none", "--out", text(&out)];
    let wrong = [&args[..], &["--argmax"]].concat();
    check(
        &wrong,
        2,
        &["--argmax says how an ONNX file is made", "--to onnx"],
    );
    if cfg!(not(feature = "onnx")) {
        let onnx = [&args[..], &["--to", "onnx"]].concat();
        check(&onnx, 2, &["without ONNX", "--features onnx"]);
    }
    assert!(!out.exists());
}

#[cfg(feature = "onnx")]
#[test]
fn a_network_is_written_as_onnx_once_it_ran() {
    let folder = tempfile::tempdir().unwrap();
    let weights = trained(&folder, "deeplabv3plus");
    let out = folder.path().join("network.onnx");
    let args = [
        "export",
        "--checkpoint",
        text(&weights),
        "--to",
        "onnx",
        "--out",
        text(&out),
    ];
    check(
        &args,
        0,
        &["run in tract on noise of 65x97", "logits", "wrote"],
    );
    let whole = fs::metadata(&out).unwrap().len();
    let small = [
        "--weights",
        "f16",
        "--size",
        "32x64",
        "--batch",
        "2",
        "--argmax",
        "--uint8-input",
    ];
    check(
        &[&args[..], &small].concat(),
        0,
        &["run in tract on noise of 32x64"],
    );
    let bytes = fs::read(&out).unwrap();
    assert!(
        (bytes.len() as u64) < whole * 2 / 3,
        "{} of {whole}",
        bytes.len()
    );
    let holds = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds("\"bicycle\"") && holds("123.675") && holds("[220,20,60]"));
    assert!(!holds(text(folder.path())));
}
