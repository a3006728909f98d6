//! Reading a data set once, on all cores, and what is found there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Definition;
use super::facts::{Facts, MaskFacts};
use super::finding::{Finding, Findings, Kind};
use super::listing::{Item, Listing};
use super::report::{Report, Totals};
use super::samples::no_masks;
use crate::{Crop, IGNORE};

/// Share of a split's pixels that one class has where it is too much to learn anything else by chance.
const DOMINATES: f64 = 0.99;
/// Share of the pixels below which a class is rare.
const RARE: f64 = 1e-4;
/// Pictures below which scores of a split say little.
const FEW: usize = 10;

/// How a data set is looked at.
#[derive(Clone, Copy, Default)]
pub struct SurveyOptions<'a> {
    /// The split that is trained on, if one is; the others are evaluated.
    pub train: Option<&'a str>,
    /// Pairs of each split that are read, spread over it; all unless given.
    pub most: Option<usize>,
    /// What training cuts out of pictures.
    pub crop: Option<Crop>,
    /// Called with the number of pairs that have been read, and of all.
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
}

impl Definition {
    /// Reads pictures and masks of `splits`, each once, on all cores, and tells what is wrong with them.
    pub fn survey(&self, splits: &[&str], options: &SurveyOptions<'_>) -> Report {
        let mut listing = self.list(splits);
        self.survey_listed(&mut listing, splits, options)
    }

    /// [`survey`](Self::survey) of what is listed already.
    pub(super) fn survey_listed(
        &self,
        listing: &mut Listing,
        splits: &[&str],
        options: &SurveyOptions<'_>,
    ) -> Report {
        let mut findings = std::mem::take(&mut listing.findings);
        let mut work = Vec::new();
        for split in splits {
            let items = &listing.splits[*split];
            let count = options.most.unwrap_or(usize::MAX).min(items.len());
            work.extend((0..count).map(|i| (*split, &items[i * items.len() / count])));
        }
        let facts = self.facts(&work, options);
        let mut by_split: Vec<Totals> = Vec::new();
        for split in splits {
            let items = &listing.splits[*split];
            let read = work.iter().zip(&facts).filter(|((of, _), _)| of == split);
            let mut totals = Totals::new(split, items.len(), self.classes().len());
            for ((_, item), facts) in read {
                match facts {
                    Ok(facts) => {
                        totals.add(facts);
                        self.look_at(item, facts, options, &mut |f| findings.add(f.within(split)));
                    }
                    Err(finding) => findings.add(finding.clone().within(split)),
                }
            }
            let unmasked = items.iter().find(|item| item.mask.is_none());
            if let Some(item) = unmasked.filter(|_| options.train == Some(split)) {
                findings.add(no_masks(split, item));
            }
            by_split.push(totals);
        }
        compare_contents(&work, &facts, &mut findings);
        self.look_at_values(&work, &facts, &mut findings);
        self.look_at_classes(&by_split, options, &mut findings);
        Report::new(
            self,
            by_split,
            findings.sorted(&self.accepted),
            options.train,
        )
    }

