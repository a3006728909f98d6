//! Which pictures and masks belong to which split.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::finding::{Finding, Findings, Kind};
use super::pattern::{Pattern, Places, Template};
use super::relations::{check_masks_used, check_repeated};
use super::{Definition, slashed};
use crate::DataError;
use crate::names::unique_names;
use crate::natural::natural_order;

/// Names of a folder that a message lists.
const NAMED: usize = 5;

/// Pictures that are found together.
#[derive(Clone, Debug)]
pub(super) struct Set {
    /// Its key in the definition.
    pub key: String,
    pub root: PathBuf,
    pub source: Source,
    pub split: Split,
    /// The first that names a file counts; none for pictures without masks.
    pub masks: Vec<Template>,
    /// What patterns fit and is none of the pictures.
    pub exclude: Vec<Pattern>,
    pub repeat: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Source {
    Patterns(Vec<Pattern>),
    /// A file with a name a line.
    List {
        file: PathBuf,
        picture: Template,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Split {
    Name(String),
    Shares {
        shares: Vec<(String, f64)>,
        seed: u64,
    },
}

impl Split {
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Self::Name(name) => vec![name],
            Self::Shares { shares, .. } => shares.iter().map(|(name, _)| name.as_str()).collect(),
        }
    }
}

/// A picture with its mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The name of its file without ending, and where that is not enough, more.
    pub name: String,
    pub image: PathBuf,
    pub mask: Option<PathBuf>,
    /// Times that it occurs in its split.
    pub repeat: usize,
}

impl Item {
    /// That its picture cannot be read.
    pub(super) fn unreadable(&self, error: &DataError) -> Finding {
        Finding::of_file(Kind::PictureUnreadable, &self.image, error)
    }
}

/// The pictures of some splits, and what is wrong with their names.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub splits: BTreeMap<String, Vec<Item>>,
    pub findings: Findings,
}

/// A picture of a set, by its path below the set's root.
struct Listed<'a> {
    path: String,
    fixed: &'a Path,
    captures: Vec<String>,
    line: String,
}

impl Definition {
    /// Lists the pictures of `splits`.
    pub(super) fn list(&self, splits: &[&str]) -> Listing {
        let known = self.splits();
        let mut listing = Listing::default();
        for split in known.iter().chain(splits) {
            listing.splits.insert((*split).to_owned(), Vec::new());
        }
        let listed: Vec<_> = self
            .sets
            .iter()
            .filter(|set| set.list(&mut listing, splits))
            .collect();
        for split in splits.iter().filter(|split| !known.contains(split)) {
            let message = format!(
                "{}: expected a split `{split}`, found {}; name it in [[sets]]",
                self.origin,
                known.join(", ")
            );
            listing
                .findings
                .add(Finding::new(Kind::SplitMissing, split, message).within(split));
        }
        check_masks_used(&listed, &mut listing, splits);
        listing
            .splits
            .retain(|split, _| splits.contains(&split.as_str()));
        listing.findings.retain(|finding| {
            let split = finding.split.as_deref();
            split.is_none_or(|split| splits.contains(&split))
        });
        for items in listing.splits.values_mut() {
            items.sort_by(|a, b| {
                natural_order(&a.image.to_string_lossy(), &b.image.to_string_lossy())
            });
            let text =
                |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
            let folder = |item: &Item| text(item.image.parent().and_then(Path::file_name));
            let named = items
                .iter()
                .map(|item| (folder(item), text(item.image.file_stem())));
            let names = unique_names(&named.collect::<Vec<_>>());
            items
                .iter_mut()
                .zip(names)
                .for_each(|(item, name)| item.name = name);
        }
        check_repeated(&mut listing);
        listing
    }
}

impl Set {
    /// The split that is named where something is wrong with the whole set.
    pub(super) fn first_of(&self, splits: &[&str]) -> &str {
        let names = self.split.names();
        let wanted = names.iter().find(|name| splits.contains(name));
        wanted.or(names.first()).copied().unwrap_or_default()
    }

