//! The confusion matrix over a Cityscapes frame, on one core, for labels like real ones (patches,
//! most predictions right) and for noise, which defeats the counters' caches.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use halfseg_data::{CLASSES, Dataset, IGNORE, SyntheticStreets};
use halfseg_eval::ConfusionMatrix;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn update(c: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let street = SyntheticStreets::new(2048, 1024, 1, 0)
        .get(0)
        .expect("generated");
    let label = street.label.expect("generated scenes have labels").data;
    let classes = CLASSES as u8;
    let mostly_right: Vec<u8> = label
        .iter()
        .map(|&id| match rng.random_bool(0.1) {
            true => rng.random_range(0..classes),
            false => id.min(classes - 1),
        })
        .collect();
    let mut noise = || -> Vec<u8> {
        let pixel = |_| rng.random_range(0..classes);
        (0..label.len()).map(pixel).collect()
    };
    let (a, b) = (noise(), noise());

    let mut group = c.benchmark_group("confusion");
    group.throughput(Throughput::Elements(label.len() as u64));
    for (name, prediction, label) in [("street", &mostly_right, &label), ("noise", &a, &b)] {
        let mut matrix = ConfusionMatrix::new(CLASSES);
        group.bench_function(format!("{name}/u8/1024x2048"), |bench| {
            bench.iter(|| matrix.update(black_box(prediction), black_box(label), IGNORE))
        });
    }
    group.finish();
}

criterion_group!(benches, update);
criterion_main!(benches);
