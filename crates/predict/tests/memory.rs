//! What a picture has in memory, against what is foreseen.
//!
//! Alone in its program: it counts all memory that the process has allocated.

#[path = "../../devices/tests/counted/mod.rs"]
mod counted;

use burn::tensor::Device;
use halfseg_amp::Policy;
use halfseg_data::RgbImage;
use halfseg_predict::{EvalMode, EvalScale, Predictor, PredictorConfig};
use halfseg_segmentor::{Depth, Method, Segmentor, SegmentorConfig};

fn network(method: Method, depth: Depth) -> Segmentor {
    let mut config = SegmentorConfig::new(method, depth);
    config.stem_channels = 16;
    config.base_channels = 8;
    config.head_channels = 16;
    config.c1_channels = 8;
    config.init(&Device::flex())
}

/// The most that predicting a picture adds to what was there before.
fn peak(predictor: &Predictor, width: usize, height: usize) -> u64 {
    let picture = RgbImage::filled(width, height, [90, 120, 150]);
    let before = counted::forget_peak();
    let found = predictor.predict(&picture).unwrap();
    assert_eq!(found.map.data.len(), width * height);
    counted::peak() - before
}

fn windows(side: usize) -> PredictorConfig {
    let mut config = PredictorConfig::default();
    config.mode = EvalMode::Slide;
    config.slide_crop = format!("{side}x{side}").parse().unwrap();
    config.slide_stride = format!("{0}x{0}", side * 2 / 3).parse().unwrap();
    config
}

/// One after the other: all count the memory of the whole process.
#[test]
fn memory_is_at_least_what_is_foreseen_and_windows_hold_no_more_rows_than_they_have() {
    what_is_foreseen_is_there();
    windows_hold_a_strip_of_scores();
}

fn what_is_foreseen_is_there() {
    let whole = PredictorConfig::default();
    let mut views = whole.clone();
    views.ms_flip = true;
    let mut scaled = whole.clone();
    scaled.scale = EvalScale::Fit("128x128".parse().unwrap());
    let mut larger = windows(96);
    larger.scale = EvalScale::Fit("640x640".parse().unwrap());
    for method in Method::ALL {
        for (depth, policy) in [
            (Depth::R18, Policy::disabled()),
            (Depth::R50, Policy::f16()),
            (Depth::R50, Policy::bf16()),
        ] {
            let model = network(method, depth);
            for (name, config) in [
                ("whole", &whole),
                ("views", &views),
                ("scaled", &scaled),
                ("windows", &windows(96)),
                ("larger windows", &larger),
            ] {
                let predictor = Predictor::new(&model, policy.clone(), config.clone());
                let (width, height) = (416, 224);
                let foreseen = predictor.needed_memory(width, height).0;
                let found = peak(&predictor, width, height);
                let share = foreseen as f64 / found as f64;
                println!("{method} {depth} {name}: foreseen {share:.2} of {found} bytes");
                assert!(
                    (0.2..=1.0).contains(&share),
                    "{method} {depth} {name}: {share}"
                );
            }
        }
    }
}

/// Scores of all pixels would be 19 times 4 bytes each, and the normalised picture 12.
fn windows_hold_a_strip_of_scores() {
    let model = network(Method::Fcn, Depth::R18);
    let predictor = Predictor::new(&model, Policy::f16(), windows(96));
    let (width, low, high) = (160, 192, 3072);
    // Packs the weights, which are kept.
    peak(&predictor, width, low);
    let grown = peak(&predictor, width, high).saturating_sub(peak(&predictor, width, low));
    let pixels = (width * (high - low)) as u64;
    println!(
        "{:.2} bytes more for each pixel more",
        grown as f64 / pixels as f64
    );
    // The class map, and what differs from run to run.
    assert!(grown < 2 * pixels, "{grown} bytes for {pixels} pixels more");
}
