//! Pictures of any number of channels at their own depth, as other programs write them.
//!
//! The files in `pictures` were written by tifffile 2026.3.3 (`planes.tif`, a plane for each channel; `deflate.tif`,
//! big-endian with predictor, the channels of a pixel together; `rgb5.tif` and `rgb4.tif`, RGB with further channels) and Pillow 13 (`grey16.png`, `lzw.tif`):
//! channel c, row y and column x of them hold `10007 c + 1009 y + 37 x` modulo 65536, `lzw.tif` the upper 8 bits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use halfseg_data::{
    Bands, Dataset, DefinedData, Definition, ImageReader, Kind, Loader, LoaderConfig, Picture,
    PictureFormat, Pipeline, SurveyOptions,
};

const WIDTH: usize = 4;
const HEIGHT: usize = 3;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/pictures")
        .join(name)
}

fn format(channels: usize, bits: u8) -> PictureFormat {
    PictureFormat::new(channels, bits, vec![0.0; channels], vec![1.0; channels]).unwrap()
}

fn values(channels: usize) -> Vec<u16> {
    let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| 1009 * y + 37 * x));
    let value = |pixel: usize, c: usize| (10007 * c + pixel) as u16;
    pixels
        .flat_map(|pixel| (0..channels).map(move |c| value(pixel, c)))
        .collect()
}

fn read(name: &str, format: &PictureFormat) -> Bands {
    match ImageReader::default().picture(&file(name), format).unwrap() {
        Picture::Bands(bands) => bands,
        Picture::Rgb(_) => panic!("{name} is no RGB of 8 bits"),
    }
}

#[cfg(feature = "tiff")]
#[test]
fn bands_in_planes_and_together_are_read_at_their_depth() {
    for name in ["planes.tif", "deflate.tif", "rgb5.tif"] {
        let bands = read(name, &format(5, 16));
        assert_eq!(
            (bands.width, bands.height, bands.channels),
            (WIDTH, HEIGHT, 5)
        );
        assert_eq!(bands.data, values(5), "{name}");
        let upper: Vec<u16> = values(5).into_iter().map(|v| v >> 8).collect();
        assert_eq!(read(name, &format(5, 8)).data, upper, "{name}");
    }
    let upper: Vec<u16> = values(1).into_iter().map(|v| v >> 8).collect();
    assert_eq!(read("lzw.tif", &format(1, 8)).data, upper);
    // A fourth channel beside colours can be one of its own, or left out.
    assert_eq!(read("rgb4.tif", &format(4, 16)).data, values(4));
    assert_eq!(read("rgb4.tif", &format(3, 16)).data, values(3));
    let colors: Vec<u8> = values(3).into_iter().map(|v| (v >> 8) as u8).collect();
    assert_eq!(
        halfseg_data::read_image(&file("rgb4.tif")).unwrap().data,
        colors
    );
    let path = file("planes.tif");
    let message = halfseg_data::read_image(&path).unwrap_err().to_string();
    assert!(message.contains("found 5 channels of 16 bits"), "{message}");
}

#[test]
fn grey_pictures_keep_sixteen_bits() {
    assert_eq!(read("grey16.png", &format(1, 16)).data, values(1));
    let upper: Vec<u16> = values(1).into_iter().map(|v| v >> 8).collect();
    assert_eq!(read("grey16.png", &format(1, 8)).data, upper);
    for (name, format, found) in [
        ("grey16.png", format(2, 16), "found 1 channel of 16 bits"),
        ("grey.jpg", format(1, 16), "found 1 channel of 8 bits"),
        ("baseline.jpg", format(1, 8), "found 3 channels of 8 bits"),
    ] {
        let error = ImageReader::default().picture(&file(name), &format);
        let message = error.unwrap_err().to_string();
        assert!(message.contains(found), "{message}");
    }
    assert_eq!(read("grey.jpg", &format(1, 8)).channels, 1);
}

/// A data set of grey pictures of 16 bits, of which each is a value and its tenfold.
fn grey_set(folder: &Path, more: &str) -> Definition {
    for i in 0..4u16 {
        let save = |name: String, depth: png::BitDepth, data: &[u8]| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 4, 4);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(depth);
            encoder
                .write_header()
                .unwrap()
                .write_image_data(data)
                .unwrap();
        };
        let value = |x: usize| (1000 + 100 * i) * if x < 2 { 1 } else { 10 };
        let pixels = (0..16).flat_map(|p| value(p % 4).to_be_bytes());
        save(
            format!("p/{i}.png"),
            png::BitDepth::Sixteen,
            &pixels.collect::<Vec<_>>(),
        );
        let mask: Vec<u8> = (0..16).map(|p| u8::from(p % 4 >= 2)).collect();
        save(format!("m/{i}.png"), png::BitDepth::Eight, &mask);
    }
    let text = format!(
        "classes = [\"low\", \"high\"]\n[pictures]\nchannels = 1\nbits = 16\n{more}\n[[sets]]\nsplit = \"train\"\n\
         images = \"p/*.png\"\nmasks = \"m/{{stem}}.png\""
    );
    Definition::parse(&text, "grey.toml", folder).unwrap()
}

