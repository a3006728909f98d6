//! Laying user tables over the defaults, key by key.

use halfseg_amp::Op;
use toml::{Table, Value};

use crate::Error;

/// Tables whose keys are the user's: operations, and paths of modules.
const OPS: &str = "precision.ops";
const MODULES: &str = "precision.modules";
/// Tables of paths of modules with numbers.
const FACTORS: [&str; 2] = ["optimizer.lr_factors", "optimizer.decay_factors"];

/// Lays `over` on `base`. Every key of `over` must be one of `base`, with a value of the same
/// kind; a number is taken where a text or a float stands.
pub(crate) fn merge(base: &mut Table, over: Table, origin: &str) -> Result<(), Error> {
    let mut known = Vec::new();
    leaves(base, "", &mut known);
    known.extend(Op::ALL.iter().map(|op| format!("{OPS}.{op}")));
    known.push(MODULES.to_owned());
    known.extend(FACTORS.map(str::to_owned));
    merge_below(base, over, "", origin, &known)
}

/// Sets `key=value` (`key` dotted; `value` as TOML, or else taken as text). Where a text stands, only
/// quotes make TOML of `value`: a folder may be called `1.0`.
pub(crate) fn set(base: &mut Table, assignment: &str) -> Result<(), Error> {
    let origin = format!("--set {assignment}");
    let (key, text) = assignment.split_once('=').ok_or_else(|| Error::Config {
        origin: origin.clone(),
        message: "expected key=value".into(),
    })?;
    let (key, text) = (key.trim(), text.trim());
    let mut value = parse(text);
    match (slot(base, key), text.parse()) {
        (Some(Value::String(_)), _) if !value.is_str() => value = Value::String(text.to_owned()),
        // Whole numbers of TOML end at 64 bits.
        (Some(Value::Float(_)), Ok(number)) => value = Value::Float(number),
        _ => {}
    }
    for part in key.rsplit('.') {
        value = Value::Table(Table::from_iter([(part.to_owned(), value)]));
    }
    match value {
        Value::Table(table) => merge(base, table, &origin),
        _ => unreachable!("splitting yields at least one part"),
    }
}

/// What stands at a dotted key.
fn slot<'a>(base: &'a Table, key: &str) -> Option<&'a Value> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    let value = base.get(first)?;
    match rest {
        Some(rest) => slot(value.as_table()?, rest),
        None => Some(value),
    }
}

