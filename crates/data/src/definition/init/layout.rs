//! Which masks belong to which pictures, and how to say so.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::super::text::{SetText, SplitText, Texts};

/// What folders and lists are called that hold a split, and the split's name here.
const SPLITS: [(&str, &str); 9] = [
    ("train", "train"),
    ("training", "train"),
    ("val", "val"),
    ("valid", "val"),
    ("validation", "val"),
    ("dev", "val"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "val"),
];
/// Between the parts of a name.
const SEPARATORS: [char; 4] = ['_', '-', '.', ' '];

/// A file below the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub path: String,
    folders: Vec<String>,
    stem: String,
    ending: String,
}

impl File {
    pub(super) fn new(path: String) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        let folders = folder.split('/').filter(|part| !part.is_empty());
        Self {
            folders: folders.map(str::to_owned).collect(),
            stem: stem.to_owned(),
            ending: ending.to_owned(),
            path: path.clone(),
        }
    }

    /// What files of one use have in common: the folder but for its splits and numbers, the ending, and the last
    /// part of the name if that is a word.
    pub(super) fn kind(&self) -> String {
        let plain = |part: &String| match split_of(part) {
            Some(_) => "*".to_owned(),
            None => part.replace(|c: char| c.is_ascii_digit(), "#"),
        };
        let folders: Vec<_> = self.folders.iter().map(plain).collect();
        let last = self.stem.rsplit(SEPARATORS).next().unwrap_or_default();
        let is_word = last.len() < self.stem.len()
            && !last.is_empty()
            && last.chars().all(char::is_alphabetic);
        let last = if is_word { last } else { "" };
        format!("{}/{last}.{}", folders.join("/"), self.ending)
    }
}

/// The split that a folder or a list is called after.
fn split_of(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    SPLITS
        .iter()
        .find(|(word, _)| *word == name)
        .map(|(_, split)| *split)
}

/// A picture with its mask.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub mask: String,
    places: [Vec<String>; 2],
    stem: String,
    endings: [String; 2],
    naming: Naming,
}

/// What stands around the common part of two names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Naming {
    picture: [String; 2],
    mask: [String; 2],
}

impl Naming {
    /// The mask's name for a picture's, if the picture is named so.
    fn of_mask(&self, picture: &str) -> Option<String> {
        let stem = picture.strip_prefix(self.picture[0].as_str())?;
        let stem = stem.strip_suffix(self.picture[1].as_str())?;
        Some(format!("{}{stem}{}", self.mask[0], self.mask[1]))
    }
}

/// Joins pictures and masks by their names: by the naming that joins most of them.
pub(super) fn join(pictures: &[File], masks: &[File]) -> Vec<Pair> {
    let mut by_stem: HashMap<&str, Vec<&File>> = HashMap::new();
    for mask in masks {
        by_stem.entry(&mask.stem).or_default().push(mask);
    }
    let stems: HashMap<&str, ()> = pictures
        .iter()
        .map(|file| (file.stem.as_str(), ()))
        .collect();
    let mut votes: BTreeMap<Naming, usize> = BTreeMap::new();
    for mask in masks {
        for naming in namings(&mask.stem, &stems) {
            *votes.entry(naming).or_default() += 1;
        }
    }
    // The plainest of those with most votes.
    let length = |naming: &Naming| {
        naming
            .picture
            .iter()
            .chain(&naming.mask)
            .map(String::len)
            .sum::<usize>()
    };
    let best = votes
        .iter()
        .max_by_key(|(naming, votes)| (**votes, std::cmp::Reverse(length(naming))));
    let Some((naming, _)) = best else {
        return Vec::new();
    };
    let mut pairs = Vec::new();
    for picture in pictures {
        let name = naming.of_mask(&picture.stem);
        let candidates = name.as_deref().and_then(|name| by_stem.get(name));
        let likeness = |mask: &&&File| {
            let same = mask
                .folders
                .iter()
                .zip(&picture.folders)
                .filter(|(a, b)| a == b)
                .count();
            let from_end = mask.folders.iter().rev().zip(picture.folders.iter().rev());
            let split = |file: &File| file.folders.iter().find_map(|part| split_of(part));
            (
                split(mask) == split(picture),
                same + from_end.filter(|(a, b)| a == b).count(),
            )
        };
        let Some(mask) = candidates.and_then(|masks| masks.iter().max_by_key(likeness)) else {
            continue;
        };
        let stem = picture
            .stem
            .strip_prefix(naming.picture[0].as_str())
            .unwrap_or_default();
        pairs.push(Pair {
            mask: mask.path.clone(),
            places: [picture.folders.clone(), mask.folders.clone()],
            stem: stem
                .strip_suffix(naming.picture[1].as_str())
                .unwrap_or_default()
                .to_owned(),
            endings: [picture.ending.clone(), mask.ending.clone()],
            naming: naming.clone(),
        });
    }
    pairs
}

