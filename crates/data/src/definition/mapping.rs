//! From the values and colours of masks to classes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::finding::{Finding, Kind};
use super::text::{Encoding, Other, Value};
use crate::image::mask::{Mask, MaskValues};
use crate::{DataError, IGNORE, LabelMap};

/// What no class has; there are at most 254 of them.
const UNKNOWN: u8 = 254;
/// Unknown values of a mask from which on edges are taken to be smoothed.
const SMOOTHED: usize = 6;
/// Unknown values that a message names.
const NAMED: usize = 6;

/// What the values of masks mean.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    encoding: Encoding,
    /// Class, [`IGNORE`] or [`UNKNOWN`] of each value.
    values: Vec<u8>,
    /// The same of each colour that is known.
    colors: HashMap<[u8; 3], u8>,
    tolerance: u16,
    /// What is meant by values that no class has.
    other: u8,
    /// Number of classes.
    classes: usize,
    /// Of classes and what is ignored, for messages.
    known: String,
}

/// Values of a mask with their pixels; colours as 0xRRGGBB.
pub(super) type Counted = BTreeMap<u32, u64>;

/// How a mask's pixels are spread.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    /// Pixels of each class, and ignored ones at [`IGNORE`].
    pub classes: [u64; 256],
    /// Pixels of each value.
    pub values: Counted,
}

/// A mask as it is mapped.
enum Plain {
    /// With what each byte means, and the value that it stands for.
    Bytes(Vec<u8>, Box<[u8; 256]>, Box<[u32; 256]>),
    Words(Vec<u16>),
    Colors(Vec<u8>),
}

impl Mapping {
    /// Of classes with their values or colours, and what is ignored. Refuses, with the place in the list of
    /// classes or nothing for what is ignored, and the reason, what is meant twice or not at all.
    pub(super) fn new(
        encoding: Encoding,
        classes: &[Vec<Value>],
        ignored: &[Value],
        other: Other,
        tolerance: u16,
    ) -> Result<Self, (Option<usize>, String)> {
        let other = match other {
            Other::Refuse => UNKNOWN,
            Other::Ignore => IGNORE,
        };
        let mut values = vec![UNKNOWN; 1 << 16];
        let mut colors = HashMap::new();
        let mut known = Vec::new();
        let all = classes
            .iter()
            .enumerate()
            .flat_map(|(class, values)| values.iter().map(move |value| (Some(class), *value)));
        for (class, value) in all.chain(ignored.iter().map(|value| (None, *value))) {
            let id = class.map_or(IGNORE, |class| class as u8);
            let before = match (value, encoding) {
                (Value::Number(value), Encoding::Index | Encoding::Ids) => {
                    Some(std::mem::replace(&mut values[usize::from(value)], id))
                }
                (Value::Color(color), Encoding::Rgb) => colors.insert(color, id),
                (Value::Number(value), Encoding::Rgb) => {
                    return Err((class, format!("expected a colour [R, G, B], found {value}")));
                }
                (Value::Color(color), _) => {
                    return Err((
                        class,
                        format!("expected a value, found the colour {color:?}"),
                    ));
                }
            };
            let shown = match value {
                Value::Number(value) => value.to_string(),
                Value::Color(color) => format!("{color:?}"),
            };
            if before.is_some_and(|before| before != UNKNOWN) {
                return Err((
                    class,
                    format!("expected each value and colour once, found {shown} again"),
                ));
            }
            known.push(shown);
        }
        if tolerance > 0 && encoding != Encoding::Rgb {
            spread(&mut values, tolerance);
        }
        values
            .iter_mut()
            .filter(|v| **v == UNKNOWN)
            .for_each(|v| *v = other);
        Ok(Self {
            encoding,
            values,
            colors,
            tolerance,
            other,
            classes: classes.len(),
            known: match known.len() {
                0..=12 => known.join(", "),
                more => format!("{}, ... (of {more})", known[..8].join(", ")),
            },
        })
    }

    pub(super) fn ignores(&self, value: u16) -> bool {
        self.encoding != Encoding::Rgb && self.values[usize::from(value)] == IGNORE
    }

    pub(super) fn is_index(&self) -> bool {
        self.encoding == Encoding::Index
    }

