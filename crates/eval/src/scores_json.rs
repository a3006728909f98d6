//! Scores as JSON.

use serde_json::{Map, Value, json};

use crate::{ClassScore, Scores};

/// Scores as JSON: `miou`, `macc`, `aacc`, `mprecision`, `mdice`, `mboundary_iou` if it was measured, the mIoU of
/// the best constant prediction (`constant_miou`), and each
/// class's numbers by its name of `names`, as [`by_class`]; shares from 0 to 1, `null` for an
/// absent class.
pub fn scores_json(scores: &Scores, names: &[&str]) -> Value {
    let classes = by_class(scores, names, |class| {
        let mut json = json!({
            "iou": class.iou,
            "accuracy": class.accuracy,
            "precision": class.precision,
            "dice": class.dice,
            "pixels": class.pixels,
        });
        if scores.mean_boundary_iou.is_some() {
            json["boundary_iou"] = class.boundary_iou.into();
        }
        Some(json)
    });
    let mut json = json!({
        "miou": scores.mean_iou,
        "macc": scores.mean_accuracy,
        "aacc": scores.pixel_accuracy,
        "mprecision": scores.mean(|class| class.precision),
        "mdice": scores.mean(|class| class.dice),
        "constant_miou": scores.constant_mean_iou,
        "classes": classes,
    });
    if let Some(iou) = scores.mean_boundary_iou {
        json["mboundary_iou"] = iou.into();
    }
    json
}

/// One value per class by its name; class `N` beyond `names` is `class_N`.
pub fn by_class<T: Into<Value>>(
    scores: &Scores,
    names: &[&str],
    value: impl Fn(&ClassScore) -> Option<T>,
) -> Value {
    let name = |id: usize| {
        let name = names.get(id);
        name.map_or(format!("class_{id}"), ToString::to_string)
    };
    let entries = scores.classes.iter().enumerate();
    let map: Map<_, _> = entries
        .map(|(id, class)| (name(id), value(class).map_or(Value::Null, Into::into)))
        .collect();
    map.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConfusionMatrix;

    #[test]
    fn scores_name_their_classes() {
        let mut matrix = ConfusionMatrix::new(4);
        matrix.update(&[0, 2, 2], &[0, 2, 0], 255).unwrap();
        let json = scores_json(&matrix.scores(), &["road", "train", "car"]);
        assert_eq!(json["classes"]["car"]["iou"], 0.5);
        assert_eq!(json["classes"]["train"]["iou"], Value::Null);
        assert_eq!(json["classes"]["class_3"]["pixels"], 0);
        assert_eq!(json["miou"], 0.5);
    }
}
