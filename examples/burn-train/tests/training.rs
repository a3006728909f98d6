//! The example learns in half precision, and a run that resumes has the scaler of the run before.

use std::path::Path;

use burn_train_amp::{Network, Run, accuracy, precision, train};
use halfseg_amp::{DynamicScale, GradScaler, Policy};

/// Batches of an epoch.
const BATCHES: u64 = 1024 / 32;

fn run(
    policy: &Policy,
    scaler: &GradScaler,
    folder: &Path,
    epochs: usize,
    resume: Option<usize>,
) -> (Network, GradScaler) {
    train(Run {
        policy: policy.clone(),
        scaler: scaler.clone(),
        folder,
        epochs,
        resume,
        images: 1024,
    })
}

#[test]
fn digits_are_learned_in_half_precision() {
    for name in ["f16", "bf16"] {
        let folder = tempfile::tempdir().unwrap();
        let (policy, scaler) = precision(name).unwrap();
        let (network, scaler) = run(&policy, &scaler, folder.path(), 3, None);
        let right = accuracy(&network, 9);
        // A tenth is chance. Three epochs from weights drawn at random reach some 0.9.
        assert!(right > 0.7, "{name}: {right}");
        assert_eq!(scaler.steps() + scaler.skips(), 3 * BATCHES);
    }
}

#[test]
fn a_run_that_resumes_has_the_scaler_of_the_run_before() {
    let folder = tempfile::tempdir().unwrap();
    // A first scale that overflows, and a short interval: the state has something to say.
    let scale = DynamicScale::torch()
        .with_init(2f32.powi(40))
        .with_interval(9);
    let scaler = GradScaler::dynamic(scale);
    let policy = Policy::f16();
    let (_, first) = run(&policy, &scaler, folder.path(), 1, None);
    assert!(first.skips() > 0 && first.steps() > 0, "{first:?}");
    assert_eq!(first.steps() + first.skips(), BATCHES);

    // No epoch is left: what comes back is what was saved.
    let (_, restored) = run(&policy, &scaler, folder.path(), 1, Some(1));
    assert_eq!(restored, first);
    // One more goes on counting, and needs no second search for the scale.
    let (_, second) = run(&policy, &scaler, folder.path(), 2, Some(1));
    assert_eq!(second.steps() + second.skips(), 2 * BATCHES);
    assert!(second.skips() - first.skips() < first.skips(), "{second:?}");
}