    /// Reads all of `work`, in parallel, and gives what is found in its order.
    fn facts(
        &self,
        work: &[(&str, &Item)],
        options: &SurveyOptions<'_>,
    ) -> Vec<Result<Facts, Finding>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let read = || {
            let mut found = Vec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some((_, item)) = work.get(place) else {
                    return found;
                };
                found.push((place, self.look_into(item)));
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if let Some(progress) = options.progress {
                    progress(done, work.len());
                }
            }
        };
        let mut all = std::thread::scope(|scope| {
            let others = (1..threads.min(work.len())).map(|_| {
                // Where the system gives no thread, there is one less.
                std::thread::Builder::new().spawn_scoped(scope, read).ok()
            });
            let others: Vec<_> = others.collect();
            let mut all = read();
            for other in others.into_iter().flatten() {
                all.extend(
                    other
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                );
            }
            all
        });
        all.sort_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, facts)| facts).collect()
    }

    /// What one pair shows.
    fn look_at(
        &self,
        item: &Item,
        facts: &Facts,
        options: &SurveyOptions<'_>,
        add: &mut dyn FnMut(Finding),
    ) {
        let shown = item.image.display();
        let shown = &shown;
        let mut of_picture = |kind, message: String| add(Finding::new(kind, shown, message));
        if facts.blank && facts.size != (1, 1) {
            let message = format!("{shown}: expected a picture, found one colour everywhere");
            of_picture(Kind::PictureBlank, message);
        }
        if facts.deep {
            let message = format!(
                "{shown}: has 16 bits a channel, of which the upper 8 are read; pictures.bits = 16 keeps them"
            );
            of_picture(Kind::PictureDepth, message);
        }
        if facts.transparent {
            let message = format!("{shown}: has transparency, which is left out");
            of_picture(Kind::PictureTransparent, message);
        }
        let (width, height) = facts.size;
        if let Some(crop) = options
            .crop
            .filter(|crop| width < crop.width || height < crop.height)
        {
            let message = format!(
                "{shown}: has {width}x{height} pixels (width x height), smaller than the crop of {crop} (height x \
                 width), which is filled up with ignored pixels unless data.scale enlarges the picture"
            );
            of_picture(Kind::PictureSmall, message);
        }
        let ignored = |mask: &MaskFacts| mask.classes.iter().all(|(class, _)| *class == IGNORE);
        if let (Some(mask), Some(path)) = (&facts.mask, &item.mask)
            && ignored(mask)
        {
            let shown = path.display();
            let message =
                format!("{shown}: expected some pixels of classes, found ignored ones only");
            add(Finding::new(Kind::MaskIgnored, shown, message));
        }
    }

    /// Finds masks of 0 and 255 of which one half would not be learnt.
    fn look_at_values(
        &self,
        work: &[(&str, &Item)],
        facts: &[Result<Facts, Finding>],
        findings: &mut Findings,
    ) {
        let masks = facts.iter().zip(work).filter_map(|(facts, (split, item))| {
            let mask = facts.as_ref().ok()?.mask.as_ref()?;
            Some((split, item.mask.as_ref()?, &mask.values))
        });
        let mut first = None;
        let mut both = [false; 2];
        for (split, path, values) in masks {
            if values.keys().any(|value| ![0, 255].contains(value)) {
                return;
            }
            both[0] |= values.contains_key(&0);
            both[1] |= values.contains_key(&255);
            let (_, _, count) = first.get_or_insert((split, path, 0));
            *count += 1;
        }
        let Some((split, path, count)) = first.filter(|_| both == [true; 2]) else {
            return;
        };
        if self.mapping.is_index() && self.mapping.ignores(255) {
            let shown = path.display();
            let message = format!(
                "{shown}: expected the values of several classes, found that masks hold 0 and 255 only, and 255 is \
                 ignored: nothing but `{}` would be learnt; where 255 means a class, say so with masks.encoding = \
                 \"ids\", values = [0] for the one class and [255] for the other",
                self.classes().names()[0]
            );
            let finding = Finding::new(Kind::Mask0And255, shown, message).within(split);
            findings.add(Finding { count, ..finding });
        }
    }

    /// What the splits' classes show.
    fn look_at_classes(
        &self,
        splits: &[Totals],
        options: &SurveyOptions<'_>,
        findings: &mut Findings,
    ) {
        let names = self.classes().names();
        for split in splits.iter().filter(|split| split.labelled > 0) {
            let of_classes: u64 = split.pixels.iter().sum();
            let all = of_classes + split.ignored;
            let mut add = |kind, example: &str, message| {
                findings.add(Finding::new(kind, example, message).within(&split.name));
            };
            if of_classes == 0 {
                let message = format!(
                    "split {}: expected pixels of classes, found that all of {} masks are ignored",
                    split.name, split.labelled
                );
                add(Kind::AllIgnored, &split.name, message);
                continue;
            }
            if split.ignored * 2 > all {
                let share = 100.0 * split.ignored as f64 / all as f64;
                let message = format!(
                    "split {}: {share:.1} % of the pixels are ignored",
                    split.name
                );
                add(Kind::MostlyIgnored, &split.name, message);
            }
            let (class, most) = (0..names.len())
                .map(|i| (i, split.pixels[i]))
                .max_by_key(|x| x.1)
                .unwrap_or_default();
            let share = most as f64 / of_classes as f64;
            if most == of_classes && split.is_complete() && options.train == Some(&split.name) {
                if !findings.has(Kind::Mask0And255) {
                    let message = format!(
                        "split {}: expected pixels of two classes or more, found `{}` only: a network would learn to say \
                         that everywhere",
                        split.name, names[class]
                    );
                    findings.add(
                        Finding::new(Kind::OneClass, names[class], message).within(&split.name),
                    );
                }
            } else if share > DOMINATES {
                let message = format!(
                    "split {}: `{}` has {:.2} % of the pixels: a network that says so everywhere seems good; look at the \
                     IoU of the other classes, and weigh classes or crop around them",
                    split.name,
                    names[class],
                    100.0 * share
                );
                findings.add(
                    Finding::new(Kind::ClassDominates, names[class], message).within(&split.name),
                );
            }
        }
        let Some(train) = splits
            .iter()
            .find(|split| options.train == Some(&split.name))
        else {
            return;
        };
        let others: Vec<_> = splits
            .iter()
            .filter(|split| split.name != train.name)
            .collect();
        if others.is_empty() {
            let message = format!(
                "{}: expected a split to evaluate on beside {}, found none: nobody would know how good the network is",
                self.origin(),
                train.name
            );
            findings.add(Finding::new(Kind::NoEvaluation, &train.name, message));
        }
        for other in &others {
            if (1..FEW).contains(&other.pictures) {
                let message = format!(
                    "split {}: its scores are those of {} picture(s)",
                    other.name, other.pictures
                );
                findings
                    .add(Finding::new(Kind::SplitSmall, &other.name, message).within(&other.name));
            }
        }
        let of_train: u64 = train.pixels.iter().sum();
        let evaluated = |class: usize| others.iter().find(|split| split.pixels[class] > 0);
        let complete = train.is_complete() && train.labelled > 0;
        for (class, name) in names.iter().enumerate() {
            let trained = train.pixels[class];
            let all_read = complete && others.iter().all(|split| split.is_complete());
            if trained == 0
                && complete
                && of_train > 0
                && let Some(other) = evaluated(class)
            {
                let message = format!(
                    "class `{name}`: expected pixels in split {}, found some in {} only: it would be scored and never learnt",
                    train.name, other.name
                );
                findings
                    .add(Finding::new(Kind::ClassNotTrained, name, message).within(&train.name));
            } else if trained == 0 && all_read {
                let message = format!("class `{name}`: no mask has it");
                findings.add(Finding::new(Kind::ClassAbsent, name, message));
            } else if trained > 0 && all_read && !others.is_empty() && evaluated(class).is_none() {
                let message = format!(
                    "class `{name}`: learnt from split {}, and in no split that is scored",
                    train.name
                );
                findings.add(Finding::new(Kind::ClassNotEvaluated, name, message));
            } else if trained > 0 && complete && (trained as f64) < RARE * of_train as f64 {
                let message = format!(
                    "class `{name}`: has {trained} of {of_train} pixels in split {}: weigh it, or crop around it",
                    train.name
                );
                findings.add(Finding::new(Kind::ClassRare, name, message).within(&train.name));
            }
        }
    }
}

