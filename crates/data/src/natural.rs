//! Ordering of names as people order them.

use std::cmp::Ordering;

/// Compares names so that runs of digits count as numbers: `frame_9` comes before `frame_10`.
/// Names that differ in leading zeros only are ordered as text.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a, b);
    loop {
        let (Some(p), Some(q)) = (x.chars().next(), y.chars().next()) else {
            return x.len().cmp(&y.len()).then_with(|| a.cmp(b));
        };
        if p.is_ascii_digit() && q.is_ascii_digit() {
            let (left, rest_x) = split_digits(x);
            let (right, rest_y) = split_digits(y);
            let order = left.len().cmp(&right.len()).then_with(|| left.cmp(right));
            if order.is_ne() {
                return order;
            }
            (x, y) = (rest_x, rest_y);
        } else if p == q {
            (x, y) = (&x[p.len_utf8()..], &y[q.len_utf8()..]);
        } else {
            return p.cmp(&q);
        }
    }
}

/// The digits at the start without leading zeros, and what follows them.
fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (text[..end].trim_start_matches('0'), &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_by_value() {
        let mut names = [
            "b1",
            "a10",
            "a9",
            "a",
            "a9b",
            "a09",
            "a_1",
            "ä2",
            "a10000000000000000000000",
        ];
        names.sort_by(|a, b| natural_order(a, b));
        let expected = [
            "a",
            "a09",
            "a9",
            "a9b",
            "a10",
            "a10000000000000000000000",
            "a_1",
            "b1",
            "ä2",
        ];
        assert_eq!(names, expected);
    }
}
