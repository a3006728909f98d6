//! How the scale moves: checks 1 to 6, and recorded runs of other libraries' scalers.

mod common;

use burn::tensor::Tensor;
use common::{Weights, on_gpu, trajectory};
use halfseg_amp::{DynamicScale, GradScaler, StepOutcome};

const K: f32 = 1024.0;

fn check(settings: DynamicScale, pattern: &str, expected: &[f32]) {
    let (scales, _) = trajectory(&mut GradScaler::dynamic(settings), pattern);
    assert_eq!(scales, expected, "{pattern}");
}

#[test]
fn check_01_backoff_by_a_quarter() {
    let settings = DynamicScale::torch()
        .with_init(4.0)
        .with_backoff(0.25)
        .with_interval(2);
    check(settings, "..x", &[4.0, 8.0, 2.0]);
}

#[test]
fn check_02_torch_preset_with_interval_3() {
    check(
        DynamicScale::torch().with_interval(3),
        "...x....xx...",
        &[
            64., 64., 128., 64., 64., 64., 128., 128., 64., 32., 32., 32., 64.,
        ]
        .map(|k| k * K),
    );
}

#[test]
fn check_03_megatron_preset_forgives_one_overflow() {
    check(
        DynamicScale::megatron().with_init(65536.0).with_interval(3),
        "...x....xx...",
        &[
            64., 64., 128., 128., 128., 128., 256., 256., 256., 128., 128., 128., 256.,
        ]
        .map(|k| k * K),
    );
}

#[test]
fn check_04_the_floor_holds_and_is_reported() {
    let settings = DynamicScale::torch().with_init(16.0).with_min(1.0);
    let (scales, outcomes) = trajectory(&mut GradScaler::dynamic(settings), "xxxxxxxx");
    assert_eq!(scales, [8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let floors: Vec<bool> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, StepOutcome::Skipped { at_floor: true, .. }))
        .collect();
    assert_eq!(floors, [false, false, false, false, true, true, true, true]);
}

#[test]
fn check_05_growth_never_overflows_the_scale() {
    let settings = DynamicScale::torch()
        .with_init(1e38)
        .with_growth(16.0)
        .with_interval(1);
    assert!(settings.max <= 2f32.powi(126));
    let mut scaler = GradScaler::dynamic(settings);
    // An initial scale above the maximum starts at the maximum.
    assert_eq!(scaler.current_scale(), 2f32.powi(126));
    let (scales, _) = trajectory(&mut scaler, ".....");
    assert_eq!(scales, [2f32.powi(126); 5]);

    let below = DynamicScale::torch()
        .with_init(2f32.powi(124))
        .with_interval(1);
    check(below, "....", &[125, 126, 126, 126].map(|e| 2f32.powi(e)));
}

#[test]
fn check_06_a_static_scale_stays_and_still_skips() {
    let mut scaler = GradScaler::mmcv_static();
    let (scales, outcomes) = trajectory(&mut scaler, ".x.");
    assert_eq!(scales, [512.0; 3]);
    assert_eq!(
        outcomes.iter().filter(|outcome| !outcome.stepped()).count(),
        1
    );
    assert_eq!((scaler.steps(), scaler.skips()), (2, 1));
}

#[test]
fn user_bounds_hold() {
    let settings = DynamicScale::apex().with_init(8388608.0).with_interval(1);
    check(settings, "....", &[16777216.0; 4]);
}

#[test]
fn a_chosen_scale_leaves_the_interval_as_it_was() {
    let settings = DynamicScale::torch().with_init(1024.0).with_interval(3);
    let mut scaler = GradScaler::dynamic(settings);
    assert_eq!(trajectory(&mut scaler, "..").0, [1024.0; 2]);
    scaler.set_scale(64.0).unwrap();
    // The third clean step grows.
    assert_eq!(trajectory(&mut scaler, ".x.").0, [128.0, 64.0, 64.0]);
    assert_eq!((scaler.steps(), scaler.skips()), (4, 1));

    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
        assert!(scaler.set_scale(wrong).is_err(), "{wrong}");
    }
    let mut bounded = GradScaler::dynamic(DynamicScale::torch().with_min(2.0));
    let error = bounded.set_scale(1.0).unwrap_err().to_string();
    assert!(error.contains("from min to max"), "{error}");
    assert_eq!(bounded.current_scale(), 65536.0);

    let mut fixed = GradScaler::mmcv_static();
    fixed.set_scale(8.0).unwrap();
    assert_eq!(trajectory(&mut fixed, ".x").0, [8.0; 2]);
    assert_eq!(fixed, {
        let saved = serde_json::to_string(&fixed).unwrap();
        serde_json::from_str(&saved).unwrap()
    });

    let mut disabled = GradScaler::disabled();
    disabled.set_scale(8.0).unwrap();
    assert_eq!(disabled, GradScaler::disabled());
}