/// The namings by which a mask could belong to one of the pictures.
fn namings(mask: &str, pictures: &HashMap<&str, ()>) -> Vec<Naming> {
    let mut found = Vec::new();
    if pictures.contains_key(mask) {
        found.push(Naming::default());
    }
    for (at, separator) in mask.match_indices(SEPARATORS) {
        let (front, back) = (&mask[..at], &mask[at + separator.len()..]);
        if pictures.contains_key(front) {
            let mask = [String::new(), mask[at..].to_owned()];
            found.push(Naming {
                mask,
                ..Naming::default()
            });
        }
        if pictures.contains_key(back) {
            let mask = [mask[..at + separator.len()].to_owned(), String::new()];
            found.push(Naming {
                mask,
                ..Naming::default()
            });
        }
        // Both have something behind, or in front.
        for word in [
            "image",
            "img",
            "rgb",
            "photo",
            "leftImg8bit",
            "sat",
            "picture",
            "input",
        ] {
            let behind = format!("{front}{separator}{word}");
            let before = format!("{word}{separator}{back}");
            if pictures.contains_key(behind.as_str()) {
                found.push(Naming {
                    picture: [String::new(), behind[at..].to_owned()],
                    mask: [String::new(), mask[at..].to_owned()],
                });
            }
            if pictures.contains_key(before.as_str()) {
                found.push(Naming {
                    picture: [format!("{word}{separator}"), String::new()],
                    mask: [mask[..at + separator.len()].to_owned(), String::new()],
                });
            }
        }
    }
    found
}

/// The sets of pictures: one for each split that folders or `lists` tell, else one whose pictures are dealt.
pub(super) fn sets(
    folder: &Path,
    pairs: &[Pair],
    masks: &[File],
    lists: &[String],
) -> Vec<SetText> {
    let mut by_split: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for pair in pairs {
        let split = pair.places[0].iter().find_map(|part| split_of(part));
        by_split
            .entry(split.unwrap_or_default())
            .or_default()
            .push(pair);
    }
    let dealt = || {
        SplitText::Shares(BTreeMap::from([
            ("train".to_owned(), 0.8),
            ("val".to_owned(), 0.2),
        ]))
    };
    let listed = lists_of(folder, pairs, lists);
    if listed.len() > 1 {
        let all: Vec<&Pair> = pairs.iter().collect();
        let endings = &pairs[0].endings;
        return listed
            .into_iter()
            .map(|(split, list)| {
                let whole = set(SplitText::Name(split.to_owned()), &all, masks);
                let folder = pairs[0].places[0].join("/");
                let line = format!(
                    "{}{{line}}{}.{}",
                    pairs[0].naming.picture[0], pairs[0].naming.picture[1], endings[0]
                );
                let images = if folder.is_empty() {
                    line
                } else {
                    format!("{folder}/{line}")
                };
                SetText {
                    list: Some(list),
                    images: Some(Texts::One(images)),
                    masks: whole.masks.map(|_| Texts::One(mask_by_line(&pairs[0]))),
                    exclude: None,
                    ..whole
                }
            })
            .collect();
    }
    if by_split.contains_key("train") && by_split.contains_key("val") {
        let of = |(split, pairs): (&str, Vec<&Pair>)| {
            set(SplitText::Name(split.to_owned()), &pairs, masks)
        };
        return by_split
            .into_iter()
            .filter(|(split, _)| !split.is_empty())
            .map(of)
            .collect();
    }
    let mut sets = Vec::new();
    for (split, pairs) in by_split {
        // With a split for tests alone, nothing else would be left to evaluate on in training.
        let split = match split {
            "test" => SplitText::Name("test".to_owned()),
            _ => dealt(),
        };
        sets.push(set(split, &pairs, masks));
    }
    if sets
        .iter()
        .all(|set| set.split == SplitText::Name("test".to_owned()))
    {
        sets.iter_mut().for_each(|set| set.split = dealt());
    }
    sets
}

