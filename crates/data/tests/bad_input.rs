//! Broken data sets are refused with the file, what was expected and what was found.

use std::path::{Path, PathBuf};

use halfseg_data::{
    Cityscapes, CropBox, DataError, Dataset, LabelMap, RgbImage, SyntheticStreets,
    write_cityscapes_layout, write_label, write_rgb,
};

fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let streets = SyntheticStreets::new(32, 16, 2, 1);
    write_cityscapes_layout(&streets, root.path(), "train", "demo").unwrap();
    let image = root
        .path()
        .join("leftImg8bit/train/demo/demo_000001_000000_leftImg8bit.png");
    let label = root
        .path()
        .join("gtFine/train/demo/demo_000001_000000_gtFine_labelIds.png");
    (root, image, label)
}

/// The error of opening the data set and reading its second sample.
fn refusal(root: &Path) -> DataError {
    match Cityscapes::open(root, "train") {
        Err(error) => error,
        Ok(dataset) => dataset.get(1).expect_err("the data set is broken"),
    }
}

fn check(error: &DataError, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

#[test]
fn a_written_data_set_reads_back_the_same() {
    let (root, ..) = tree();
    let dataset = Cityscapes::open(root.path(), "train").unwrap();
    assert_eq!(dataset.len(), 2);
    assert!(dataset.is_labelled());
    let (read, made) = (
        dataset.get(1).unwrap(),
        SyntheticStreets::new(32, 16, 2, 1).get(1).unwrap(),
    );
    assert_eq!((read.image, read.label), (made.image, made.label));
}

#[test]
fn a_missing_folder_names_the_layout() {
    let root = tempfile::tempdir().unwrap();
    check(
        &refusal(root.path()),
        &["leftImg8bit/train", "folder not found", "gtFine/<split>"],
    );
}

#[test]
fn an_empty_split_names_the_files_it_wants() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("leftImg8bit/train/demo")).unwrap();
    check(&refusal(root.path()), &["no image", "*_leftImg8bit.png"]);
}

#[test]
fn an_image_without_label_and_the_reverse_are_refused() {
    let (root, image, label) = tree();
    std::fs::remove_file(&label).unwrap();
    check(
        &refusal(root.path()),
        &["label not found", "demo_000001_000000_gtFine_labelIds.png"],
    );
    let (root, ..) = (tree().0, image);
    std::fs::remove_file(
        root.path()
            .join("leftImg8bit/train/demo/demo_000001_000000_leftImg8bit.png"),
    )
    .unwrap();
    check(
        &refusal(root.path()),
        &["image not found", "demo_000001_000000_leftImg8bit.png"],
    );
}

#[test]
fn sizes_that_differ_are_refused() {
    let (root, _, label) = tree();
    write_label(&label, &LabelMap::filled(30, 16, [7])).unwrap();
    check(
        &refusal(root.path()),
        &["labelIds.png", "(32, 16)", "(30, 16)"],
    );
}

#[test]
fn truncated_files_are_refused() {
    let (root, image, label) = tree();
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    check(
        &refusal(root.path()),
        &[
            "demo_000001_000000_leftImg8bit.png",
            "cannot be decoded as PNG",
        ],
    );
    std::fs::write(&image, &bytes).unwrap();
    let bytes = std::fs::read(&label).unwrap();
    std::fs::write(&label, &bytes[..40]).unwrap();
    check(
        &refusal(root.path()),
        &["labelIds.png", "cannot be decoded as PNG"],
    );
}

#[test]
fn damage_below_the_part_that_is_wanted_is_refused() {
    let (root, image, _) = tree();
    let dataset = Cityscapes::open(root.path(), "train").unwrap();
    let read = || {
        let first_row = CropBox {
            left: 0,
            top: 0,
            width: 32,
            height: 1,
        };
        dataset.get_part(1, &mut |_| first_row)
    };
    let part = read().unwrap().image;
    assert_eq!((part.origin, part.size), ((0, 0), (32, 16)));
    let whole = dataset.get(1).unwrap().image.into_rgb().unwrap();
    assert_eq!(part.image.into_rgb().unwrap().data, whole.row(0));

    let whole = std::fs::read(&image).unwrap();
    let mut bytes = whole.clone();
    // In the last rows: before the checksums of the pixels, of their chunk, and the chunk of the end.
    let at = bytes.len() - 12 - 4 - 4 - 8;
    bytes[at] ^= 0x10;
    std::fs::write(&image, &bytes).unwrap();
    check(&read().unwrap_err(), &["leftImg8bit.png", "decoded as PNG"]);
    std::fs::write(&image, &whole[..whole.len() - 20]).unwrap();
    check(&read().unwrap_err(), &["leftImg8bit.png", "decoded as PNG"]);
}

#[test]
fn a_broken_jpeg_is_refused() {
    let (root, image, _) = tree();
    let jpeg = image.with_extension("jpg");
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&jpeg, [0xFF, 0xD8, 0xFF, 0xE0, 0, 16]).unwrap();
    check(
        &refusal(root.path()),
        &["leftImg8bit.jpg", "cannot be decoded as JPEG"],
    );
}

#[test]
fn an_unknown_label_is_counted() {
    let (root, _, label) = tree();
    let mut map = LabelMap::filled(32, 16, [7]);
    map.data[..5].fill(77);
    write_label(&label, &map).unwrap();
    check(
        &refusal(root.path()),
        &["labelIds.png", "labelIds 0 to 33", "5 pixels of value 77"],
    );
}

