//! The audit of half precision, if somebody made one.

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
    let mut rows = Vec::new();
    for row in operations.iter().take(LISTED) {
        let error = row["relative_error"].as_f64();
        rows.push(vec![
            Cell::Text(plain(&row["site"])),
            Cell::Text(plain(&row["op"])),
            Cell::Text(plain(&row["policy"])),
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
        number(audit["loss"].as_f64(), 6),
        number(audit["policy_loss"].as_f64(), 6),
        rows.len(),
        operations.len(),
        escaped(plain(&audit["precision"])),
        table(
            &format!("Precision audit of {}", run.name),
            &heads.map(str::to_owned),
            &rows
        )
    )
}
