//! `halfseg audit`, and the policies that it writes.

use std::fs;

use serde_json::Value;

use crate::support::*;

/// Audits a tiny network with further flags; gives what went to stderr and the JSON.
fn audited(flags: &[&str]) -> (String, Value) {
    let args = [&["audit", "--json", "-"], flags].concat();
    let output = run(&args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{args:?} said:\n{said}");
    (said, serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn an_audit_ranks_operations_and_writes_a_policy_that_training_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.json");
    let flags = ["--method", "deeplabv3plus", "--data", "synthetic"];
    let (said, json) = audited(
        &[
            &flags[..],
            &TINY,
            &[
                "--policy",
                text(&policy),
                "--max-error",
                "4e-4",
                "--underflow",
                "1,65536",
            ],
        ]
        .concat(),
    );
    for expect in [
        "site",
        "rel error",
        "weight casts reused",
        "gradient values",
        "wrote",
    ] {
        assert!(said.contains(expect), "expected `{expect}` in:\n{said}");
    }
    let rows = json["operations"].as_array().unwrap();
    let errors: Vec<f64> = rows
        .iter()
        .map(|row| row["relative_error"].as_f64().unwrap())
        .collect();
    assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
    let ops = |op: &str| rows.iter().filter(|row| row["op"] == op).count();
    for op in ["conv2d", "batch_norm", "interpolate", "pool", "loss"] {
        assert!(ops(op) > 0, "no {op} in {said}");
    }
    assert!(json["casts"]["casts"].as_u64().unwrap() > 0);
    assert_eq!(json["underflow"]["scales"].as_array().unwrap().len(), 2);
    let (exact, rounded) = (
        json["loss"].as_f64().unwrap(),
        json["policy_loss"].as_f64().unwrap(),
    );
    assert!(
        exact != rounded && (exact - rounded).abs() < 0.05 * exact,
        "{exact} {rounded}"
    );

    // The written file holds what the JSON says, and names modules of the network alone.
    let written: Value = serde_json::from_str(&fs::read_to_string(&policy).unwrap()).unwrap();
    assert_eq!(written, json["policy"]);
    let modules = written["modules"].as_object().unwrap();
    assert!(!modules.is_empty() && modules.values().all(|precision| precision == "f32"));
    let bad = |row: &&Value| {
        row["is_module"] == true
            && row["policy"] != "f32"
            && row["relative_error"].as_f64().unwrap() > 4e-4
    };
    assert_eq!(modules.len(), rows.iter().filter(bad).count());

    let out = folder.path().join("run");
    let train = [
        "train",
        "--data",
        "synthetic",
        "--method",
        "deeplabv3plus",
        "--out",
        text(&out),
    ];
    let with = format!("f16 with {} exceptions", modules.len());
    check(
        &[&train[..], &TINY, &["--policy", text(&policy)]].concat(),
        0,
        &[&with, "mIoU"],
    );
    // The exceptions are in the run's configuration, so that the file is no longer needed.
    fs::remove_file(&policy).unwrap();
    let config = fs::read_to_string(out.join("config.toml")).unwrap();
    for module in modules.keys() {
        assert!(
            config.contains(&format!("\"{module}\" = \"f32\"")),
            "{module} in:\n{config}"
        );
    }
    // An audit of the run begins with them: nothing is left that errs.
    let (_, again) = audited(&[
        "--checkpoint",
        text(&out),
        "--max-error",
        "1",
        "--data",
        "synthetic",
    ]);
    assert_eq!(again["policy"]["modules"], written["modules"]);

    let miou = |flags: &[&str]| {
        let args = ["eval", "--data", "synthetic", "--checkpoint", text(&out)];
        let args = [&args[..], &["--json", "-"]].concat();
        let output = run(&[&args[..], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(miou(&[])["policy"]["modules"], written["modules"]);
    let plain = folder.path().join("plain.json");
    fs::write(&plain, r#"{"compute": "bf16"}"#).unwrap();
    let with_policy = miou(&["--policy", text(&plain)]);
    assert_eq!(with_policy["precision"], "bf16");
    assert_eq!(with_policy["policy"]["modules"], Value::Null);
    let eval = ["eval", "--data", "synthetic", "--checkpoint", text(&out)];
    let eval = [&eval[..], &["--precision", "f16"]].concat();
    let eval = [&eval[..], &["--policy", text(&plain)]].concat();
    check(&eval, 2, &["`--precision` in the flags: expected bf16"]);
    // Resuming keeps the exceptions, too.
    let more = [
        "train",
        "--out",
        text(&out),
        "--resume",
        "--iterations",
        "3",
    ];
    check(&more, 0, &[&with]);
}

#[test]
fn policies_that_cannot_be_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.json");
    let out = folder.path().join("out");
    let train = train_flags("fcn", "synthetic", &out);
    let train = [&train[..], &TINY, &["--policy", text(&file)]].concat();

    check(&train, 1, &["policy.json", "No such file"]);
    let refused = |policy: &str, expect: &[&str]| {
        fs::write(&file, policy).unwrap();
        check(&train, 2, expect);
        assert!(!out.join("log.jsonl").exists());
    };
    refused("{", &["policy.json", "line 1"]);
    refused(
        r#"{"compute": "f12"}"#,
        &["policy.json", "`compute`", "bf16", "f12"],
    );
    refused(
        r#"{"compute": "f16", "op": {}}"#,
        &["policy.json", "`op`", "nearest valid key is `ops`"],
    );
    refused(
        r#"{"compute": "f16", "ops": {"conv_2d": "f32"}}"#,
        &["`ops.conv_2d`", "nearest valid key is `ops.conv2d`"],
    );
    refused(
        r#"{"compute": "f16", "modules": {"backbone.layer5": "f32"}}"#,
        &[
            "`precision.modules.backbone.layer5`",
            "`precision.modules.backbone.layer",
        ],
    );
    refused(
        r#"{"compute": "f16", "param": "f16"}"#,
        &["`param`", "expected f32"],
    );

    // What contradicts the file is refused, by every command; what agrees with it is not.
    fs::write(&file, r#"{"compute": "bf16"}"#).unwrap();
    let contradiction = [
        "`--precision` in the flags: expected bf16, as `--policy ",
        "policy.json` has it, or none, found `f32`",
    ];
    let f32 = ["--precision", "f32"];
    check(&[&train[..], &f32].concat(), 2, &contradiction);
    assert!(!out.join("log.jsonl").exists());
    let config = ["config", "--policy", text(&file)];
    check(&[&config[..], &f32].concat(), 2, &contradiction);
    let dtype = |flags: &[&str]| {
        let output = run(&[&config[..], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let printed = String::from_utf8(output.stdout).unwrap();
        let dtype = printed.lines().find(|line| line.starts_with("dtype = "));
        dtype.expect("a configuration has a dtype").to_owned()
    };
    assert_eq!(dtype(&["--precision", "bf16"]), "dtype = \"bf16\"");
    // `--set` is above all flags.
    assert_eq!(dtype(&["--set", "precision.dtype=f32"]), "dtype = \"f32\"");

    let audit = ["audit", "--method", "fcn", "--data", "synthetic"];
    let fails = |flags: &[&str], code: i32, expect: &[&str]| {
        check(&[&audit[..], &TINY, flags].concat(), code, expect);
    };
    fails(
        &["--precision", "f32"],
        2,
        &["`precision.dtype`", "f16 or bf16"],
    );
    fails(&["--max-error=-1"], 2, &["--max-error"]);
    fails(&["--underflow", "0"], 2, &["--underflow"]);
    let absent = folder.path().join("absent/policy.json");
    fails(&["--policy", text(&absent)], 1, &["absent/policy.json"]);
}
