//! JSON of which nothing is left out in silence.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads JSON as [`serde_json::from_slice`] does, but refuses an object that has a key twice, of which a map
/// would keep the last alone.
///
/// # Errors
/// What is no JSON or no `T`, and a key that is there twice, by its name.
pub fn parse_json<T: DeserializeOwned>(json: impl AsRef<[u8]>) -> serde_json::Result<T> {
    let json = json.as_ref();
    serde_json::from_slice::<Distinct>(json)?;
    serde_json::from_slice(json)
}

/// Any value in which no object has a key twice.
struct Distinct;

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Distinct {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if keys.contains(&key) {
                // As the fields of structs are refused.
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            keys.insert(key);
            entries.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn keys_that_are_there_twice_are_named() {
        let text = r#"{"a": [{"b": 1, "c": null}, {"b": -1.5}], "b": {"a": true, "d": "a"}}"#;
        let read: serde_json::Value = parse_json(text).unwrap();
        assert_eq!(
            read,
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
        for (text, key, line) in [
            (r#"{"a": 1, "a": 1}"#, "`a`", 1),
            ("{\"b\": [{\"c\": 1,\n\"c\": 2}]}", "`c`", 2),
            ("{\"x\": {\"y\": {\"\\u0061\": 0,\n\n\"a\": 0}}}", "`a`", 3),
        ] {
            let error = parse_json::<serde_json::Value>(text).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
            assert_eq!(error.line(), line, "{error}");
        }
    }

    #[test]
    fn what_is_none_is_refused_as_ever() {
        for text in ["", "{", "{\"a\": 1} 2", "[1,]", "\u{feff}{}"] {
            assert!(parse_json::<serde_json::Value>(text).is_err(), "{text}");
        }
        assert!(parse_json::<BTreeMap<String, u8>>(r#"{"a": 256}"#).is_err());
    }
}