    /// The class of a colour, or that of the nearest within the tolerance.
    fn color_class(&self, color: [u8; 3]) -> u8 {
        if let Some(&class) = self.colors.get(&color) {
            return class;
        }
        let distance = |known: &[u8; 3]| {
            let channels = known.iter().zip(color);
            channels
                .map(|(a, b)| u16::from(a.abs_diff(b)))
                .max()
                .unwrap_or(0)
        };
        let near = self
            .colors
            .iter()
            .map(|(known, class)| (distance(known), *class));
        let near = near
            .filter(|(distance, _)| *distance <= self.tolerance)
            .min();
        near.map_or(self.other, |(_, class)| class)
    }

    /// A mask's pixels in the form that they are mapped in.
    fn plain(&self, path: &Path, mask: MaskValues, lossy: bool) -> Result<Plain, Finding> {
        let wrong = |message: String| Finding::new(Kind::MaskFormat, path.display(), message);
        if lossy && self.tolerance == 0 {
            let message = format!(
                "{}: expected a mask in a format that keeps values, found a JPEG, which changes them; convert it \
                 to PNG, or set masks.tolerance to how far values may be off",
                path.display()
            );
            return Err(Finding::new(Kind::MaskJpeg, path.display(), message));
        }
        let identity = Box::new(std::array::from_fn(|v| v as u32));
        Ok(match (mask, self.encoding) {
            (MaskValues::U8(data), Encoding::Rgb) => {
                let color = |v: usize| [v as u8; 3];
                let keys = Box::new(std::array::from_fn(|v| key(color(v))));
                Plain::Bytes(
                    data,
                    Box::new(std::array::from_fn(|v| self.color_class(color(v)))),
                    keys,
                )
            }
            (MaskValues::Indexed { data, palette }, Encoding::Rgb) => {
                let palette = palette.as_chunks::<3>().0;
                let color = |v: usize| palette.get(v).copied().unwrap_or_default();
                let class = |v: usize| match palette.get(v) {
                    Some(color) => self.color_class(*color),
                    None => self.other,
                };
                let (table, keys) = (
                    Box::new(std::array::from_fn(class)),
                    Box::new(std::array::from_fn(|v| key(color(v)))),
                );
                Plain::Bytes(data, table, keys)
            }
            (MaskValues::Rgb(data), Encoding::Rgb) => Plain::Colors(data),
            (MaskValues::U16(_), Encoding::Rgb) => {
                let path = path.display();
                return Err(wrong(format!(
                    "{path}: expected colours, as masks.encoding = \"rgb\" says, found one channel of 16 bits"
                )));
            }
            (MaskValues::U8(data) | MaskValues::Indexed { data, .. }, _) => Plain::Bytes(
                data,
                Box::new(std::array::from_fn(|v| self.values[v])),
                identity,
            ),
            (MaskValues::U16(data), _) => Plain::Words(data),
            (MaskValues::Rgb(data), _) => {
                let pixels = data.as_chunks::<3>().0;
                if let Some([r, g, b]) = pixels.iter().find(|[r, g, b]| r != g || g != b) {
                    let path = path.display();
                    return Err(wrong(format!(
                        "{path}: expected one value a pixel, found colours, such as [{r}, {g}, {b}]; give classes \
                         their colours with masks.encoding = \"rgb\", or write masks with one channel"
                    )));
                }
                let values = pixels.iter().map(|pixel| pixel[0]).collect();
                Plain::Bytes(
                    values,
                    Box::new(std::array::from_fn(|v| self.values[v])),
                    identity,
                )
            }
        })
    }