#[test]
fn a_chosen_scale_takes_the_place_of_an_update() {
    // As PyTorch's `update(new_scale)`: the growth tracker neither counts the step nor is reset.
    let settings = DynamicScale::torch().with_init(1024.0).with_interval(2);
    let device = common::device();
    let model = Weights::new([1.0], &device);
    for (gradient, counts) in [(1e-30, (2, 0)), (f32::INFINITY, (1, 1))] {
        let mut scaler = GradScaler::dynamic(settings.clone());
        trajectory(&mut scaler, ".");
        scaler.begin(&model);
        let loss = model.loss(Tensor::from_floats([gradient], &device));
        let grads = scaler.scale(loss).backward(&model);
        let grads = scaler.unscale(grads);
        let _ = scaler.apply_with(model.clone(), grads, |model, _| model);
        scaler.set_scale(16.0).unwrap();
        assert_eq!((scaler.steps(), scaler.skips()), counts);
        assert_eq!(trajectory(&mut scaler, ".").0, [32.0]);
    }
}

#[test]
#[should_panic(expected = "`set_scale` within a step")]
fn a_scale_is_not_chosen_while_a_step_is_open() {
    let mut scaler = GradScaler::mmcv_static();
    scaler.begin(&Weights::new([1.0], &common::device()));
    let _ = scaler.set_scale(1.0);
}

/// The file that `record_scalers.py` wrote; see there for its format.
const RECORDED: &str = include_str!("data/scales.txt");

fn decode(value: &str) -> f32 {
    match value.strip_prefix('e') {
        // Not `powi`, which is not exact for every exponent.
        Some(exponent) if value.len() < 8 => {
            let exponent: i32 = exponent.parse().unwrap();
            f32::from_bits(((exponent + 127) as u32) << 23)
        }
        _ => f32::from_bits(u32::from_str_radix(value, 16).unwrap()),
    }
}

/// Replays recorded runs of one library through real steps, all 1000 of them on the CPU and some on a GPU,
/// for which a step takes longer. What a scale does next does not depend on the device.
fn replay(library: &str) {
    let recorded = match std::env::var("HALFSEG_SCALES") {
        Ok(path) => std::fs::read_to_string(path).expect("HALFSEG_SCALES names a recording"),
        Err(_) => RECORDED.to_owned(),
    };
    let runs: Vec<_> = recorded
        .lines()
        .filter(|line| line.split(' ').next() == Some(library))
        .collect();
    assert_eq!(runs.len(), 1000);
    for line in runs.iter().step_by(if on_gpu() { 50 } else { 1 }) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [
            _,
            init,
            growth,
            backoff,
            interval,
            min,
            hysteresis,
            pattern,
            scales,
        ] = fields[..]
        else {
            panic!("a line of 9 fields, not {line}");
        };
        let interval: u32 = interval.parse().unwrap();
        let mut settings = match library {
            "torch" => DynamicScale::torch().with_interval(interval),
            "megatron" => DynamicScale::megatron().with_interval(interval),
            // Flax counts the steps before the one that grows; its preset says 2001 for its 2000.
            "flax" => DynamicScale::flax().with_interval(interval + 1),
            other => panic!("no scaler called {other}"),
        };
        settings = settings
            .with_init(init.parse().unwrap())
            .with_growth(growth.parse().unwrap())
            .with_backoff(backoff.parse().unwrap());
        if min != "-" {
            settings = settings.with_min(min.parse().unwrap());
        }
        if hysteresis != "-" {
            settings = settings.with_hysteresis(hysteresis.parse().unwrap());
        }
        let expected: Vec<f32> = scales
            .split(',')
            .flat_map(|run| {
                let (value, count) = run.split_once('*').unwrap_or((run, "1"));
                vec![decode(value); count.parse().unwrap()]
            })
            .collect();
        let overflows = u64::from_str_radix(pattern, 16).unwrap();
        let pattern: String = (0..expected.len())
            .map(|step| if overflows >> step & 1 == 1 { 'x' } else { '.' })
            .collect();
        let (found, _) = trajectory(&mut GradScaler::dynamic(settings), &pattern);
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn scales_are_those_of_pytorch_for_1000_random_patterns() {
    replay("torch");
}

#[test]
fn scales_are_those_of_megatron_for_1000_random_patterns() {
    replay("megatron");
}

#[test]
fn scales_are_those_of_flax_for_1000_random_patterns() {
    replay("flax");
}