    /// Lists the pictures of all its splits; says whether there are any.
    fn list(&self, listing: &mut Listing, splits: &[&str]) -> bool {
        let mut findings = Vec::new();
        let mut listed = match &self.source {
            Source::Patterns(patterns) => self.fitting(patterns, &mut findings),
            Source::List { file, picture } => self.on_list(file, picture, &mut findings),
        };
        listed.sort_by(|a, b| natural_order(&a.path, &b.path));
        let any = !listed.is_empty();
        let shared = self.split.shared(listed);
        for (split, listed) in shared {
            if listed.is_empty() && findings.is_empty() {
                let found = self.found_instead();
                let message = format!(
                    "{}: expected pictures for the split {split}, {found}",
                    self.wanted()
                );
                findings.push(Finding::new(Kind::SplitEmpty, split, message).within(split));
            }
            let items = listing
                .splits
                .get_mut(split)
                .expect("splits are inserted first");
            for listed in listed {
                let places = Places {
                    picture: &listed.path,
                    fixed: listed.fixed,
                    captures: &listed.captures,
                    line: &listed.line,
                };
                let candidates = self
                    .masks
                    .iter()
                    .map(|template| self.root.join(template.fill(&places)));
                let candidates: Vec<PathBuf> = candidates.collect();
                let mask = candidates.iter().find(|path| path.is_file());
                let image = self.root.join(&listed.path);
                if let (None, Some(expected)) = (mask, candidates.first()) {
                    let message = format!(
                        "{}: label not found, expected {}",
                        image.display(),
                        expected.display()
                    );
                    findings.push(
                        Finding::new(Kind::MaskMissing, image.display(), message).within(split),
                    );
                    continue;
                }
                items.push(Item {
                    name: String::new(),
                    image,
                    mask: mask.cloned(),
                    repeat: self.repeat,
                });
            }
        }
        for finding in findings {
            let finding = match finding.split {
                Some(_) => finding,
                None => finding.within(self.first_of(splits)),
            };
            listing.findings.add(finding);
        }
        any
    }

