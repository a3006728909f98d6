//! What can be wrong with a data set.

use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

use crate::DataError;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Training would fail, or its scores would say something else than they seem to.
    Error,
    /// It may be meant, and is worth a look.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $severity:ident;)*) => {
        /// What a [`Finding`] is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// As reports and `accept` write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// How bad it is, unless a definition accepts it.
            pub fn severity(self) -> Severity {
                match self { $(Self::$kind => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    /// A folder that sets name is not there.
    FolderMissing = "folder-missing", Error;
    /// No set has the split.
    SplitMissing = "split-missing", Error;
    /// A split has no picture.
    SplitEmpty = "split-empty", Error;
    /// A list of pictures cannot be read, or a line of it says nothing.
    ListUnreadable = "list-unreadable", Error;
    /// A list names a picture that is not there.
    PictureMissing = "picture-missing", Error;
    /// A picture has no mask.
    MaskMissing = "mask-missing", Error;
    /// A mask has no picture.
    MaskUnused = "mask-unused", Error;
    /// One mask belongs to several pictures.
    MaskShared = "mask-shared", Error;
    /// What is named as a mask is the picture itself.
    MaskIsPicture = "mask-is-picture", Error;
    /// A split that needs masks has none.
    NoMasks = "no-masks", Error;
    /// A name is not Unicode.
    NameNotUnicode = "name-not-unicode", Error;
    /// A picture is in two splits, by its file.
    PictureInTwoSplits = "picture-in-two-splits", Error;
    /// A picture is in a split more than once, by its file.
    PictureTwice = "picture-twice", Error;
    /// A picture cannot be read.
    PictureUnreadable = "picture-unreadable", Error;
    /// A mask cannot be read.
    MaskUnreadable = "mask-unreadable", Error;
    /// A picture or a mask has more pixels than are read.
    TooLarge = "too-large", Error;
    /// A picture has other channels, in number or depth, than the definition says.
    PictureChannels = "picture-channels", Error;
    /// Picture and mask differ in size.
    SizesDiffer = "sizes-differ", Error;
    /// A mask holds colours where values are expected, or the reverse.
    MaskFormat = "mask-format", Error;
    /// A mask is a JPEG, which changes values.
    MaskJpeg = "mask-jpeg", Error;
    /// A mask holds values that no class has.
    MaskValues = "mask-values", Error;
    /// A mask holds colours that no class has.
    MaskColors = "mask-colors", Error;
    /// Masks hold 0 and 255, and the second is not learnt.
    Mask0And255 = "mask-0-255", Error;
    /// Values begin with 1 where they should with 0.
    MaskOneBased = "mask-one-based", Error;
    /// Edges of a mask are smoothed.
    MaskSmoothed = "mask-smoothed", Error;
    /// All pixels of a split are ignored.
    AllIgnored = "all-ignored", Error;
    /// All pixels that count are of one class.
    OneClass = "one-class", Error;
    /// A class is evaluated that is never trained.
    ClassNotTrained = "class-not-trained", Error;
    /// Pictures of one content are trained on and evaluated.
    DuplicatesAcrossSplits = "duplicates-across-splits", Error;
    /// Pictures of one content have different masks.
    MasksContradict = "masks-contradict", Error;
    /// A class occurs in no mask.
    ClassAbsent = "class-absent", Warning;
    /// A class that is trained is not evaluated.
    ClassNotEvaluated = "class-not-evaluated", Warning;
    /// One class has more than 99 % of a split's pixels.
    ClassDominates = "class-dominates", Warning;
    /// A class has less than 0.01 % of the pixels that are trained on.
    ClassRare = "class-rare", Warning;
    /// More than half of a split's pixels are ignored.
    MostlyIgnored = "mostly-ignored", Warning;
    /// A mask is ignored everywhere.
    MaskIgnored = "mask-ignored", Warning;
    /// Pictures of a split have the same content.
    Duplicates = "duplicates", Warning;
    /// All pixels of a picture have one colour.
    PictureBlank = "picture-blank", Warning;
    /// A split for evaluation has few pictures.
    SplitSmall = "split-small", Warning;
    /// There is no split for evaluation.
    NoEvaluation = "no-evaluation", Warning;
    /// Pictures of 16 bits are read with 8.
    PictureDepth = "picture-depth", Note;
    /// Transparency is left out.
    PictureTransparent = "picture-transparent", Note;
    /// Pictures are smaller than the crop that is trained on.
    PictureSmall = "picture-small", Note;
    /// Checkpoints would not fit on the disk.
    Disk = "disk", Error;
    /// A training step would not fit into memory.
    Memory = "memory", Error;
    /// The device cannot be used.
    Device = "device", Error;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Something about a data set that whoever trains on it should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// The split it was found in, if it is about one.
    pub split: Option<String>,
    /// How many files, or whatever else it is about, are so.
    pub count: usize,
    /// The first of them.
    pub example: String,
    /// What was expected, what was found in the first of them, and what to do.
    pub message: String,
}

impl Finding {
    /// Of one file, or whatever else `example` names.
    pub fn new(kind: Kind, example: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self {
            kind,
            severity: kind.severity(),
            split: None,
            count: 1,
            example: example.to_string(),
            message: message.to_string(),
        }
    }

    /// Of the file that `error` is about.
    pub(super) fn of_file(kind: Kind, path: &Path, error: &DataError) -> Self {
        let kind = match error {
            DataError::TooManyPixels { .. } | DataError::Memory { .. } => Kind::TooLarge,
            DataError::Channels { .. } => Kind::PictureChannels,
            _ => kind,
        };
        Self::new(kind, path.display(), error)
    }

    /// The same, in `split`.
    pub fn within(self, split: &str) -> Self {
        Self {
            split: Some(split.to_owned()),
            ..self
        }
    }
}

impl fmt::Display for Finding {
    /// The words of doctor and of training.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}", self.message, self.kind)?;
        if let Some(split) = &self.split {
            write!(f, ", split {split}")?;
        }
        f.write_str("]")
    }
}

impl From<Finding> for DataError {
    fn from(finding: Finding) -> Self {
        Self::Finding(Box::new(finding))
    }
}

/// Findings of one kind in one split, counted.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Adds one, to another of its kind and split if there is one.
    pub(super) fn add(&mut self, finding: Finding) {
        let same =
            |other: &&mut Finding| other.kind == finding.kind && other.split == finding.split;
        match self.0.iter_mut().find(same) {
            Some(other) => other.count += finding.count,
            None => self.0.push(finding),
        }
    }

    /// Whether there is one of this kind.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.0.iter().any(|finding| finding.kind == kind)
    }

    /// Keeps those that `keep` wants.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Finding) -> bool) {
        self.0.retain(keep);
    }

    /// Worst first, else in the order of their kinds.
    pub(super) fn sorted(mut self, accepted: &[Kind]) -> Vec<Finding> {
        for finding in &mut self.0 {
            if accepted.contains(&finding.kind) {
                finding.severity = finding.severity.max(Severity::Warning);
            }
        }
        self.0
            .sort_by(|a, b| (a.severity, a.kind, &a.split).cmp(&(b.severity, b.kind, &b.split)));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_a_kind_are_counted_and_accepted_ones_are_warnings() {
        let mut findings = Findings::default();
        let of = |kind, example: &str| Finding::new(kind, example, "why").within("train");
        findings.add(of(Kind::Duplicates, "a"));
        findings.add(of(Kind::MaskMissing, "b"));
        findings.add(of(Kind::MaskMissing, "c"));
        findings.add(of(Kind::MaskUnused, "d"));
        let sorted = findings.sorted(&[Kind::MaskUnused]);
        let short = |f: &Finding| (f.kind.name(), f.severity, f.count, f.example.clone());
        let expected = [
            ("mask-missing", Severity::Error, 2, "b".to_owned()),
            ("mask-unused", Severity::Warning, 1, "d".to_owned()),
            ("duplicates", Severity::Warning, 1, "a".to_owned()),
        ];
        assert!(sorted.iter().map(short).eq(expected), "{sorted:?}");
        assert_eq!(sorted[0].to_string(), "why [mask-missing, split train]");
    }

    #[test]
    fn names_of_kinds_differ() {
        let names: std::collections::BTreeSet<_> =
            Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
