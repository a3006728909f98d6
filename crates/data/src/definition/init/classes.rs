//! Classes from what masks hold.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::text::{ClassTable, ClassText, Encoding, MasksText, Value};
use super::layout::Pair;
use super::{is_picture, mask_path};
use crate::image::mask::{Mask, MaskValues};
use crate::{DataError, ImageReader};

/// Distinct values or colours of a mask, at most.
const MOST: usize = 64;
/// Share of a mask's pixels that equal their neighbour to the right, at least.
const FLAT: f64 = 0.75;
/// Values that are nearest to 0 and 255 by this much are these two.
const HALF: u16 = 127;
/// Share of all pixels above which a colour is a class, where there are many.
const COMMON: f64 = 5e-4;

/// Whether the file at `path` holds few values, in areas.
pub(super) fn looks_like_a_mask(path: &Path) -> bool {
    let Ok(Mask { values, lossy, .. }) = ImageReader::default().mask(path) else {
        return false;
    };
    if matches!(values, MaskValues::Indexed { .. }) {
        return is_picture(path);
    }
    let values = numbers(&values);
    let flat = values.windows(2).filter(|pair| pair[0] == pair[1]).count() as f64;
    let mut seen: Vec<u32> = values.clone();
    seen.sort_unstable();
    seen.dedup();
    let extreme = values
        .iter()
        .filter(|v| [0, 255, 0xFF_FFFF].contains(*v))
        .count() as f64;
    let all = values.len().max(1) as f64;
    let is_flat = flat >= FLAT * (all - 1.0);
    // Smoothed or compressed masks of two values.
    seen.len() <= MOST && is_flat
        || !lossy && extreme >= 0.95 * all
        || lossy && extreme >= 0.8 * all && is_flat
}

/// One number a pixel; colours as 0xRRGGBB, greys as their value.
fn numbers(values: &MaskValues) -> Vec<u32> {
    match values {
        MaskValues::U8(data) | MaskValues::Indexed { data, .. } => {
            data.iter().map(|v| u32::from(*v)).collect()
        }
        MaskValues::U16(data) => data.iter().map(|v| u32::from(*v)).collect(),
        MaskValues::Rgb(data) => {
            let pixels = data.as_chunks::<3>().0;
            let grey = pixels.iter().all(|[r, g, b]| r == g && g == b);
            let number = |[r, g, b]: &[u8; 3]| match grey {
                true => u32::from(*r),
                false => u32::from_be_bytes([0, *r, *g, *b]),
            };
            pixels.iter().map(number).collect()
        }
    }
}

/// What masks were found to say.
pub(super) struct Found {
    pub masks: MasksText,
    pub classes: Vec<ClassText>,
    /// What whoever edits the proposal should know.
    pub notes: Vec<String>,
}

impl Found {
    /// Reads the masks of `pairs`.
    pub(super) fn read(folder: &Path, pairs: &[Pair]) -> Result<Self, DataError> {
        let reader = ImageReader::default();
        let (mut values, mut colors) = (BTreeMap::<u32, u64>::new(), BTreeMap::<u32, u64>::new());
        let (mut palette, mut lossy) = (BTreeMap::new(), false);
        for pair in pairs {
            // What cannot be read is for `doctor` to tell.
            let Ok(mask) = reader.mask(&mask_path(folder, pair)) else {
                continue;
            };
            lossy |= mask.lossy;
            if let MaskValues::Indexed {
                palette: colors, ..
            } = &mask.values
            {
                let entries = colors.as_chunks::<3>().0.iter().enumerate();
                palette.extend(entries.map(|(i, color)| (i as u32, *color)));
            }
            let numbers = numbers(&mask.values);
            let in_colors =
                matches!(mask.values, MaskValues::Rgb(_)) && numbers.iter().any(|v| *v > 255);
            let into = if in_colors { &mut colors } else { &mut values };
            for run in numbers.chunk_by(|a, b| a == b) {
                *into.entry(run[0]).or_default() += run.len() as u64;
            }
        }
        let named = labelmap(folder);
        if !colors.is_empty() {
            // A mask without any colour but black, grey or white belongs to them.
            for (value, pixels) in values {
                *colors.entry(value * 0x01_0101).or_default() += pixels;
            }
            return Ok(of_colors(colors, lossy, named));
        }
        if let Some(named) = named.filter(|_| !palette.is_empty()) {
            return Ok(of_colors(
                palette
                    .values()
                    .map(|c| (u32::from_be_bytes([0, c[0], c[1], c[2]]), 1))
                    .collect(),
                lossy,
                Some(named),
            ));
        }
        if values.is_empty() {
            return Err(DataError::NothingFound {
                path: folder.to_owned(),
                expected: "masks that can be read",
                found: format!("{} that cannot", pairs.len()),
            });
        }
        Ok(of_values(values, &palette))
    }
}

fn class(name: String, color: Option<[u8; 3]>, values: Option<Vec<u16>>) -> ClassText {
    ClassText::Class(ClassTable {
        name,
        color,
        values,
        colors: None,
    })
}

