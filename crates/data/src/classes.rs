//! What classes are called, and the colours that they are shown in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::labels::{CLASS_NAMES, CLASSES, PALETTE};

/// Names and colours of classes, by class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Classes {
    names: Vec<String>,
    colors: Vec<[u8; 3]>,
}

/// Classes as they were read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    names: Vec<String>,
    colors: Vec<[u8; 3]>,
}

impl TryFrom<Unchecked> for Classes {
    type Error = String;

    fn try_from(read: Unchecked) -> Result<Self, String> {
        let (names, colors) = (read.names.len(), read.colors.len());
        match names == colors {
            true => Ok(Self {
                names: read.names,
                colors: read.colors,
            }),
            false => Err(format!(
                "expected a colour for each of {names} classes, found {colors}"
            )),
        }
    }
}

impl Classes {
    /// Classes of these names; those without a colour get [`class_color`].
    pub fn new(classes: impl IntoIterator<Item = (String, Option<[u8; 3]>)>) -> Self {
        let classes = classes.into_iter().enumerate();
        let (names, colors) = classes
            .map(|(class, (name, color))| (name, color.unwrap_or_else(|| class_color(class))))
            .unzip();
        Self { names, colors }
    }

    /// The classes that Cityscapes scores.
    pub fn cityscapes() -> Self {
        Self {
            names: CLASS_NAMES.map(str::to_owned).to_vec(),
            colors: PALETTE.to_vec(),
        }
    }

    /// `count` classes of which nothing is known: `class_0`, `class_1`, ..., in the colours of Cityscapes as
    /// far as these go.
    pub fn numbered(count: usize) -> Self {
        let class = |class: usize| {
            let color = PALETTE.get(class).copied();
            (format!("class_{class}"), color)
        };
        Self::new((0..count).map(class))
    }

    /// These if there are `count` of them, else [`numbered`](Self::numbered) ones: the classes of a network
    /// with another number of outputs are others.
    pub fn of_network(self, count: usize) -> Self {
        match self.len() == count {
            true => self,
            false => Self::numbered(count),
        }
    }

    /// The classes of a network of `count` outputs whose checkpoint names `known` ones: these if they are as many, else
    /// Cityscapes' where these are, else numbered ones.
    pub fn for_network(known: Option<Self>, count: usize) -> Self {
        let known = known.filter(|classes| classes.len() == count);
        known.unwrap_or_else(|| Self::cityscapes().of_network(count))
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Names, by class.
    pub fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// Colours, RGB, by class.
    pub fn colors(&self) -> &[[u8; 3]] {
        &self.colors
    }
}

impl fmt::Display for Classes {
    /// The number, and all names in order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.len(), self.names.join(", "))
    }
}

/// The colour of class `class` in the colour map of Pascal VOC, whose bits are spread over the three
/// channels: 256 colours that differ, black first.
pub fn class_color(class: usize) -> [u8; 3] {
    let mut color = [0; 3];
    for bit in 0..8 {
        for (channel, value) in color.iter_mut().enumerate() {
            *value |= ((class >> (3 * bit + channel) & 1) << (7 - bit)) as u8;
        }
    }
    color
}

const _: () = assert!(CLASSES == PALETTE.len());

#[cfg(test)]
mod tests {
    use super::*;

    /// From the development kit of VOC2012, `VOClabelcolormap`.
    #[test]
    fn colors_are_those_of_voc() {
        for (class, color) in [
            (0, [0, 0, 0]),
            (1, [128, 0, 0]),
            (2, [0, 128, 0]),
            (6, [0, 128, 128]),
            (8, [64, 0, 0]),
            (15, [192, 128, 128]),
            (20, [0, 64, 128]),
            (255, [224, 224, 192]),
        ] {
            assert_eq!(class_color(class), color, "{class}");
        }
    }

    #[test]
    fn networks_of_other_classes_have_other_names() {
        let own = Classes::new([
            ("sky".to_owned(), None),
            ("sea".to_owned(), Some([1, 2, 3])),
        ]);
        assert_eq!(own.to_string(), "2 (sky, sea)");
        assert_eq!(own.colors(), [[0, 0, 0], [1, 2, 3]]);
        assert_eq!(own.clone().of_network(2), own);
        assert_eq!(own.of_network(3).names(), ["class_0", "class_1", "class_2"]);
    }
}
