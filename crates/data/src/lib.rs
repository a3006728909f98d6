#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

/// Runs an expression, compiled for the instructions that the processor has.
///
/// Closures are compiled with their caller's instructions only where they can be called once: for
/// others the compiler adds a function of its own, which it may not inline. So a binding that cannot
/// be copied moves through.
macro_rules! vectorized {
    (move $moved:ident => $body:expr) => {
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let $moved = $moved;
                $body
            },
        )
    };
}

mod augment;
mod bands;
mod choices;
mod cityscapes;
mod classes;
mod dataset;
mod definition;
mod error;
mod image;
mod labels;
mod loader;
mod names;
mod natural;
mod orientation;
mod photometric;
mod picture;
mod resize;
mod scanlines;
mod size;
mod synthetic;
mod transform;

pub use augment::{Augment, Augmented, Noise};
pub use choices::Choices;
pub use cityscapes::{Cityscapes, write_cityscapes_layout};
pub use classes::{Classes, class_color};
pub use dataset::{Dataset, PartialSample, Sample};
pub use definition::{
    Conversion, DefinedData, Definition, Finding, Kind, Report, Severity, SplitReport,
    SurveyOptions, convert, is_definition, propose,
};
pub use error::DataError;
pub use image::{
    ImageReader, InstanceMap, LabelMap, OpenedPicture, PartialImage, Plane, RgbImage, encode_label,
    encode_rgb, image_size, is_own_png, is_picture, read_image, read_instances, read_label,
    write_label, write_rgb,
};
pub use labels::{
    CATEGORIES, CLASS_NAMES, CLASSES, IGNORE, LABELS, Label, PALETTE, check_labels, label_id,
    train_id,
};
pub use loader::{Batch, Loader, LoaderConfig};
pub use names::{short_name, unique_names};
pub use photometric::{Photometric, bgr_from_hsv, hsv_from_rgb};
pub use picture::{Bands, MEAN, Picture, PictureFormat, PictureRef, STD};
pub use resize::{ratio_size, resize_bilinear, resize_nearest, scaled_size};
pub use size::{Crop, CropBox, ParseSizeError, Scale};
pub use synthetic::SyntheticStreets;
pub use transform::{Pipeline, Transformed, crop, flip, normalize, pad};
