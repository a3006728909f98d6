//! What the names of listed files contradict.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::finding::{Finding, Kind};
use super::listing::{Listing, Set, Source};
use super::slashed;

/// Finds masks that no picture has, of whatever split. Of sets with lists none is expected to have one.
pub(super) fn check_masks_used(sets: &[&Set], listing: &mut Listing, splits: &[&str]) {
    let all = || listing.splits.values().flatten();
    let known: HashSet<&Path> = all()
        .flat_map(|item| [Some(&*item.image), item.mask.as_deref()])
        .flatten()
        .collect();
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let sets = sets
        .iter()
        .filter(|set| matches!(set.source, Source::Patterns(_)));
    for (set, template) in
        sets.flat_map(|set| set.masks.iter().map(move |template| (set, template)))
    {
        let folder = set.root.join(template.folder());
        let (Some(pattern), true) = (template.pattern(), folder.is_dir()) else {
            continue;
        };
        for path in halfseg_files::walk_visible(&folder, |_, e| e).unwrap_or_default() {
            let below = path.strip_prefix(&set.root).ok().and_then(slashed);
            let fits = below.is_some_and(|below| pattern.is_match(&below));
            if fits && !known.contains(&*path) && seen.insert(path.clone()) {
                let shown = path.display();
                let message = format!(
                    "{shown}: expected a picture for this mask, found none that {}.masks leads from to it",
                    set.key
                );
                found.push(
                    Finding::new(Kind::MaskUnused, shown, message).within(set.first_of(splits)),
                );
            }
        }
    }
    found
        .into_iter()
        .for_each(|finding| listing.findings.add(finding));
}

/// Finds files that are in a split more than once, or in several.
pub(super) fn check_repeated(listing: &mut Listing) {
    let mut places: HashMap<&Path, &str> = HashMap::new();
    let mut masks: HashMap<&Path, &Path> = HashMap::new();
    let mut found = Vec::new();
    for (split, items) in &listing.splits {
        for item in items {
            let shown = item.image.display();
            match places.insert(&item.image, split) {
                Some(before) if before == split => {
                    let message =
                        format!("{shown}: expected each picture once in a split, found it again");
                    found.push(Finding::new(Kind::PictureTwice, shown, message).within(split));
                    continue;
                }
                Some(before) => {
                    let message = format!(
                        "{shown}: expected each picture in one split, found it in {before} and {split}: scores would be \
                         those of pictures that were trained on"
                    );
                    found.push(Finding::new(Kind::PictureInTwoSplits, shown, message));
                    continue;
                }
                None => {}
            }
            let Some(mask) = &item.mask else { continue };
            if *mask == item.image {
                let message = format!(
                    "{shown}: expected a mask beside the picture, found that masks names the picture"
                );
                found.push(Finding::new(Kind::MaskIsPicture, shown, message).within(split));
            } else if let Some(other) = masks.insert(mask, &item.image) {
                let message = format!(
                    "{}: expected a mask for one picture, found {} and {shown}",
                    mask.display(),
                    other.display()
                );
                found.push(Finding::new(Kind::MaskShared, mask.display(), message).within(split));
            }
        }
    }
    found
        .into_iter()
        .for_each(|finding| listing.findings.add(finding));
}