fn of_values(values: BTreeMap<u32, u64>, palette: &BTreeMap<u32, [u8; 3]>) -> Found {
    let all: u64 = values.values().sum();
    let at = |value: u32| values.get(&value).copied().unwrap_or(0);
    let binary = |one: u16, tolerance: u16, note: &str| Found {
        masks: MasksText {
            encoding: Encoding::Ids,
            ignore: Some(Vec::new()),
            tolerance,
            ..MasksText::default()
        },
        classes: vec![
            class("background".into(), Some([0, 0, 0]), Some(vec![0])),
            class("object".into(), Some([255, 64, 64]), Some(vec![one])),
        ],
        notes: vec![note.to_owned()],
    };
    let found: Vec<u32> = values.keys().copied().collect();
    if found == [0, 255] {
        return binary(255, 0, "Masks hold 0 and 255: two classes.");
    }
    if found.len() > MOST / 4 && at(0) + at(255) >= all * 8 / 10 && at(255) > 0 {
        return binary(
            255,
            HALF,
            "Masks hold 0, 255 and values between them, as of smoothed edges: the nearer of the two counts.",
        );
    }
    let largest = found
        .iter()
        .copied()
        .filter(|v| *v != 255)
        .max()
        .unwrap_or(0);
    let color = |value: u32| palette.get(&value).copied();
    let name = |value: u32| match (value, largest) {
        (0, 1) => "background".to_owned(),
        (1, 1) => "object".to_owned(),
        _ => format!("class_{value}"),
    };
    let dense = found.contains(&0) && largest < 254 && largest as usize <= 2 * found.len() + 8;
    if dense {
        let classes = (0..=largest.max(1)).map(|value| class(name(value), color(value), None));
        return Found {
            masks: MasksText {
                encoding: Encoding::Index,
                ignore: Some(vec![Value::Number(255)]),
                ..MasksText::default()
            },
            classes: classes.collect(),
            notes: vec![format!(
                "Masks hold {} values up to {largest}: a value is a class's place in the list.",
                found.len()
            )],
        };
    }
    let ignored: Vec<_> = found.iter().filter(|v| [255, 65535].contains(*v)).collect();
    let kept = found
        .iter()
        .filter(|v| ![255, 65535].contains(*v))
        .take(254);
    Found {
        masks: MasksText {
            encoding: Encoding::Ids,
            ignore: Some(ignored.iter().map(|v| Value::Number(**v as u16)).collect()),
            ..MasksText::default()
        },
        classes: kept
            .map(|value| {
                class(
                    format!("class_{value}"),
                    color(*value),
                    Some(vec![*value as u16]),
                )
            })
            .collect(),
        notes: vec![format!(
            "Masks hold {} values, each taken for a class.",
            found.len()
        )],
    }
}

fn of_colors(
    colors: BTreeMap<u32, u64>,
    lossy: bool,
    named: Option<Vec<(String, [u8; 3])>>,
) -> Found {
    let all: u64 = colors.values().sum();
    let mut common: Vec<_> = colors.into_iter().collect();
    let total = common.len();
    if total > MOST {
        common.retain(|(_, pixels)| *pixels as f64 >= COMMON * all as f64);
    }
    common.sort_by_key(|(color, _)| *color);
    let smoothed = lossy || common.len() < total;
    let rgb = |color: u32| [(color >> 16) as u8, (color >> 8) as u8, color as u8];
    let mut notes = vec![format!("Masks hold {total} colours.")];
    if smoothed {
        notes.push("Rare ones, as of smoothed edges, count as the nearest class's.".to_owned());
    }
    let classes = match named {
        Some(named) => {
            notes.push("Names and colours are those of labelmap.txt.".to_owned());
            named
                .into_iter()
                .map(|(name, color)| class(name, Some(color), None))
                .collect()
        }
        None => {
            let name = |color: u32| match color {
                0 => "background".to_owned(),
                _ => format!("color_{color:06x}"),
            };
            common
                .iter()
                .map(|(color, _)| class(name(*color), Some(rgb(*color)), None))
                .collect()
        }
    };
    Found {
        masks: MasksText {
            encoding: Encoding::Rgb,
            ignore: Some(Vec::new()),
            tolerance: if smoothed { 255 } else { 0 },
            ..MasksText::default()
        },
        classes,
        notes,
    }
}

/// The names and colours of `labelmap.txt`, as annotation tools write it: `name:R,G,B:parts:actions` a line.
fn labelmap(folder: &Path) -> Option<Vec<(String, [u8; 3])>> {
    let text = halfseg_files::read_text(&folder.join("labelmap.txt")).ok()?;
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let mut parts = line.split(':');
        let (name, color) = (parts.next()?, parts.next()?);
        let channels: Option<Vec<u8>> = color.split(',').map(|v| v.trim().parse().ok()).collect();
        Some((name.to_owned(), channels?.try_into().ok()?))
    };
    lines
        .map(entry)
        .collect::<Option<Vec<_>>>()
        .filter(|found| found.len() > 1)
}
