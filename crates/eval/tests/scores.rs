//! Scores against those of torchmetrics, and boundary IoUs, as `record_scores.py` recorded them; `HALFSEG_SCORES` names
//! another recording.

use halfseg_data::{IGNORE, LabelMap};
use halfseg_eval::{BoundaryCounts, ClassScore, ConfusionMatrix};
use serde_json::Value;

fn maps(case: &Value, name: &str) -> Vec<LabelMap> {
    let side = |at: usize| case["size"][at].as_u64().unwrap() as usize;
    let maps = case[name].as_array().unwrap().iter();
    let bytes = |map: &Value| -> Vec<u8> {
        let runs: Vec<(u8, usize)> = serde_json::from_value(map.clone()).unwrap();
        let runs = runs.into_iter();
        runs.flat_map(|(value, count)| std::iter::repeat_n(value, count))
            .collect()
    };
    maps.map(|map| LabelMap {
        width: side(0),
        height: side(1),
        data: bytes(map),
    })
    .collect()
}

fn check_near(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() < 1e-6,
        "{what}: {found}, expected {expected}"
    );
}

#[test]
fn scores_are_those_of_torchmetrics() {
    let text = match std::env::var_os("HALFSEG_SCORES") {
        Some(path) => std::fs::read_to_string(path).unwrap(),
        None => include_str!("data/scores.json").to_owned(),
    };
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 4);
    for (at, case) in cases.iter().enumerate() {
        let classes = case["classes"].as_u64().unwrap() as usize;
        let (labels, predictions) = (maps(case, "labels"), maps(case, "predictions"));
        let (mut matrix, mut boundary) =
            (ConfusionMatrix::new(classes), BoundaryCounts::new(classes));
        for (label, prediction) in labels.iter().zip(&predictions) {
            matrix
                .update(&prediction.data, &label.data, IGNORE)
                .unwrap();
            boundary.update(prediction, label).unwrap();
        }
        let mut scores = matrix.scores();
        boundary.add_to(&mut scores);
        type Of = fn(&ClassScore) -> Option<f64>;
        let by_class: [(&str, Of); 4] = [
            ("iou", |class| class.iou),
            ("accuracy", |class| class.accuracy),
            ("precision", |class| class.precision),
            ("dice", |class| class.dice),
        ];
        // What torchmetrics sets to 0, since nothing is there to be divided by, has no score here.
        let all_occur = scores
            .classes
            .iter()
            .all(|c| c.accuracy.is_some() && c.precision.is_some());
        for (name, of) in by_class {
            for (k, class) in scores.classes.iter().enumerate() {
                let what = format!("case {at}, {name} of class {k}");
                check_near(of(class).unwrap_or(0.0), &case["by_class"][name][k], &what);
            }
            if all_occur || name == "iou" {
                check_near(
                    scores.mean(of),
                    &case["means"][name],
                    &format!("case {at}, mean {name}"),
                );
            }
        }
        check_near(scores.pixel_accuracy, &case["means"]["aacc"], "aacc");
        let mut near = Vec::new();
        for (k, class) in scores.classes.iter().enumerate() {
            match (class.boundary_iou, &case["boundary_iou"][k]) {
                (None, Value::Null) => {}
                (found, expected) => {
                    let found = found.unwrap_or(f64::NAN);
                    near.push(found);
                    check_near(
                        found,
                        expected,
                        &format!("case {at}, boundary of class {k}"),
                    );
                }
            }
        }
        let mean = near.iter().sum::<f64>() / near.len() as f64;
        assert!((scores.mean_boundary_iou.unwrap() - mean).abs() < 1e-12);
    }
}
