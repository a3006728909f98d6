//! Descriptions of other programs as definitions, down to the pictures that they name.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use halfseg_data::{
    Classes, Dataset, DefinedData, Definition, IGNORE, LabelMap, RgbImage, convert, write_label,
    write_rgb,
};

/// A picture and its mask, of these four values.
fn pair(root: &Path, picture: &str, mask: &str, values: [u8; 4]) {
    let [picture, mask] = [picture, mask].map(|name| root.join(name));
    for file in [&picture, &mask] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
    }
    // No two are alike.
    let seed = picture
        .to_string_lossy()
        .bytes()
        .map(u32::from)
        .sum::<u32>() as u8;
    let data = (0..12).map(|i| (i * 20) ^ seed).collect();
    write_rgb(
        &picture,
        &RgbImage {
            width: 2,
            height: 2,
            data,
        },
    )
    .unwrap();
    let data = values.to_vec();
    write_label(
        &mask,
        &LabelMap {
            width: 2,
            height: 2,
            data,
        },
    )
    .unwrap();
}

/// The definition that `description` in `folder` becomes.
fn converted(folder: &Path, description: &str, classes: Option<&str>) -> (Definition, String) {
    let classes = classes.map(|name| folder.join(name));
    let found = convert(&folder.join(description), classes.as_deref(), None).unwrap();
    let text = found.to_toml(found.root());
    (
        Definition::parse(&text, "own.toml", "".as_ref()).unwrap(),
        text,
    )
}

/// The classes of the pixels of all masks of a split.
fn labels(definition: &Definition, split: &str) -> Vec<Vec<u8>> {
    let definition = Arc::new(definition.clone());
    let split = DefinedData::open(&definition, &[split], None)
        .unwrap()
        .remove(0);
    (0..split.len())
        .map(|i| split.get(i).unwrap().label.unwrap().data)
        .collect()
}

fn refused(folder: &Path, name: &str, text: &str, expected: &str) {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    let message = convert(&path, None, None).unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn data_yaml_of_ultralytics() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("streets");
    pair(
        &root,
        "images/train/a/1.png",
        "annotations/train/a/1.png",
        [0, 1, 2, 255],
    );
    pair(
        &root,
        "images/val/2.png",
        "annotations/val/2.png",
        [2, 2, 1, 1],
    );
    let description = "# Streets\npath: streets\ntrain: images/train # 1 picture\nval: images/val\ntest:\n\
                       masks_dir: annotations\n\nnames:\n  0: wall\n  1: 'the sky'\n\nlabel_mapping:\n  -1: ignore_label\n  \
                       0: ignore_label\n  1: 0\n  2: 1\n\ndownload: |\n  print('nothing: here')\n";
    fs::write(folder.path().join("data.yaml"), description).unwrap();
    let (definition, text) = converted(folder.path(), "data.yaml", None);
    assert_eq!(definition.classes().names(), ["wall", "the sky"]);
    assert_eq!(definition.splits(), ["train", "val"]);
    assert_eq!(
        labels(&definition, "train"),
        [[IGNORE, 0, 1, IGNORE]],
        "{text}"
    );
    assert_eq!(labels(&definition, "val"), [[1, 1, 0, 0]]);

    // The file beside the data, masks in the folder that is looked for, values that are classes.
    let root = folder.path().join("export");
    pair(
        &root,
        "train/images/1.png",
        "train/masks/1.png",
        [0, 1, 1, 255],
    );
    fs::create_dir(root.join("masks")).unwrap();
    fs::write(
        root.join("data.yaml"),
        "train: ../train/images\nnames: [a, b]\nnc: 2\n",
    )
    .unwrap();
    let (definition, text) = converted(&root, "data.yaml", None);
    assert!(text.contains("encoding = \"index\""), "{text}");
    assert_eq!(labels(&definition, "train"), [[0, 1, 1, IGNORE]]);

    let no_masks = "path: nowhere\ntrain: images/train\nnames: [a, b]\n";
    refused(folder.path(), "a.yaml", no_masks, "polygons");
    let listed = "train: train.txt\nnames: [a, b]\nmasks_dir: masks\n";
    refused(folder.path(), "b.yaml", listed, "`train` in");
    let gap = "train: images/train\nnames: {0: a, 2: b}\nmasks_dir: masks\n";
    refused(
        folder.path(),
        "c.yaml",
        gap,
        "a name for each number from 0",
    );
    refused(folder.path(), "d.json", "{}", "data.yaml of Ultralytics");
    let channels =
        "path: streets\ntrain: images/train\nnames: [a, b]\nmasks_dir: masks\nchannels: 10\n";
    fs::write(folder.path().join("e.yaml"), channels).unwrap();
    let (definition, _) = converted(folder.path(), "e.yaml", None);
    assert_eq!(definition.format().channels(), 10);
}

const PIPELINE: &str = "train_pipeline = [\n    dict(type='LoadImageFromFile'),\n    \
                        dict(type='LoadAnnotations', reduce_zero_label=True),\n]\n\
                        views = [[dict(scale=r) for r in [1, 2]]]\n";

