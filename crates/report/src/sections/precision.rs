//! The audit of half precision, if somebody made one.

use serde_json::Value;

use super::overview::plain;
use crate::html::{Cell, escaped, grouped, note, number, table};
use crate::run::{AUDIT, Run};

/// Operations that are listed, from the worst on.
const LISTED: usize = 20;

pub fn html(run: &Run) -> String {
    let Some(audit) = &run.audit else {
        return format!(
            "<p>There is none: <code>halfseg audit --checkpoint {0} --json {0}/{AUDIT}</code> makes one, which the next \
             report shows.</p>\n",
            escaped(run.record.path.display())
        );
    };
    let Some(operations) = audit["operations"].as_array() else {
        return note(format!(
            "{AUDIT} holds no audit as `halfseg audit --json` writes it."
        ));
    };
    let text = |value: &Value| plain(value);
    let float = |value: &Value| value.as_f64();
    let mut rows = Vec::new();
    for row in operations.iter().take(LISTED) {
        let error = float(&row["relative_error"]);
        rows.push(vec![
            Cell::Text(text(&row["site"])),
            Cell::Text(text(&row["op"])),
            Cell::Text(text(&row["policy"])),
            Cell::Number(error.map_or("–".into(), |error| format!("{error:.2e}"))),
            Cell::Number(row["non_finite"].as_u64().map_or("–".into(), grouped)),
            Cell::Number(row["flushed"].as_u64().map_or("–".into(), grouped)),
        ]);
    }
    let heads = [
        "where",
        "operation",
        "runs in",
        "relative error",
        "not finite",
        "became 0",
    ];
    format!(
        "<p>Loss {} in f32 and {} under the policy. The {} of {} operations that half precision ({}) errs most in:</p>\n{}",
        number(float(&audit["loss"]), 6),
        number(float(&audit["policy_loss"]), 6),
        rows.len(),
        operations.len(),
        escaped(text(&audit["precision"])),
        table(
            &format!("Precision audit of {}", run.name),
            &heads.map(str::to_owned),
            &rows
        )
    )
}