fn mask_by_line(pair: &Pair) -> String {
    let name = format!(
        "{}{{line}}{}.{}",
        pair.naming.mask[0], pair.naming.mask[1], pair.endings[1]
    );
    match pair.places[1].join("/").as_str() {
        "" => name,
        folder => format!("{folder}/{name}"),
    }
}

/// Lists called after splits whose lines name pictures; all pictures must be in one folder.
fn lists_of(folder: &Path, pairs: &[Pair], lists: &[String]) -> BTreeMap<&'static str, String> {
    let one_folder = pairs.iter().all(|pair| pair.places == pairs[0].places);
    let stems: HashMap<&str, ()> = pairs.iter().map(|pair| (pair.stem.as_str(), ())).collect();
    let mut found = BTreeMap::new();
    for list in lists.iter().filter(|_| one_folder) {
        let name = list.rsplit('/').next().unwrap_or_default();
        let Some(split) = split_of(name.trim_end_matches(".txt")) else {
            continue;
        };
        let text = halfseg_files::read_text(&folder.join(list)).unwrap_or_default();
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let known = lines
            .iter()
            .filter(|line| stems.contains_key(*line))
            .count();
        if !lines.is_empty() && known == lines.len() {
            found.entry(split).or_insert_with(|| list.clone());
        }
    }
    found
}

/// A set of `pairs`, as plainly as their folders allow.
fn set(split: SplitText, pairs: &[&Pair], all_masks: &[File]) -> SetText {
    let first = pairs[0];
    let naming = &first.naming;
    let plain = *naming == Naming::default() || naming.picture == Naming::default().picture;
    let same_depth = pairs.iter().all(|pair| {
        [0, 1].map(|of| pair.places[of].len()) == [0, 1].map(|of| first.places[of].len())
    });
    let (folder, mask_folder, wildcards) = match same_depth {
        true => by_position(pairs),
        false => {
            let [pictures, masks] = [0, 1].map(|of| common(pairs, of));
            (pictures + "**/", masks + "{dir}/", 1)
        }
    };
    let mut endings: Vec<&str> = pairs.iter().map(|pair| pair.endings[0].as_str()).collect();
    endings.sort_unstable();
    endings.dedup();
    let ending = match endings[..] {
        [one] => one.to_owned(),
        _ => format!("{{{}}}", endings.join(",")),
    };
    let images = format!(
        "{folder}{}*{}.{ending}",
        naming.picture[0], naming.picture[1]
    );
    let stem = match plain {
        true => "{stem}".to_owned(),
        false => format!("{{{}}}", wildcards + 1),
    };
    let mut mask_endings: Vec<&str> = pairs.iter().map(|pair| pair.endings[1].as_str()).collect();
    mask_endings.sort_unstable();
    mask_endings.dedup();
    let mask = |ending: &&str| {
        format!(
            "{mask_folder}{}{stem}{}.{ending}",
            naming.mask[0], naming.mask[1]
        )
    };
    let masks: Vec<_> = mask_endings.iter().map(mask).collect();
    // Masks beside their pictures would be taken for some.
    let beside = all_masks
        .iter()
        .any(|mask| mask.folders == first.places[0] && endings.contains(&mask.ending.as_str()));
    let exclude = format!("{folder}{}*{}.{ending}", naming.mask[0], naming.mask[1]);
    let exclude =
        (beside && exclude != images && naming.mask != naming.picture && plain).then_some(exclude);
    SetText {
        split,
        seed: None,
        root: None,
        list: None,
        images: Some(Texts::One(images)),
        masks: Some(match &masks[..] {
            [one] => Texts::One(one.clone()),
            _ => Texts::Many(masks),
        }),
        exclude: exclude.map(Texts::One),
        repeat: None,
    }
}

