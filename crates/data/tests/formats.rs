//! Pictures as other programs leave them are read, and files that promise too much are refused.

mod files;

use std::path::PathBuf;

use files::{Png, chunk, exif, flat_jpeg, progressive_jpeg, segment};
use halfseg_data::{
    Cityscapes, DataError, Dataset, ImageReader, RgbImage, SyntheticStreets, image_size,
    read_image, read_instances, read_label, write_cityscapes_layout,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("picture");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn read(&self, bytes: &[u8]) -> Result<RgbImage, DataError> {
        let path = self.file(bytes);
        let image = read_image(&path);
        if let Ok(image) = &image {
            let size = (image.width, image.height);
            assert_eq!(image_size(&path).unwrap(), size, "the size from the header");
        }
        image
    }
}

const BASELINE: &[u8] = include_bytes!("pictures/baseline.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("pictures/progressive.jpg");
const GREY: &[u8] = include_bytes!("pictures/grey.jpg");

#[test]
fn what_follows_the_end_of_a_jpeg_changes_nothing() {
    let folder = Folder::new();
    for jpeg in [BASELINE, PROGRESSIVE, GREY] {
        let expected = folder.read(jpeg).unwrap();
        assert_eq!((expected.width, expected.height), (52, 36));
        let half = &jpeg[..jpeg.len() / 2];
        let scan = [&[0xFF, 0xDA][..], &[7; 300]].concat();
        for behind in [
            &[0][..],
            &[0xFF; 9],
            PROGRESSIVE,
            BASELINE,
            half,
            &scan,
            b"\xFF\xD9",
        ] {
            let image = folder.read(&[jpeg, behind].concat()).unwrap();
            assert!(image == expected, "{} bytes behind the end", behind.len());
        }
        // Without an end, what follows does not make it whole.
        let cut = [half, &scan].concat();
        let message = folder.read(&cut).unwrap_err().to_string();
        assert!(message.contains("without its end marker"), "{message}");
    }
}

#[test]
fn segments_and_fill_bytes_before_the_picture_change_nothing() {
    let folder = Folder::new();
    let expected = folder.read(BASELINE).unwrap();
    let (start, rest) = BASELINE.split_at(2);
    let thumbnail = segment(0xE1, &[b"http://", PROGRESSIVE].concat());
    let others = [
        segment(0xFE, b"a comment"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x02and no second part"),
        segment(0xED, b"Photoshop 3.0\0 8BIM"),
        segment(0xE1, b""),
        vec![0xFF; 5],
        vec![0; 7],
        b"\0stray bytes \xFF\0 of another program".to_vec(),
        // Many of them cost no more than their bytes.
        [&segment(0xFE, b"")[..], b"\0"].concat().repeat(500_000),
        thumbnail,
    ];
    for between in others {
        let image = folder.read(&[start, &between, rest].concat()).unwrap();
        assert!(image == expected, "{:02x?}", &between[..4]);
    }
}

#[test]
fn the_first_block_of_exif_says_how_a_picture_is_turned() {
    let folder = Folder::new();
    let (start, rest) = BASELINE.split_at(2);
    let with = |blocks: &[Vec<u8>]| {
        let image = folder.read(&[start, &blocks.concat(), rest].concat());
        image.unwrap()
    };
    let (plain, turned) = (with(&[]), with(&[exif(6)]));
    assert_eq!((turned.width, turned.height), (36, 52));
    assert!(with(&[exif(6), exif(3)]) == turned);
    assert!(with(&[exif(6), exif(1)]) == turned);
    assert!(with(&[exif(1), exif(6)]) == plain);
    let other = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>");
    assert!(with(&[other, exif(6)]) == turned);
}

#[test]
fn a_picture_in_png_is_turned_as_its_exif_says_and_a_map_is_not() {
    let folder = Folder::new();
    let block = |orientation| chunk(b"eXIf", &exif(orientation)[4 + b"Exif\0\0".len()..]);
    for color in [0, 2] {
        let mut png = Png::new(3, 2, color);
        let pixels: Vec<u8> = (0..6 * png.channels() as u8).collect();
        let plain = png.file(&pixels);
        let (front, end) = plain.split_at(plain.len() - chunk(b"IEND", &[]).len());
        let behind = [front, &block(6), &block(3), end].concat();
        png.before = [block(6), block(3)].concat();
        let expected = folder.read(&plain).unwrap();
        assert_eq!((expected.width, expected.height), (3, 2));
        for bytes in [png.file(&pixels), behind] {
            let image = folder.read(&bytes).unwrap();
            assert_eq!((image.width, image.height), (2, 3));
            let turned = [3, 0, 4, 1, 5, 2]
                .map(|at| &expected.data[3 * at..][..3])
                .concat();
            assert_eq!(image.data, turned);
            if color == 0 {
                let map = read_label(&folder.file(&bytes)).unwrap();
                assert_eq!((map.width, map.height, map.data), (3, 2, pixels.clone()));
            }
        }
        png.before = block(1);
        assert!(folder.read(&png.file(&pixels)).unwrap() == expected);
    }
}

#[test]
fn sides_reach_the_formats_ends() {
    let folder = Folder::new();
    for (width, height) in [(65_535, 1), (1, 65_535), (65_535, 9), (17_000, 300)] {
        let image = folder.read(&flat_jpeg(width, height)).unwrap();
        assert_eq!((image.width, image.height), (width.into(), height.into()));
        assert!(image.data.iter().all(|&value| value == 128));
    }
    for (width, height) in [(65_535, 3), (3, 65_535), (200_000, 2)] {
        for (color, interlaced) in [(0, false), (2, false), (2, true), (6, false), (6, true)] {
            let png = Png {
                interlaced,
                ..Png::new(width, height, color)
            };
            let n = png.channels();
            let pixels: Vec<u8> = (0..width * height * n as u32)
                .map(|i| (i % 251) as u8)
                .collect();
            let image = folder.read(&png.file(&pixels)).unwrap();
            assert_eq!(
                (image.width, image.height),
                (width as usize, height as usize)
            );
            for (pixel, source) in image.data.chunks(3).zip(pixels.chunks(n)) {
                assert_eq!(
                    pixel,
                    [source[0], source[n.min(3) / 2], source[n.min(3) - 1]]
                );
            }
        }
    }
}

/// The file that a picture of any colours was made from is read alike, whatever its passes.
#[test]
fn interlaced_pictures_and_maps_equal_plain_ones() {
    let folder = Folder::new();
    for (width, height) in [(1, 1), (2, 5), (9, 3), (33, 17), (64, 64)] {
        for color in [0, 2, 4, 6] {
            let mut png = Png::new(width, height, color);
            let count = width as usize * height as usize * png.channels();
            let pixels: Vec<u8> = (0..count).map(|i| (i * 97 % 256) as u8).collect();
            let plain = folder.read(&png.file(&pixels)).unwrap();
            png.interlaced = true;
            assert!(
                folder.read(&png.file(&pixels)).unwrap() == plain,
                "{width}x{height} {color}"
            );
            if color == 0 {
                let map = read_label(&folder.file(&png.file(&pixels))).unwrap();
                assert_eq!(map.data, pixels);
            }
        }
    }
}

#[test]
fn headers_that_promise_more_than_fits_are_refused_before_memory_is_taken() {
    let folder = Folder::new();
    let refused = |bytes: &[u8], words: &str| {
        let path = folder.file(bytes);
        for message in [
            read_image(&path).unwrap_err().to_string(),
            image_size(&path).unwrap_err().to_string(),
            read_label(&path).unwrap_err().to_string(),
            read_instances(&path).unwrap_err().to_string(),
        ] {
            assert!(
                message.contains("picture: ") && message.contains(words),
                "{message}"
            );
        }
    };
    for interlaced in [false, true] {
        let png = |width, height| Png {
            interlaced,
            ..Png::new(width, height, 0)
        };
        refused(
            &png(1 << 16, 1 << 16).file_of(&[0; 99]),
            "at most 1073741824 pixels, found 65536",
        );
        refused(
            &png(1 << 31 >> 1, 2).file_of(&[0; 99]),
            "at most 1073741824 pixels",
        );
        refused(
            &png(1 << 14, 1 << 16).file_of(&[0; 99]),
            "16384x65536 pixels in",
        );
    }
    for (bytes, words) in [
        (
            flat_jpeg(65_535, 65_535),
            "at most 1073741824 pixels, found 65535x65535",
        ),
        (
            [&flat_jpeg(30_000, 30_000)[..200], &[0xFF, 0xD9]].concat(),
            "30000x30000 pixels in 202 bytes",
        ),
    ] {
        let message = folder.read(&bytes).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

/// Scans of a few bytes each pass over all pixels again.
#[test]
fn scans_without_end_are_refused_before_they_take_time() {
    let folder = Folder::new();
    // As many scans as programs write, and more.
    for scans in [10, 90] {
        let image = folder.read(&progressive_jpeg(2048, 1024, scans)).unwrap();
        assert!(image.data.iter().all(|&value| value == 128));
    }
    let refused = |width, height, scans, words: &str| {
        let message = folder
            .read(&progressive_jpeg(width, height, scans))
            .unwrap_err()
            .to_string();
        assert!(message.contains(words), "{message}");
    };
    refused(2048, 1024, 200, "scans");
    refused(24_576, 16_384, 90, "91 scans of 24576x16384 pixels");
}

#[test]
fn a_limit_of_ones_own_is_held() {
    let folder = Folder::new();
    let png = Png::new(10, 10, 0).file(&[7; 100]);
    let reader = |max_pixels| ImageReader { max_pixels };
    for file in [png, flat_jpeg(10, 10)] {
        let path = folder.file(&file);
        assert!(reader(100).image(&path).is_ok());
        let message = reader(99).image(&path).unwrap_err().to_string();
        assert!(
            message.contains("at most 99 pixels, found 10x10"),
            "{message}"
        );
    }
    let root = tempfile::tempdir().unwrap();
    let streets = SyntheticStreets::new(32, 16, 1, 1);
    write_cityscapes_layout(&streets, root.path(), "val", "ulm").unwrap();
    let read = |max_pixels| {
        let dataset = Cityscapes::open(root.path(), "val").unwrap();
        dataset.with_reader(reader(max_pixels)).get(0)
    };
    assert!(read(512).is_ok());
    let error = read(511).unwrap_err().to_string();
    assert!(
        error.contains("leftImg8bit.png: expected at most 511 pixels"),
        "{error}"
    );
}

#[test]
fn palettes_of_odd_lengths_are_refused() {
    let folder = Folder::new();
    for bytes in [0, 1, 2, 254, 255, 256, 768, 769, 771] {
        let mut png = Png::new(2, 2, 3);
        png.before = chunk(b"PLTE", &vec![9; bytes]);
        let read = folder.read(&png.file(&[0; 4]));
        assert_eq!(
            read.is_ok(),
            [255, 768].contains(&bytes),
            "{bytes}: {read:?}"
        );
    }
    let mut png = Png::new(2, 2, 3);
    png.before = [chunk(b"PLTE", &[9; 6]), chunk(b"tRNS", &[0; 9])].concat();
    // More transparency than colours is ignored: colours are what counts here.
    assert_eq!(folder.read(&png.file(&[0; 4])).unwrap().data, [9; 12]);
}

#[cfg(unix)]
#[test]
fn pipes_devices_and_folders_are_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("x.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    for path in [pipe.as_path(), "/dev/zero".as_ref(), folder.path()] {
        for message in [
            read_image(path).unwrap_err().to_string(),
            read_label(path).unwrap_err().to_string(),
        ] {
            assert!(message.contains("expected a regular file"), "{message}");
        }
    }
}

/// Names the picture that [`read_with_little_memory`] reads.
#[cfg(target_os = "linux")]
const LARGE: &str = "HALFSEG_TEST_LARGE_PICTURE";

#[cfg(target_os = "linux")]
#[test]
fn pictures_beyond_memory_are_refused_by_name() {
    let folder = Folder::new();
    // 30 million pixels in 30 KB: 90 MB as RGB, 60 MB as instances.
    let (width, height) = (6_000, 5_000);
    let path = folder.file(&Png::new(width, height, 0).file(&vec![7; 30_000_000]));
    let program = std::env::current_exe().unwrap();
    let mut refused = 0;
    for megabytes in [120, 150, 180, 1000] {
        let limit = format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes * 1000);
        let output = std::process::Command::new("sh")
            .args(["-c", &limit])
            .arg(&program)
            .args(["--ignored", "--exact", "read_with_little_memory"])
            .args(["--test-threads", "1", "--nocapture"])
            .env(LARGE, &path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{megabytes} MB: {}, {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        refused += usize::from(said.contains("does not give"));
    }
    assert!(refused > 0 && refused < 4, "{refused} of 4 were refused");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "runs in a process of its own"]
fn read_with_little_memory() {
    let Some(path) = std::env::var_os(LARGE).map(PathBuf::from) else {
        return;
    };
    let errors = [
        read_image(&path).err(),
        read_label(&path).err(),
        read_instances(&path).err(),
    ];
    for message in errors.into_iter().flatten().map(|error| error.to_string()) {
        assert!(message.contains("picture: its pixels take"), "{message}");
        println!("{message}");
    }
}
