//! Trains a network on drawn digits with burn-train, in f16, bf16 or f32:
//!
//! ```sh
//! cargo run --release -- f16 /tmp/digits            # 3 epochs
//! cargo run --release -- f16 /tmp/digits resume 3   # 3 more
//! ```

use std::path::PathBuf;

use burn_train_amp::{Run, accuracy, precision, train};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: burn-train-amp f16|bf16|f32 FOLDER [resume EPOCH]";
    let (policy, scaler) = arguments
        .first()
        .and_then(|name| precision(name))
        .expect(usage);
    let folder = PathBuf::from(arguments.get(1).expect(usage));
    let resume = match arguments.get(2).map(String::as_str) {
        Some("resume") => Some(
            arguments
                .get(3)
                .and_then(|epoch| epoch.parse().ok())
                .expect(usage),
        ),
        Some(_) => panic!("{usage}"),
        None => None,
    };
    let (network, scaler) = train(Run {
        policy,
        scaler,
        folder: &folder,
        epochs: resume.unwrap_or(0) + 3,
        resume,
        images: 2048,
    });
    println!(
        "{:.1} % of new digits read right; {} steps, {} skipped, scale {}",
        100.0 * accuracy(&network, 3),
        scaler.steps(),
        scaler.skips(),
        scaler.current_scale()
    );
}
