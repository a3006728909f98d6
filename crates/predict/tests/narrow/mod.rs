//! A narrow network and a picture, for the tests of this crate.

#[path = "../../../segmentor/tests/drawn/mod.rs"]
mod drawn;

use halfseg_data::{Dataset, RgbImage, SyntheticStreets};
use halfseg_segmentor::{Depth, Method, Segmentor, SegmentorConfig};

pub fn config(method: Method) -> SegmentorConfig {
    let mut config = SegmentorConfig::new(method, Depth::R18);
    config.stem_channels = 8;
    config.base_channels = 4;
    config.head_channels = 8;
    config.c1_channels = 4;
    config.aux_channels = 8;
    config
}

/// The same one each time.
pub fn network(config: &SegmentorConfig) -> Segmentor {
    drawn::drawn(1, |device| config.init(device))
}

pub fn picture(seed: u64, width: usize, height: usize) -> RgbImage {
    let sample = SyntheticStreets::new(width, height, 1, seed).get(0);
    sample.unwrap().image.into_rgb().unwrap()
}
