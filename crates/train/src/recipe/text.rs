//! Recipes as TOML, and single values of them as text.

use std::path::Path;

use halfseg_segmentor::{Depth, Method};
use toml::Table;

use super::{Recipe, overrides};
use crate::Error;
use crate::atomic::read_regular;

impl Recipe {
    /// The recipe as TOML, every key with its value.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.table()).expect("a table of plain values is TOML")
    }

    /// Reads a recipe. Keys that it leaves out are those of the published recipe for the method
    /// and depth that it names (FCN on ResNet-101 unless it does).
    ///
    /// # Errors
    ///
    /// Text that is not TOML, unknown keys and unusable values; `origin` names the text in them.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| Error::Config {
                origin: origin.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        let (method, depth) = named_model(&table, origin)?;
        let mut base =
            Self::published(method.unwrap_or(Method::Fcn), depth.unwrap_or(Depth::R101)).table();
        overrides::merge(&mut base, table, origin)?;
        Self::from_table(base, origin)
    }

    /// Reads a recipe from a regular file; see [`parse`](Self::parse).
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and those of [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self, Error> {
        let origin = path.display().to_string();
        let bytes = read_regular(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &origin),
            Err(error) => Err(Error::Config {
                origin,
                message: format!("expected text in UTF-8: {error}"),
            }),
        }
    }

    /// Applies `key=value`, such as `optimizer.lr=0.02`.
    ///
    /// # Errors
    ///
    /// An unknown key (with the nearest valid one) or an unusable value; the recipe is unchanged
    /// then.
    pub fn set(&mut self, assignment: &str) -> Result<(), Error> {
        self.set_all([assignment])
    }

    /// Applies assignments as [`set`](Self::set) does, later ones over earlier ones of the same key.
    /// Whether the values fit each other is looked at when all are applied, so that their order does
    /// not matter.
    ///
    /// # Errors
    ///
    /// Those of [`set`](Self::set); the recipe is unchanged then.
    pub fn set_all(
        &mut self,
        assignments: impl IntoIterator<Item: AsRef<str>>,
    ) -> Result<(), Error> {
        let origin = |assignment: &str| format!("--set {assignment}");
        let mut table = self.table();
        let (mut recipe, mut applied) = (self.clone(), Vec::new());
        for assignment in assignments {
            let assignment = assignment.as_ref();
            overrides::set(&mut table, assignment)?;
            recipe = Self::from_unchecked(table.clone(), &origin(assignment))?;
            applied.push(assignment.to_owned());
        }
        // The last that sets a key is where its value comes from.
        let sets = |assignment: &str, key: &str| {
            let name = assignment.split_once('=').map(|(name, _)| name.trim());
            name == Some(key)
        };
        recipe.check("").map_err(|error| match error {
            Error::Value {
                key,
                expected,
                found,
                ..
            } => {
                let last = applied.iter().rfind(|assignment| sets(assignment, &key));
                let origin = match (last, applied.as_slice()) {
                    (Some(last), _) => origin(last),
                    (None, [one]) => origin(one),
                    (None, _) => "the flags".to_owned(),
                };
                Error::Value {
                    key,
                    origin,
                    expected,
                    found,
                }
            }
            other => other,
        })?;
        *self = recipe;
        Ok(())
    }

    fn table(&self) -> Table {
        Table::try_from(self).expect("a recipe is a table of plain values")
    }

    fn from_table(table: Table, origin: &str) -> Result<Self, Error> {
        let recipe = Self::from_unchecked(table, origin)?;
        recipe.check(origin)?;
        Ok(recipe)
    }

    fn from_unchecked(table: Table, origin: &str) -> Result<Self, Error> {
        table
            .try_into()
            .map_err(|error: toml::de::Error| Error::Config {
                origin: origin.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })
    }
}

/// Method and depth that a user's table names, before anything else of it is read.
fn named_model(table: &Table, origin: &str) -> Result<(Option<Method>, Option<Depth>), Error> {
    let model = table.get("model").and_then(|model| model.as_table());
    let text = |key: &str| {
        model
            .and_then(|model| model.get(key))
            .and_then(|value| value.as_str())
    };
    let refuse = |key: &str, expected: &str, found: &str| Error::Value {
        key: format!("model.{key}"),
        origin: origin.to_owned(),
        expected: expected.to_owned(),
        found: format!("`{found}`"),
    };
    let method = text("method")
        .map(|text| {
            text.parse()
                .map_err(|_| refuse("method", "fcn, pspnet, deeplabv3 or deeplabv3plus", text))
        })
        .transpose()?;
    let depth = text("backbone")
        .map(|text| {
            text.parse().map_err(|_| {
                refuse(
                    "backbone",
                    "resnet18, resnet34, resnet50, resnet101 or resnet152",
                    text,
                )
            })
        })
        .transpose()?;
    Ok((method, depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_checked_for_what_they_make_together() {
        let published = Recipe::published(Method::Fcn, Depth::R18);
        let (low, high) = ("data.ratio_min=3", "data.ratio_max=4");
        let mut recipe = published.clone();
        assert!(recipe.set(low).is_err());
        for order in [[low, high], [high, low]] {
            let mut recipe = published.clone();
            recipe.set_all(order).unwrap();
            assert_eq!((recipe.data.ratio_min, recipe.data.ratio_max), (3.0, 4.0));
        }
        let error = recipe
            .set_all(["seed=3", "data.ratio_max=0.1"])
            .unwrap_err();
        let expect = "`data.ratio_max` in --set data.ratio_max=0.1";
        assert!(error.to_string().contains(expect), "{error}");
        assert_eq!(recipe, published);
    }

    #[test]
    fn every_preset_reads_back_what_it_prints() {
        for method in Method::ALL {
            for depth in Depth::ALL {
                let recipe = Recipe::published(method, depth);
                let again = Recipe::parse(&recipe.to_toml(), "copy").unwrap();
                assert_eq!(again, recipe, "{method} {depth}");
            }
        }
    }

    #[test]
    fn a_short_file_gets_the_presets_other_values() {
        let recipe = Recipe::parse(
            "[model]\nmethod = \"pspnet\"\nbackbone = \"resnet18\"\n[optimizer]\nlr = 1",
            "a.toml",
        )
        .unwrap();
        let mut expected = Recipe::published(Method::PspNet, Depth::R18);
        expected.optimizer.lr = 1.0;
        assert_eq!(recipe, expected);
        assert_eq!(recipe.model.head_channels, 128);
    }

    #[test]
    fn every_path_that_is_text_arrives_as_it_is() {
        for path in [
            "Zu\u{308}rich",
            "\u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940}",
            "\u{1f469}\u{200d}\u{1f52c}",
            "a\"b\\c'd",
            " ends in a tab\t",
            "two\nlines",
            "\u{7f}\u{1}\u{202e}",
            "\u{27}\u{27}\u{27}",
            "\"\"\"",
            "synthetic ",
            "1.0",
        ] {
            let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
            let quoted = toml::Value::from(path);
            recipe.set(&format!("checkpoint={quoted}")).unwrap();
            assert_eq!(recipe.checkpoint, path, "{quoted}");
            let again = Recipe::parse(&recipe.to_toml(), "copy").unwrap();
            assert_eq!(again.checkpoint, path);
        }
    }

    #[test]
    fn toml_that_does_not_parse_names_its_file_and_line() {
        let error = Recipe::parse("seed = \n", "bad.toml")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("bad.toml") && error.contains("line 1"),
            "{error}"
        );
    }
}