    /// The classes of a mask's pixels.
    ///
    /// # Errors
    /// A [`Finding`]: what the mask holds is no class, or is in another form.
    pub(super) fn map(&self, path: &Path, mask: Mask) -> Result<LabelMap, DataError> {
        let Mask {
            width,
            height,
            values,
            lossy,
        } = mask;
        let plain = self.plain(path, values, lossy)?;
        let data = match &plain {
            Plain::Bytes(data, table, _) => mapped(data, table),
            Plain::Words(data) => data.iter().map(|&v| self.values[usize::from(v)]).collect(),
            Plain::Colors(data) => {
                let mut out = Vec::with_capacity(data.len() / 3);
                let mut seen = HashMap::new();
                let mut last = ([0; 3], self.color_class([0; 3]));
                for &color in data.as_chunks::<3>().0 {
                    // Most pixels have the colour of the one before.
                    if color != last.0 {
                        last = (
                            color,
                            *seen.entry(color).or_insert_with(|| self.color_class(color)),
                        );
                    }
                    out.push(last.1);
                }
                out
            }
        };
        if data.contains(&UNKNOWN) {
            self.check(path, &self.counts(&plain).values)?;
        }
        Ok(LabelMap {
            width,
            height,
            data,
        })
    }

    /// How a mask's pixels are spread over values and classes.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub(super) fn count(&self, path: &Path, mask: Mask) -> Result<Counts, DataError> {
        let plain = self.plain(path, mask.values, mask.lossy)?;
        let counts = self.counts(&plain);
        self.check(path, &counts.values)?;
        Ok(counts)
    }

    fn counts(&self, plain: &Plain) -> Counts {
        let mut counts = Counts {
            classes: [0; 256],
            values: Counted::new(),
        };
        let mut add = |key: u32, class: u8, pixels: u64| {
            counts.classes[usize::from(class)] += pixels;
            *counts.values.entry(key).or_default() += pixels;
        };
        match plain {
            Plain::Bytes(data, table, keys) => {
                let of_bytes = histogram(data);
                for (v, pixels) in of_bytes
                    .into_iter()
                    .enumerate()
                    .filter(|(_, pixels)| *pixels > 0)
                {
                    add(keys[v], table[v], pixels);
                }
            }
            Plain::Words(data) => {
                let mut of_words = vec![0u64; 1 << 16];
                data.iter().for_each(|&v| of_words[usize::from(v)] += 1);
                for (v, pixels) in of_words
                    .into_iter()
                    .enumerate()
                    .filter(|(_, pixels)| *pixels > 0)
                {
                    add(v as u32, self.values[v], pixels);
                }
            }
            Plain::Colors(data) => {
                let mut of_colors: HashMap<[u8; 3], u64> = HashMap::new();
                let pixels = data.as_chunks::<3>().0;
                for run in pixels.chunk_by(|a, b| a == b) {
                    *of_colors.entry(run[0]).or_default() += run.len() as u64;
                }
                for (color, pixels) in of_colors {
                    add(key(color), self.color_class(color), pixels);
                }
            }
        }
        counts
    }

    /// Refuses values that no class has.
    fn check(&self, path: &Path, values: &Counted) -> Result<(), Finding> {
        let class = |value: u32| match self.encoding {
            Encoding::Rgb => {
                self.color_class([(value >> 16) as u8, (value >> 8) as u8, value as u8])
            }
            _ => self.values[value as usize],
        };
        let unknown: Vec<_> = values
            .iter()
            .filter(|(value, _)| class(**value) == UNKNOWN)
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let pixels: u64 = unknown.iter().map(|(_, pixels)| **pixels).sum();
        let all: u64 = values.values().sum();
        let names = unknown
            .iter()
            .take(NAMED)
            .map(|(value, _)| self.shown(**value));
        let mut found = names.collect::<Vec<_>>().join(", ");
        if unknown.len() > NAMED {
            found += &format!(" and {} more", unknown.len() - NAMED);
        }
        let path = path.display();
        let what = match self.encoding {
            Encoding::Rgb => "colours",
            _ => "values",
        };
        let share = 100.0 * pixels as f64 / all as f64;
        let expected = format!("{path}: expected the {what} {}", self.known);
        let (kind, message) = if unknown.len() >= SMOOTHED && pixels * 4 < all {
            let message = format!(
                "{expected}, found {} others in {share:.2} % of the pixels ({found}), as where edges are \
                 smoothed; draw masks without anti-aliasing and resize them to the nearest value, or set \
                 masks.tolerance",
                unknown.len()
            );
            (Kind::MaskSmoothed, message)
        } else if self.encoding != Encoding::Rgb && values.keys().all(|v| [0, 255].contains(v)) {
            let message = format!(
                "{expected}, found a mask of 0 and 255; where 255 means a class, say so with masks.encoding = \
                 \"ids\" and values = [255] for that class"
            );
            (Kind::Mask0And255, message)
        } else if self.is_index()
            && *unknown[0].0 as usize == self.classes
            && unknown.len() == 1
            && !values.contains_key(&0)
        {
            let message = format!(
                "{expected}, found {found} and no 0, as where classes are counted from 1; give classes their \
                 values with masks.encoding = \"ids\""
            );
            (Kind::MaskOneBased, message)
        } else {
            let kind = match self.encoding {
                Encoding::Rgb => Kind::MaskColors,
                _ => Kind::MaskValues,
            };
            let message = format!(
                "{expected}, found {found} in {pixels} pixels ({share:.2} %); name them in a class or in \
                 masks.ignore, or set masks.other = \"ignore\""
            );
            (kind, message)
        };
        Err(Finding::new(kind, path, message))
    }

    /// A value or a colour as a definition writes it.
    pub(super) fn shown(&self, value: u32) -> String {
        match self.encoding {
            Encoding::Rgb => format!("[{}, {}, {}]", value >> 16, value >> 8 & 255, value & 255),
            _ => value.to_string(),
        }
    }
}