#[test]
fn configurations_of_mmsegmentation() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ade");
    for (part, mask) in [("training", [0, 1, 150, 2]), ("validation", [1, 1, 3, 3])] {
        let name = format!("{part}/x/1");
        pair(
            &root,
            &format!("images/{name}.jpg"),
            &format!("annotations/{name}.png"),
            mask,
        );
    }
    let base = format!(
        "dataset_type = 'ADE20KDataset'\ndata_root = '{}'\n{PIPELINE}\
         train_dataloader = dict(batch_size=4, dataset=dict(\n    type=dataset_type,\n    data_root=data_root,\n    \
         data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),\n    \
         pipeline=train_pipeline))\n\
         val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root,\n    \
         data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))\n\
         test_dataloader = val_dataloader\n",
        root.display()
    );
    fs::create_dir_all(folder.path().join("_base_/datasets")).unwrap();
    fs::write(folder.path().join("_base_/datasets/ade.py"), base).unwrap();
    let config = "_base_ = ['_base_/models/fcn.py', '_base_/datasets/ade.py']\ntrain_dataloader = dict(batch_size=2)\n";
    fs::write(folder.path().join("config.py"), config).unwrap();
    let (definition, text) = converted(folder.path(), "config.py", None);
    assert_eq!(definition.classes().len(), 150);
    assert_eq!(definition.classes().names()[..2], ["wall", "building"]);
    assert_eq!(definition.splits(), ["train", "val"], "{text}");
    assert_eq!(labels(&definition, "train"), [[IGNORE, 0, 149, 1]]);
    assert_eq!(labels(&definition, "val"), [[0, 0, 2, 2]]);

    // Some classes of a known data set, of which a list names pictures, several times.
    let root = folder.path().join("voc");
    pair(
        &root,
        "JPEGImages/a.jpg",
        "SegmentationClass/a.png",
        [0, 15, 7, 255],
    );
    fs::write(root.join("train.txt"), "a\n").unwrap();
    let config = format!(
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', times=3, dataset=dict(\n    type='PascalVOCDataset', \
         data_root='{}', ann_file='train.txt',\n    metainfo=dict(classes=('person', 'background')),\n    \
         data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'))))\n",
        root.display()
    );
    fs::write(folder.path().join("voc.py"), config).unwrap();
    let (definition, text) = converted(folder.path(), "voc.py", None);
    let person = Classes::new([
        ("person".into(), Some([192, 128, 128])),
        ("background".into(), Some([0, 0, 0])),
    ]);
    assert_eq!(*definition.classes(), person, "{text}");
    assert_eq!(
        labels(&definition, "train"),
        vec![vec![1, 0, IGNORE, IGNORE]; 3]
    );
}

#[test]
fn classes_of_ones_own_in_mmsegmentation() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("cracks");
    pair(&root, "img/a_photo.png", "ann/a_mask.png", [0, 1, 1, 255]);
    let class = "from mmseg.registry import DATASETS\n\n@DATASETS.register_module()\n\
                 class CrackDataset(BaseSegDataset):\n    METAINFO = dict(\n        classes=('wall', 'crack'),\n        \
                 palette=[[1, 2, 3], [255, 64, 64]])\n\n    def __init__(self,\n                 img_suffix: str='_photo.png',\n\
                 \x20                seg_map_suffix='_mask.png',\n                 reduce_zero_label=False,\n\
                 \x20                **kwargs) -> None:\n        pass\n";
    fs::write(folder.path().join("crack.py"), class).unwrap();
    // As MMSegmentation 0.x wrote it.
    let config = format!(
        "data_root = '{}'\ndata = dict(samples_per_gpu=2, train=dict(type='CrackDataset', data_root=data_root,\n    \
         img_dir='img', ann_dir='ann'))\n",
        root.display()
    );
    fs::write(folder.path().join("config.py"), &config).unwrap();
    let message = convert(&folder.path().join("config.py"), None, None)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("METAINFO") || message.contains("metainfo"),
        "{message}"
    );
    let (definition, text) = converted(folder.path(), "config.py", Some("crack.py"));
    assert_eq!(definition.classes().names(), ["wall", "crack"]);
    assert_eq!(definition.classes().colors(), [[1, 2, 3], [255, 64, 64]]);
    assert_eq!(labels(&definition, "train"), [[0, 1, 1, IGNORE]], "{text}");

    refused(
        folder.path(),
        "model.py",
        "model = dict(type='EncoderDecoder')\n",
        "train_dataloader",
    );
    let computed = "train_dataloader = dict(dataset=dict(type='X', data_root=root + '/a'))\n";
    refused(folder.path(), "computed.py", computed, "train_dataloader");
    let foreign = config.replace("img_dir='img', ", "");
    let path = folder.path().join("foreign.py");
    fs::write(&path, foreign).unwrap();
    let classes = folder.path().join("crack.py");
    let message = convert(&path, Some(&classes), None)
        .unwrap_err()
        .to_string();
    assert!(message.contains("data_prefix"), "{message}");
}