/// Finds pictures of one content.
fn compare_contents(
    work: &[(&str, &Item)],
    facts: &[Result<Facts, Finding>],
    findings: &mut Findings,
) {
    let mut first = HashMap::new();
    for ((split, item), facts) in work.iter().zip(facts) {
        let Ok(facts) = facts else { continue };
        // Said already, of each of them.
        if facts.blank {
            continue;
        }
        let mask = facts.mask.as_ref().map(|mask| mask.checksum);
        let content = (facts.checksum, facts.size, &facts.moments);
        let Some(&(of, other, other_mask)) = first.get(&content) else {
            first.insert(content, (*split, *item, mask));
            continue;
        };
        // The same file is found by its name.
        if other.image == item.image {
            continue;
        }
        let (shown, there) = (&item.image.display(), other.image.display());
        if of != *split {
            let message = format!(
                "{shown}: expected pictures that {of} does not have, found the content of {there}: scores of {split} would \
                 be too good"
            );
            findings.add(Finding::new(Kind::DuplicatesAcrossSplits, shown, message).within(split));
        } else {
            let message = format!("{shown}: has the content of {there}");
            findings.add(Finding::new(Kind::Duplicates, shown, message).within(split));
        }
        if mask != other_mask {
            let message = format!(
                "{shown}: expected the mask of {there}, which has the same content, found another"
            );
            findings.add(Finding::new(Kind::MasksContradict, shown, message).within(split));
        }
    }
}