fn key([r, g, b]: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, r, g, b])
}

/// Gives values up to `tolerance` from a known one that one's class: the nearest, the lower of two.
fn spread(values: &mut [u8], tolerance: u16) {
    let known = values
        .iter()
        .enumerate()
        .filter(|(_, class)| **class != UNKNOWN);
    let known: Vec<_> = known.map(|(value, class)| (value, *class)).collect();
    for (value, class) in values.iter_mut().enumerate() {
        let near = known
            .iter()
            .map(|(other, class)| (other.abs_diff(value), *class));
        let near = near.filter(|(distance, _)| *distance <= usize::from(tolerance));
        if let Some((_, nearest)) = near.min_by_key(|(distance, _)| *distance) {
            *class = nearest;
        }
    }
}

fn mapped(data: &[u8], table: &[u8; 256]) -> Vec<u8> {
    let mut out = data.to_vec();
    let (blocks, rest) = out.as_chunks_mut::<32>();
    for block in blocks {
        // Most blocks are flat.
        let first = block[0];
        match block.iter().fold(0, |bits, &v| bits | (v ^ first)) {
            0 => *block = [table[usize::from(first)]; 32],
            _ => block.iter_mut().for_each(|v| *v = table[usize::from(*v)]),
        }
    }
    rest.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
    out
}