    /// The files that the patterns fit, each once.
    fn fitting<'a>(&self, patterns: &'a [Pattern], findings: &mut Vec<Finding>) -> Vec<Listed<'a>> {
        let mut listed: Vec<Listed<'a>> = Vec::new();
        let mut seen = HashSet::new();
        for pattern in patterns {
            let folder = self.root.join(pattern.folder());
            if !folder.is_dir() {
                let message = format!(
                    "{}: expected a folder of pictures, as {}.images, `{}`, names it, {}",
                    folder.display(),
                    self.key,
                    pattern.text(),
                    found_in(&folder)
                );
                findings.push(Finding::new(Kind::FolderMissing, folder.display(), message));
                continue;
            }
            let files = match halfseg_files::walk_visible(&folder, |path, e| {
                format!("{}: {e}", path.display())
            }) {
                Ok(files) => files,
                Err(message) => {
                    findings.push(Finding::new(Kind::FolderMissing, folder.display(), message));
                    continue;
                }
            };
            for path in files {
                let below = path.strip_prefix(&self.root).unwrap_or(&path);
                match slashed(below) {
                    Some(below) => {
                        let excluded = |other: &Pattern| other.captures(&below).is_some();
                        if let Some(captures) = pattern.captures(&below)
                            && !self.exclude.iter().any(excluded)
                            && seen.insert(below.clone())
                        {
                            listed.push(Listed {
                                path: below,
                                fixed: pattern.folder(),
                                captures,
                                line: String::new(),
                            });
                        }
                    }
                    None if pattern.captures(&below.to_string_lossy()).is_some() => {
                        let shown = path.display();
                        let message = format!(
                            "{shown}: expected a name in Unicode (UTF-8), found another; rename it"
                        );
                        findings.push(Finding::new(Kind::NameNotUnicode, shown, message));
                    }
                    None => {}
                }
            }
        }
        listed
    }

    /// The pictures that a list names.
    fn on_list<'a>(
        &self,
        file: &Path,
        picture: &'a Template,
        findings: &mut Vec<Finding>,
    ) -> Vec<Listed<'a>> {
        let path = self.root.join(file);
        let shown = path.display();
        let text = match halfseg_files::read_text(&path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!(
                    "{shown}: expected a list of pictures, one a line, found none to read: {error}"
                );
                findings.push(Finding::new(Kind::ListUnreadable, shown, message));
                return Vec::new();
            }
        };
        let mut listed = Vec::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let places = Places {
                picture: line,
                fixed: Path::new(""),
                captures: &[],
                line,
            };
            let name = picture.fill(&places);
            if line.split('/').any(|part| part == "..") || !self.root.join(&name).is_file() {
                let message = format!(
                    "{}: expected a picture, as line `{line}` of {shown} names it, found none",
                    self.root.join(&name).display()
                );
                findings.push(Finding::new(
                    Kind::PictureMissing,
                    self.root.join(&name).display(),
                    message,
                ));
                continue;
            }
            listed.push(Listed {
                path: name,
                fixed: Path::new(""),
                captures: Vec::new(),
                line: line.to_owned(),
            });
        }
        listed
    }

    /// The key of what would have found pictures.
    fn wanted(&self) -> String {
        match &self.source {
            Source::Patterns(patterns) => {
                let texts: Vec<_> = patterns.iter().map(Pattern::text).collect();
                format!(
                    "{}.images, `{}` in {}",
                    self.key,
                    texts.join("`, `"),
                    self.root.display()
                )
            }
            Source::List { file, .. } => self.root.join(file).display().to_string(),
        }
    }

    /// What is where pictures were looked for.
    fn found_instead(&self) -> String {
        match &self.source {
            Source::Patterns(patterns) => found_in(&self.root.join(patterns[0].folder())),
            Source::List { .. } => "found none".to_owned(),
        }
    }
}

/// What stands in the nearest folder that exists.
fn found_in(folder: &Path) -> String {
    let Some(folder) = folder.ancestors().find(|folder| folder.is_dir()) else {
        return "found nothing".to_owned();
    };
    let entries = halfseg_files::entries(folder).unwrap_or_default();
    let names = entries
        .iter()
        .take(NAMED)
        .filter_map(|path| path.file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
    match entries.len() {
        0 => format!("found nothing in {}", folder.display()),
        n if n > NAMED => format!(
            "found {} and {} more in {}",
            names.join(", "),
            n - NAMED,
            folder.display()
        ),
        _ => format!("found {} in {}", names.join(", "), folder.display()),
    }
}

impl Split {
    /// Deals the pictures of a set, in the order of a hash of their paths and the seed, so that pictures that
    /// are added later change little of who is where.
    fn shared<'a, 'b>(&'a self, listed: Vec<Listed<'b>>) -> Vec<(&'a str, Vec<Listed<'b>>)> {
        let (shares, seed) = match self {
            Self::Name(name) => return vec![(name, listed)],
            Self::Shares { shares, seed } => (shares, *seed),
        };
        let mut order: Vec<_> = listed
            .into_iter()
            .map(|listed| (hash(&listed.path, seed), listed))
            .collect();
        order.sort_by(|a, b| (a.0, &a.1.path).cmp(&(b.0, &b.1.path)));
        let all = order.len();
        let mut left = order.into_iter().map(|(_, listed)| listed);
        let (mut sum, mut before) = (0.0, 0);
        let dealt = shares.iter().map(|(name, share)| {
            sum += share;
            let end = ((sum * all as f64).round() as usize).min(all);
            let part = left.by_ref().take(end - before).collect();
            before = end;
            (name.as_str(), part)
        });
        dealt.collect()
    }
}

/// FNV-1a, the same on every machine, with its bits mixed once more (SplitMix64).
fn hash(text: &str, seed: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = text.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}
