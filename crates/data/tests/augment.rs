//! Augmentations against what MMSegmentation and OpenCV made of the same pictures (`record_augment.py`).

use std::path::Path;

use halfseg_data::{
    Augmented, Bands, Choices, CropBox, LabelMap, Photometric, Picture, PictureFormat, PictureRef,
    Pipeline, RgbImage,
};
use serde_json::Value;

struct Recording(Value);

impl Recording {
    fn read() -> Self {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/augment.json");
        let file = std::env::var_os("HALFSEG_AUGMENT").map_or(committed, Into::into);
        Self(serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap())
    }

    fn size(&self) -> (usize, usize) {
        let size = values(&self.0["size"]);
        (size[0].into(), size[1].into())
    }

    fn image(&self) -> RgbImage {
        let (width, height) = self.size();
        let data = bytes(&self.0["image"]);
        RgbImage {
            width,
            height,
            data,
        }
    }

    fn bands(&self) -> Bands {
        let (width, height) = self.size();
        let data = values(&self.0["bands"]);
        Bands {
            width,
            height,
            channels: 5,
            data,
        }
    }

    fn label(&self) -> LabelMap {
        let (width, height) = self.size();
        let data = bytes(&self.0["label"]);
        LabelMap {
            width,
            height,
            data,
        }
    }

    /// What the pipeline makes of a picture at its own size, pixel by pixel, and of the labels.
    fn made<'a>(
        &self,
        picture: impl Into<PictureRef<'a>>,
        bits: u8,
        augmented: Augmented,
    ) -> (Vec<u16>, Vec<u8>) {
        let picture = picture.into();
        let (size, channels) = (self.size(), picture.channels());
        let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
        let pipeline = Pipeline {
            crop: format!("{}x{}", size.1, size.0).parse().unwrap(),
            format: PictureFormat::new(channels, bits, mean, std).unwrap(),
            ..Pipeline::default()
        };
        let choices = Choices {
            size,
            region: CropBox::whole(size),
            flip: false,
            photometric: Photometric::default(),
            augmented,
        };
        let made = pipeline.replay(picture, &self.label(), &choices);
        let area = size.0 * size.1;
        let value = |pixel: usize, c: usize| made.image[c * area + pixel] as u16;
        let pixels = (0..area).flat_map(|pixel| (0..channels).map(move |c| value(pixel, c)));
        (pixels.collect(), made.label)
    }
}

fn values(list: &Value) -> Vec<u16> {
    let list = list.as_array().unwrap().iter();
    list.map(|v| v.as_u64().unwrap().try_into().unwrap())
        .collect()
}

fn bytes(list: &Value) -> Vec<u8> {
    values(list)
        .into_iter()
        .map(|v| v.try_into().unwrap())
        .collect()
}

/// The largest difference.
fn distance(ours: &[u16], theirs: &[u16]) -> u16 {
    assert_eq!(ours.len(), theirs.len());
    let both = ours.iter().zip(theirs);
    both.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn rotations_are_those_of_mmsegmentation() {
    let recording = Recording::read();
    for rotation in recording.0["rotations"].as_array().unwrap() {
        let augmented = Augmented {
            rotation: rotation["degrees"].as_f64(),
            ..Augmented::default()
        };
        let degrees = &rotation["degrees"];
        let (image, label) = recording.made(&recording.image(), 8, augmented.clone());
        assert_eq!(image, values(&rotation["image"]), "{degrees}");
        assert_eq!(label, bytes(&rotation["label"]), "{degrees}");
        // OpenCV sums 16 bits in f32, which rounds.
        let (bands, _) = recording.made(&recording.bands(), 16, augmented);
        assert!(
            distance(&bands, &values(&rotation["bands"])) <= 1,
            "{degrees}"
        );
    }
}

#[test]
fn blurs_are_those_of_opencv() {
    let recording = Recording::read();
    for blur in recording.0["blurs"].as_array().unwrap() {
        let augmented = Augmented {
            blur: blur["sigma"].as_f64(),
            ..Augmented::default()
        };
        // OpenCV's weights of 8 bits are in 1/256, those of 16 bits in 1/65536.
        let (image, _) = recording.made(&recording.image(), 8, augmented.clone());
        let off = distance(&image, &values(&blur["image"]));
        assert!(off <= 1, "{off} at {}", blur["sigma"]);
        let (bands, _) = recording.made(&recording.bands(), 16, augmented);
        let off = distance(&bands, &values(&blur["bands"]));
        assert!(off <= 2, "{off} at {}", blur["sigma"]);
    }
}

#[test]
fn holes_are_those_of_mmsegmentation() {
    let recording = Recording::read();
    let cutout = &recording.0["cutout"];
    let holes = cutout["holes"].as_array().unwrap().iter().map(|hole| {
        let hole = values(hole);
        CropBox {
            left: hole[0].into(),
            top: hole[1].into(),
            width: hole[2].into(),
            height: hole[3].into(),
        }
    });
    let augmented = Augmented {
        holes: holes.collect(),
        ..Augmented::default()
    };
    let (image, label) = recording.made(&recording.image(), 8, augmented);
    assert_eq!(image, values(&cutout["image"]));
    assert_eq!(label, recording.label().data);
}

#[test]
fn bands_are_resized_as_opencv_does_it() {
    let recording = Recording::read();
    let bands = recording.bands();
    for resize in recording.0["resizes"].as_array().unwrap() {
        let size = values(&resize["size"]);
        let made = PictureRef::from(&bands).resized((size[0].into(), size[1].into()));
        let Picture::Bands(made) = made else {
            panic!("bands stay bands")
        };
        let off = distance(&made.data, &values(&resize["bands"]));
        assert!(off <= 1, "{off} at {size:?}");
    }
}

#[test]
fn upside_down_is_the_last_row_first() {
    let recording = Recording::read();
    let augmented = Augmented {
        vertical_flip: true,
        ..Augmented::default()
    };
    let (image, label) = recording.made(&recording.image(), 8, augmented);
    let row = recording.size().0;
    assert_eq!(label[..row], recording.label().data[label.len() - row..]);
    let before = values(&recording.0["image"]);
    assert_eq!(image[..3 * row], before[before.len() - 3 * row..]);
}