/// A TOML value; text without quotes is taken as it is.
fn parse(text: &str) -> Value {
    format!("value = {text}")
        .parse::<Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn merge_below(
    base: &mut Table,
    over: Table,
    prefix: &str,
    origin: &str,
    known: &[String],
) -> Result<(), Error> {
    for (name, value) in over {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let Some(slot) = base.get_mut(&name) else {
            let key = first_leaf(key, &value);
            return Err(Error::UnknownKey {
                nearest: nearest(&key, known),
                key,
                origin: origin.to_owned(),
            });
        };
        match (slot, value) {
            (Value::Table(slot), Value::Table(value))
                if [OPS, MODULES].contains(&&*key) || FACTORS.contains(&&*key) =>
            {
                merge_free(slot, value, "", &key, origin, known)?;
            }
            (Value::Table(slot), Value::Table(value)) => {
                merge_below(slot, value, &key, origin, known)?;
            }
            (slot, value) => *slot = convert(slot, value, &key, origin)?,
        }
    }
    Ok(())
}

/// Lays `over` on one of the tables with free keys. Tables below it are dotted names that were not
/// quoted, as in `--set precision.modules.decode_head.conv_seg=f32`.
fn merge_free(
    base: &mut Table,
    over: Table,
    prefix: &str,
    table: &str,
    origin: &str,
    known: &[String],
) -> Result<(), Error> {
    for (name, value) in over {
        let name = match prefix {
            "" => name,
            prefix => format!("{prefix}.{name}"),
        };
        let key = format!("{table}.{name}");
        match value {
            Value::Table(value) => merge_free(base, value, &name, table, origin, known)?,
            _ if table == OPS && !known.contains(&key) => {
                return Err(Error::UnknownKey {
                    nearest: nearest(&key, known),
                    key,
                    origin: origin.to_owned(),
                });
            }
            Value::Integer(number) if FACTORS.contains(&table) => {
                base.insert(name, Value::Float(number as f64));
            }
            Value::Float(_) if FACTORS.contains(&table) => {
                base.insert(name, value);
            }
            Value::String(text)
                if !FACTORS.contains(&table)
                    && ["f16", "bf16", "f32", "input"].contains(&&*text) =>
            {
                base.insert(name, Value::String(text));
            }
            value => {
                return Err(Error::Value {
                    key,
                    origin: origin.to_owned(),
                    expected: match FACTORS.contains(&table) {
                        true => "a number".into(),
                        false => "f16, bf16, f32 or input".into(),
                    },
                    found: format!("`{}`", value.to_string().trim()),
                });
            }
        }
    }
    Ok(())
}

fn convert(slot: &Value, value: Value, key: &str, origin: &str) -> Result<Value, Error> {
    Ok(match (slot, value) {
        (Value::Float(_), Value::Integer(number)) => Value::Float(number as f64),
        (Value::String(_), Value::Integer(number)) => Value::String(number.to_string()),
        (Value::String(_), Value::Float(number)) => Value::String(number.to_string()),
        (slot, value) if slot.same_type(&value) => value,
        (slot, value) => {
            return Err(Error::Value {
                key: key.to_owned(),
                origin: origin.to_owned(),
                expected: kind(slot).to_owned(),
                found: format!("{} `{}`", kind(&value), value.to_string().trim()),
            });
        }
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn leaves(table: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(table) => leaves(table, &key, keys),
            _ => keys.push(key),
        }
    }
}

/// The first key with a plain value in `value`, which tells more of what was meant than the name of
/// a table alone.
fn first_leaf(key: String, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((name, value)) => first_leaf(format!("{key}.{name}"), value),
        None => key,
    }
}

/// Characters of a key that are compared with those of others.
const LONGEST_KEY: usize = 200;

/// The known key that looks most like `key`, by its whole path or by its last part alone.
fn nearest(key: &str, known: &[String]) -> String {
    // The time for a comparison grows with both lengths.
    let key: String = key.chars().take(LONGEST_KEY).collect();
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase();
    let likeness = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&key.to_lowercase(), candidate);
        let part = strsim::normalized_damerau_levenshtein(&last(&key), &last(candidate));
        // The last part decides; the whole path tells `train.lr` from `optimizer.lr`.
        part + 0.5 * whole
    };
    known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Table {
        toml::toml! {
            seed = 0
            device = "flex"
            [optimizer]
            lr = 0.01
            momentum = 0.9
            [data]
            photometric = true
            scale = "2048x1024"
        }
    }

    fn check_set(assignment: &str, expect: &str) {
        let mut table = base();
        let found = match set(&mut table, assignment) {
            Ok(()) => table.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(
            found.contains(expect),
            "{assignment}: expected `{expect}` in:\n{found}"
        );
    }

    #[test]
    fn values_of_every_kind_are_set() {
        check_set("seed=7", "seed = 7");
        check_set("optimizer.lr=1", "lr = 1.0");
        check_set("optimizer.lr = 0.5", "lr = 0.5");
        check_set("optimizer.lr=1_0", "lr = 10.0");
        check_set("data.photometric=false", "photometric = false");
        check_set("data.scale=480x360", "scale = \"480x360\"");
        check_set("device=\"cuda:1\"", "device = \"cuda:1\"");
        // Folders whose names are values of another kind.
        for name in [
            "1.0",
            "0x10",
            "1_000",
            "true",
            "2024-01-01",
            "inf",
            "[a]",
            "a#b",
        ] {
            check_set(&format!("device={name}"), &format!("device = \"{name}\""));
        }
    }

    #[test]
    fn a_number_may_have_more_digits_than_whole_numbers() {
        let mut table = base();
        set(&mut table, &format!("optimizer.lr={}", 1e30)).unwrap();
        assert_eq!(table["optimizer"]["lr"].as_float(), Some(1e30));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_neighbour() {
        check_set("optimizer.lrr=1", "unknown key `optimizer.lrr`");
        check_set("optimizer.lrr=1", "nearest valid key is `optimizer.lr`");
        check_set("lr=1", "nearest valid key is `optimizer.lr`");
        check_set("momentun=1", "nearest valid key is `optimizer.momentum`");
        check_set("sead=1", "nearest valid key is `seed`");
        check_set(
            "data.photometrics=false",
            "nearest valid key is `data.photometric`",
        );
    }

    #[test]
    fn a_value_of_another_kind_is_refused() {
        check_set("seed=x", "`seed` in --set seed=x: expected a whole number");
        check_set("data.photometric=1", "expected true or false");
        check_set("optimizer=1", "expected a table");
        check_set("seed", "expected key=value");
    }

    #[test]
    fn a_table_from_a_file_names_the_file() {
        let mut table = base();
        let over = toml::toml! {
            [optimiser]
            lr = 1.0
        };
        let error = merge(&mut table, over, "run.toml").unwrap_err().to_string();
        assert!(
            error.contains("`optimiser.lr`") && error.contains("run.toml"),
            "{error}"
        );
        assert!(error.contains("`optimizer.lr`"), "{error}");
    }
}