/// Folders of pictures and masks, with a wildcard where pictures differ, and how many of these there are.
fn by_position(pairs: &[&Pair]) -> (String, String, usize) {
    let first = pairs[0];
    let (mut folder, mut places) = (String::new(), Vec::new());
    for place in 0..first.places[0].len() {
        let part = &first.places[0][place];
        if pairs.iter().all(|pair| pair.places[0][place] == *part) {
            folder += &format!("{part}/");
        } else {
            folder += "*/";
            places.push(place);
        }
    }
    let mut masks = String::new();
    for place in 0..first.places[1].len() {
        let part = &first.places[1][place];
        if pairs.iter().all(|pair| pair.places[1][place] == *part) {
            masks += &format!("{part}/");
            continue;
        }
        let same = |at: &&usize| {
            pairs
                .iter()
                .all(|pair| pair.places[0][**at] == pair.places[1][place])
        };
        let number = places
            .iter()
            .position(|at| same(&at))
            .map_or(1, |number| number + 1);
        masks += &format!("{{{number}}}/");
    }
    (folder, masks, places.len())
}

/// The folders that all pictures, or all masks, are below.
fn common(pairs: &[&Pair], of: usize) -> String {
    let mut common = pairs[0].places[of].clone();
    for pair in pairs {
        let same = common
            .iter()
            .zip(&pair.places[of])
            .take_while(|(a, b)| a == b)
            .count();
        common.truncate(same);
    }
    common.iter().map(|part| format!("{part}/")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(pictures: &[&str], masks: &[&str]) -> Vec<(String, String)> {
        let files = |paths: &[&str]| {
            paths
                .iter()
                .map(|path| File::new((*path).to_owned()))
                .collect::<Vec<_>>()
        };
        let (pictures, masks) = (files(pictures), files(masks));
        let pairs = join(&pictures, &masks);
        assert_eq!(pairs.len(), pictures.len(), "all pictures have masks");
        let sets = sets(Path::new("/nowhere"), &pairs, &masks, &[]);
        let text = |texts: &Option<Texts>| texts.as_ref().unwrap().list().join(" ");
        sets.iter()
            .map(|set| (text(&set.images), text(&set.masks)))
            .collect()
    }

    #[test]
    fn layouts_are_told_as_plainly_as_can_be() {
        let check = |pictures: &[&str], masks: &[&str], expected: &[(&str, &str)]| {
            let found = proposed(pictures, masks);
            let expected: Vec<_> = expected
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect();
            assert_eq!(found, expected);
        };
        check(
            &["images/a.jpg", "images/b.jpg"],
            &["masks/a.png", "masks/b.png"],
            &[("images/*.jpg", "masks/{stem}.png")],
        );
        check(
            &["a.jpg", "b.jpg"],
            &["a_mask.png", "b_mask.png"],
            &[("*.jpg", "{stem}_mask.png")],
        );
        check(
            &["x/1_img.png", "x/2_img.png"],
            &["x/1_label.png", "x/2_label.png"],
            &[("x/*_img.png", "x/{1}_label.png")],
        );
        check(
            &["s1/rgb/a.png", "s2/rgb/a.png"],
            &["s1/gt/a.png", "s2/gt/a.png"],
            &[("*/rgb/*.png", "{1}/gt/{stem}.png")],
        );
        check(
            &["train/images/a.png", "valid/images/b.png"],
            &["train/masks/a.png", "valid/masks/b.png"],
            &[
                ("train/images/*.png", "train/masks/{stem}.png"),
                ("valid/images/*.png", "valid/masks/{stem}.png"),
            ],
        );
        check(
            &["i/a/b/x.png", "i/y.png"],
            &["m/a/b/x.png", "m/y.png"],
            &[("i/**/*.png", "m/{dir}/{stem}.png")],
        );
    }
}
