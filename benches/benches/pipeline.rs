//! The training pipeline on one core, step by step and as a whole: 2048x1024 pictures to normalised
//! crops of 512x1024.
//!
//! `whole/png` is what a worker of the loader does for a sample of a folder; `replay/ratio` is the
//! part after decoding with the crop in the middle, at the smallest, the plain and the largest
//! resize.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use halfseg_data::{
    Augmented, Choices, Cityscapes, CropBox, Dataset, Photometric, Pipeline, Sample,
    SyntheticStreets, normalize, write_cityscapes_layout,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SCENES: usize = 4;

fn street() -> Sample {
    SyntheticStreets::new(2048, 1024, 1, 0)
        .get(0)
        .expect("a generated scene needs no file")
}

fn whole(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let streets = SyntheticStreets::new(2048, 1024, SCENES, 0);
    write_cityscapes_layout(&streets, folder.path(), "train", "town").expect("room for scenes");
    let dataset = Cityscapes::open(folder.path(), "train").expect("written above");
    let pipeline = Pipeline::default();
    let mut group = c.benchmark_group("pipeline");
    group.sample_size(20);

    group.bench_function("decode/u8/2048x1024", |b| {
        b.iter(|| black_box(dataset.get(0).expect("written above")))
    });
    // Random choices differ in cost, so each pass is a round over the same few draws.
    group.bench_function(format!("whole/png/{SCENES}x2048x1024"), |b| {
        b.iter(|| {
            for index in 0..SCENES {
                let mut rng = ChaCha8Rng::seed_from_u64(index as u64);
                let mut choices = None;
                let sample = dataset.get_part(index, &mut |label| {
                    let drawn = pipeline.choose(label, &mut rng);
                    choices
                        .insert(drawn)
                        .source_region((label.width, label.height))
                });
                let sample = sample.expect("written above");
                let (label, choices) = (sample.label.expect("labelled"), choices.expect("drawn"));
                black_box(pipeline.replay_part(&sample.image, &label, &choices));
            }
        })
    });
    group.finish();
}

fn parts(c: &mut Criterion) {
    let sample = street();
    let label = sample.label.as_ref().expect("generated scenes have labels");
    let pipeline = Pipeline::default();
    let mut group = c.benchmark_group("pipeline");
    group.sample_size(30);

    group.bench_function("choose/u8/2048x1024", |b| {
        b.iter_batched(
            || ChaCha8Rng::seed_from_u64(7),
            |mut rng| black_box(pipeline.choose(label, &mut rng)),
            BatchSize::SmallInput,
        )
    });
    for ratio in [0.5, 1.0, 2.0] {
        let size = pipeline.resized((2048, 1024), ratio);
        let choices = Choices {
            size,
            region: CropBox {
                left: (size.0 - 1024) / 2,
                top: (size.1 - 512) / 2,
                width: 1024,
                height: 512,
            },
            flip: true,
            photometric: Photometric::default(),
            augmented: Augmented::default(),
        };
        group.bench_function(format!("replay/u8/ratio-{ratio}"), |b| {
            b.iter(|| black_box(pipeline.replay(&sample.image, label, &choices)))
        });
    }
    // The first draw that changes brightness, contrast, saturation and hue costs the most.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let photometric = std::iter::repeat_with(|| Photometric::sample(&mut rng))
        .take(1000)
        .max_by_key(|drawn| format!("{drawn:?}").matches("Some").count())
        .expect("a thousand draws");
    let crop = SyntheticStreets::new(1024, 512, 1, 0)
        .get(0)
        .expect("generated")
        .image
        .into_rgb()
        .expect("scenes are RGB of 8 bits");
    group.bench_function("photometric/u8/512x1024", |b| {
        b.iter_batched(
            || crop.clone(),
            |mut image| {
                photometric.apply(&mut image);
                image
            },
            BatchSize::LargeInput,
        )
    });
    group.bench_function("normalize/f32/512x1024", |b| {
        b.iter(|| black_box(normalize(&crop)))
    });
    group.finish();
}

criterion_group!(benches, whole, parts);
criterion_main!(benches);
