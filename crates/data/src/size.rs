//! Sizes in pixels and how they are written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found `{found}`")]
pub struct ParseSizeError {
    expected: &'static str,
    found: String,
}

fn pair(text: &str) -> Option<(usize, usize)> {
    // Products of sides with channels and batches stay far from the end of 64 bits.
    let side = |text: &str| text.parse().ok().filter(|v| (1..=1_000_000).contains(v));
    let (a, b) = text.split_once(['x', 'X'])?;
    Some((side(a)?, side(b)?))
}

/// The size of a training crop or window in pixels, written `HEIGHTxWIDTH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Crop {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The size that images are resized towards, in pixels, written `WIDTHxHEIGHT`; their ratio is
/// kept, so that they fit into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scale {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

macro_rules! text {
    ($type:ident { $first:ident, $second:ident }, $expected:literal) => {
        impl FromStr for $type {
            type Err = ParseSizeError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let size = pair(text).map(|($first, $second)| Self { $first, $second });
                size.ok_or_else(|| ParseSizeError {
                    expected: $expected,
                    found: text.to_owned(),
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}x{}", self.$first, self.$second)
            }
        }

        impl TryFrom<String> for $type {
            type Error = ParseSizeError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(size: $type) -> String {
                size.to_string()
            }
        }
    };
}

text!(
    Crop { height, width },
    "HEIGHTxWIDTH in pixels (1 to 1000000), such as 512x1024"
);
text!(
    Scale { width, height },
    "WIDTHxHEIGHT in pixels (1 to 1000000), such as 2048x1024"
);

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropBox {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Width.
    pub width: usize,
    /// Height.
    pub height: usize,
}

impl CropBox {
    /// All of a picture of `size` (width, height).
    pub fn whole(size: (usize, usize)) -> Self {
        Self {
            left: 0,
            top: 0,
            width: size.0,
            height: size.1,
        }
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        let inside = |start, length, from, count| from >= start && from + count <= start + length;
        inside(self.left, self.width, other.left, other.width)
            && inside(self.top, self.height, other.top, other.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(text: &str, value: T)
    where
        T: FromStr<Err = ParseSizeError> + fmt::Display + PartialEq + fmt::Debug,
    {
        assert_eq!(text.parse::<T>().unwrap(), value);
        assert_eq!(value.to_string(), text);
    }

    #[test]
    fn sizes_read_what_they_print() {
        check(
            "512x1024",
            Crop {
                height: 512,
                width: 1024,
            },
        );
        check(
            "2048x1024",
            Scale {
                width: 2048,
                height: 1024,
            },
        );
    }

    #[test]
    fn nonsense_is_named_with_what_was_expected() {
        for text in ["", "512", "0x4", "4x", "axb", "-1x4"] {
            let error = text.parse::<Crop>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("HEIGHTxWIDTH"));
        }
    }
}