#[test]
fn equal_names_of_two_cities_tell_the_city() {
    let root = tempfile::tempdir().unwrap();
    let streets = SyntheticStreets::new(32, 16, 2, 1);
    for city in ["ulm", "bonn"] {
        write_cityscapes_layout(&streets, root.path(), "train", city).unwrap();
        for kind in ["leftImg8bit", "gtFine"] {
            let folder = root.path().join(kind).join("train").join(city);
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                let name = name.replacen(city, "frame", 1);
                std::fs::copy(&path, folder.join(name)).unwrap();
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    write_cityscapes_layout(&streets, root.path(), "train", "aalen").unwrap();
    let dataset = Cityscapes::open(root.path(), "train").unwrap();
    let names: Vec<_> = (0..6).map(|i| dataset.get(i).unwrap().name).collect();
    let expected = [
        "aalen_000000_000000",
        "aalen_000001_000000",
        "bonn_frame_000000_000000",
        "bonn_frame_000001_000000",
        "ulm_frame_000000_000000",
        "ulm_frame_000001_000000",
    ];
    assert_eq!(names, expected);
    assert!(
        dataset
            .source(4)
            .ends_with("ulm/frame_000000_000000_leftImg8bit.png")
    );
}

#[test]
fn masks_of_0_and_255_are_no_train_ids() {
    let (root, ..) = tree();
    let folder = root.path().join("gtFine/train/demo");
    let write = |index: usize, values: &[u8]| {
        let name = format!("demo_{index:06}_000000_gtFine_");
        let _ = std::fs::remove_file(folder.join(format!("{name}labelIds.png")));
        let data = values.iter().copied().cycle().take(32 * 16).collect();
        let map = LabelMap {
            width: 32,
            height: 16,
            data,
        };
        write_label(&folder.join(format!("{name}labelTrainIds.png")), &map).unwrap();
    };
    write(0, &[0, 255]);
    write(1, &[255]);
    let words = [
        "demo_000000_000000_gtFine_labelTrainIds.png",
        "0 (road) and 255",
        "1 more",
    ];
    check(&refusal(root.path()), &words);
    for others in [[0, 0], [255, 13]] {
        write(0, &others);
        write(1, &[0]);
        let dataset = Cityscapes::open(root.path(), "train").unwrap();
        assert!(
            dataset
                .get(1)
                .unwrap()
                .label
                .unwrap()
                .data
                .iter()
                .all(|&id| id == 0)
        );
    }
}

/// Masks of 0 and 1, say, of which none is a class among labelIds.
#[test]
fn a_split_of_which_nearly_all_is_ignored_says_so() {
    let (root, ..) = tree();
    let folder = root.path().join("gtFine/train/demo");
    let write = |name: &str, values: &[u8]| {
        for index in 0..2 {
            let data = values.iter().copied().cycle().take(32 * 16).collect();
            let map = LabelMap {
                width: 32,
                height: 16,
                data,
            };
            let name = format!("demo_{index:06}_000000_gtFine_{name}.png");
            write_label(&folder.join(name), &map).unwrap();
        }
    };
    let notes = || Cityscapes::open(root.path(), "train").unwrap().notes();
    assert_eq!(notes(), Vec::<String>::new());
    write("labelIds", &[0, 1]);
    let found = notes();
    for words in [
        "demo_000000_000000_gtFine_labelIds.png, and 1 more",
        "100.0 %",
        "(0, 1)",
    ] {
        assert!(found[0].contains(words), "expected `{words}` in {found:?}");
    }
    // One pixel in fifty is a road.
    write("labelIds", &[&[7][..], &[1; 49]].concat());
    assert_eq!(notes(), Vec::<String>::new());
    // All of them are labelIds, too.
    write("labelIds", &(0..19).collect::<Vec<_>>());
    assert!(
        notes()[0].contains("19 values, all below 19"),
        "{:?}",
        notes()
    );
    write("labelIds", &(0..34).collect::<Vec<_>>());
    assert_eq!(notes(), Vec::<String>::new());
    for index in 0..2 {
        let name = format!("demo_{index:06}_000000_gtFine_labelIds.png");
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    write("labelTrainIds", &[255]);
    assert!(notes()[0].contains("255 is left out"), "{:?}", notes());
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_unicode_are_refused_where_they_matter() {
    use std::os::unix::ffi::OsStrExt;
    let (root, image, _) = tree();
    let beside = |name: &[u8]| image.with_file_name(std::ffi::OsStr::from_bytes(name));
    std::fs::write(beside(b"notes\xFF.txt"), "").unwrap();
    assert!(Cityscapes::open(root.path(), "train").is_ok());
    let other = beside(b"x\xFF_leftImg8bit.png");
    std::fs::copy(&image, &other).unwrap();
    check(
        &refusal(root.path()),
        &["_leftImg8bit.png", "a name in Unicode"],
    );
    std::fs::remove_file(other).unwrap();
    let city = image.parent().unwrap().parent().unwrap();
    std::fs::create_dir(city.join(std::ffi::OsStr::from_bytes(b"\xE9"))).unwrap();
    check(
        &refusal(root.path()),
        &["leftImg8bit/train/", "a name in Unicode"],
    );
}

#[test]
fn a_coloured_mask_is_refused() {
    let (root, _, label) = tree();
    write_rgb(&label, &RgbImage::filled(32, 16, [1, 2, 3])).unwrap();
    check(
        &refusal(root.path()),
        &["labelIds.png", "one 8-bit channel", "Rgb of 8 bits"],
    );
}