#[test]
fn mean_and_deviation_are_those_of_the_pictures_unless_given() {
    let folder = tempfile::tempdir().unwrap();
    let definition = grey_set(folder.path(), "");
    let report = definition.survey(&["train"], &SurveyOptions::default());
    // Of 1150 on average and ten times that.
    let mean = report.mean.clone().unwrap();
    assert_eq!(mean, [(1150.0 + 11500.0) / 2.0]);
    let squares = (0..4).map(|i| f64::from(1000 + 100 * i).powi(2) * 101.0 / 8.0);
    let std = (squares.sum::<f64>() - mean[0] * mean[0]).sqrt();
    assert!((report.std.unwrap()[0] - std).abs() < 1e-9);

    let definition = Arc::new(definition);
    let split = DefinedData::open(&definition, &["train"], Some("train"))
        .unwrap()
        .remove(0);
    assert_eq!(split.format().mean(), [6325.0]);
    assert_eq!(split.format().std(), [std as f32]);
    assert!(
        split
            .notes()
            .iter()
            .any(|note| note.contains("pictures.mean"))
    );

    let given = Arc::new(grey_set(folder.path(), "mean = [1000]\nstd = [100]"));
    let split = DefinedData::open(&given, &["train"], Some("train"))
        .unwrap()
        .remove(0);
    assert_eq!(
        (split.format().mean(), split.format().std()),
        (&[1000.0][..], &[100.0][..])
    );
    assert!(
        !split
            .notes()
            .iter()
            .any(|note| note.contains("pictures.mean"))
    );

    // Values beyond 8 bits arrive in batches, and workers change nothing.
    let pipeline = Pipeline {
        scale: "4x4".parse().unwrap(),
        ratio: (1.0, 1.0),
        crop: "4x4".parse().unwrap(),
        flip: 0.0,
        format: split.format(),
        ..Pipeline::default()
    };
    let split = Arc::new(split);
    let batch = |workers| {
        let config = LoaderConfig {
            batch: 4,
            seed: 1,
            workers,
            queue: 1,
            start_at: 0,
        };
        Loader::new(split.clone(), pipeline.clone(), config)
            .next()
            .unwrap()
            .unwrap()
    };
    let one = batch(1);
    assert_eq!(one.images, batch(3).images);
    assert_eq!(one.images.len(), 4 * 16);
    let mut found: Vec<f32> = one.images.chunks(4).step_by(4).map(|row| row[3]).collect();
    found.sort_by(f32::total_cmp);
    assert_eq!(found, [90.0, 100.0, 110.0, 120.0]);
}

#[test]
fn pictures_of_other_channels_are_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let definition = grey_set(folder.path(), "");
    let color = halfseg_data::RgbImage::filled(4, 4, [1, 2, 3]);
    halfseg_data::write_rgb(&folder.path().join("p/0.png"), &color).unwrap();
    let report = definition.survey(&["train"], &SurveyOptions::default());
    let finding = &report.findings[0];
    assert_eq!(finding.kind, Kind::PictureChannels);
    assert!(
        finding.message.contains("expected 1 channel of 16 bits"),
        "{finding}"
    );
    assert!(
        finding.message.contains("found 3 channels of 8 bits"),
        "{finding}"
    );
}

#[cfg(feature = "tiff")]
#[test]
fn channels_and_depth_are_proposed() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..6u8 {
        for name in ["images", "masks"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let picture = folder.path().join(format!("images/{i}.tif"));
        std::fs::copy(file("planes.tif"), picture).unwrap();
        let mask = halfseg_data::LabelMap {
            width: WIDTH,
            height: HEIGHT,
            data: (0..12).map(|p| u8::from(p > 4 + i)).collect(),
        };
        let path = folder.path().join(format!("masks/{i}.png"));
        halfseg_data::write_label(&path, &mask).unwrap();
    }
    let text = halfseg_data::propose(folder.path(), folder.path()).unwrap();
    let definition = Definition::parse(&text, "own.toml", "".as_ref()).unwrap();
    let format = definition.format();
    assert_eq!((format.channels(), format.bits()), (5, 16), "{text}");
}