fn histogram(data: &[u8]) -> [u64; 256] {
    let mut counts = [0; 256];
    let (blocks, rest) = data.as_chunks::<32>();
    for block in blocks {
        let first = block[0];
        match block.iter().fold(0, |bits, &v| bits | (v ^ first)) {
            0 => counts[usize::from(first)] += 32,
            _ => block.iter().for_each(|&v| counts[usize::from(v)] += 1),
        }
    }
    rest.iter().for_each(|&v| counts[usize::from(v)] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(classes: &[&[u16]], ignored: &[u16], tolerance: u16) -> Mapping {
        let numbers = |values: &[u16]| values.iter().map(|v| Value::Number(*v)).collect::<Vec<_>>();
        let classes: Vec<_> = classes.iter().map(|values| numbers(values)).collect();
        let mapping = Mapping::new(
            Encoding::Ids,
            &classes,
            &numbers(ignored),
            Other::Refuse,
            tolerance,
        );
        mapping.unwrap()
    }

    fn mask(values: MaskValues, width: usize) -> Mask {
        Mask {
            width,
            height: 1,
            values,
            lossy: false,
        }
    }

    fn classes(mapping: &Mapping, values: MaskValues, width: usize) -> Result<Vec<u8>, String> {
        let mapped = mapping.map(Path::new("m.png"), mask(values, width));
        mapped
            .map(|map| map.data)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn values_of_any_width_become_classes() {
        let mapping = ids(&[&[0], &[255, 7], &[40_000]], &[9], 0);
        assert_eq!(
            classes(&mapping, MaskValues::U8(vec![7, 0, 255, 9]), 4).unwrap(),
            [1, 0, 1, 255]
        );
        let words = MaskValues::U16(vec![40_000, 7, 9]);
        assert_eq!(classes(&mapping, words, 3).unwrap(), [2, 1, 255]);
        let grey = MaskValues::Rgb(vec![7, 7, 7, 0, 0, 0]);
        assert_eq!(classes(&mapping, grey, 2).unwrap(), [1, 0]);
        let long: Vec<u8> = (0..100).map(|i| if i < 70 { 7 } else { 0 }).collect();
        let found = classes(&mapping, MaskValues::U8(long.clone()), 100).unwrap();
        assert!(
            found
                .iter()
                .zip(&long)
                .all(|(class, v)| *class == u8::from(*v == 7))
        );
        let counts = mapping
            .count(Path::new("m.png"), mask(MaskValues::U8(long), 100))
            .unwrap();
        assert_eq!((counts.classes[0], counts.classes[1]), (30, 70));
        assert_eq!(counts.values, Counted::from([(0, 30), (7, 70)]));
    }

    #[test]
    fn tolerance_takes_the_nearest() {
        let mapping = ids(&[&[0], &[255]], &[], 127);
        let values = MaskValues::U8(vec![0, 3, 127, 128, 250, 255]);
        assert_eq!(classes(&mapping, values, 6).unwrap(), [0, 0, 0, 1, 1, 1]);
        let colors = [
            vec![Value::Color([0, 0, 0])],
            vec![Value::Color([200, 0, 0])],
        ];
        let mapping = Mapping::new(Encoding::Rgb, &colors, &[], Other::Ignore, 9).unwrap();
        let values = MaskValues::Rgb(vec![0, 0, 9, 195, 9, 0, 200, 10, 0, 0, 0, 0]);
        assert_eq!(classes(&mapping, values, 4).unwrap(), [0, 1, 255, 0]);
        let palette = vec![200, 0, 0, 1, 1, 1];
        let values = MaskValues::Indexed {
            data: vec![0, 1, 2],
            palette,
        };
        assert_eq!(classes(&mapping, values, 3).unwrap(), [1, 0, 255]);
    }

    #[test]
    fn each_kind_of_wrong_value_has_its_own_words() {
        let index = |n: u16| {
            let classes: Vec<_> = (0..n).map(|v| vec![Value::Number(v)]).collect();
            let ignored = [Value::Number(255)];
            Mapping::new(Encoding::Index, &classes, &ignored, Other::Refuse, 0).unwrap()
        };
        let kind = |mapping: &Mapping, values: MaskValues| {
            let error = mapping
                .map(Path::new("m.png"), mask(values, 1))
                .unwrap_err();
            match error {
                DataError::Finding(finding) => {
                    assert!(finding.message.starts_with("m.png: expected "), "{finding}");
                    finding.kind
                }
                other => panic!("{other}"),
            }
        };
        assert_eq!(
            kind(&index(3), MaskValues::U8(vec![0, 7])),
            Kind::MaskValues
        );
        assert_eq!(
            kind(&index(3), MaskValues::U8(vec![1, 2, 3])),
            Kind::MaskOneBased
        );
        let binary = ids(&[&[0], &[1]], &[], 0);
        assert_eq!(
            kind(&binary, MaskValues::U8(vec![0, 255])),
            Kind::Mask0And255
        );
        let smooth: Vec<u8> = (0..100).map(|i| if i < 90 { 0 } else { 100 + i }).collect();
        assert_eq!(kind(&binary, MaskValues::U8(smooth)), Kind::MaskSmoothed);
        assert_eq!(
            kind(&binary, MaskValues::Rgb(vec![1, 2, 3])),
            Kind::MaskFormat
        );
        let colors = [
            vec![Value::Color([0, 0, 0])],
            vec![Value::Color([200, 0, 0])],
        ];
        let mapping = Mapping::new(Encoding::Rgb, &colors, &[], Other::Refuse, 0).unwrap();
        assert_eq!(
            kind(&mapping, MaskValues::Rgb(vec![1, 2, 3])),
            Kind::MaskColors
        );
        assert_eq!(kind(&mapping, MaskValues::U16(vec![1])), Kind::MaskFormat);
    }
}
