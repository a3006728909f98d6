//! What half precision costs a network, on one training batch.

use burn::tensor::{Device, Int, Tensor};
use halfseg_amp::{AuditReport, CastReport, GradScaler, UnderflowReport, autocast, cast_report};
use halfseg_data::{Loader, LoaderConfig};
use halfseg_devices::Ranks;
use halfseg_segmentor::{LoadReport, Segmentor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::start::{Start, check_memory};
use crate::{Error, Recipe, RunPrecision, check_channels, open_split, pipeline_for};

/// The result of an [`audit`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Audit {
    /// What came from the recipe's `checkpoint`, if it names one.
    pub loaded: Option<LoadReport>,
    /// The error of each operation, worst first.
    pub report: AuditReport,
    /// The casts of one training step's forward pass under the policy.
    pub casts: CastReport,
    /// What the precision would make of the gradients at each scale; `None` if no scales were
    /// given.
    pub underflow: Option<UnderflowReport>,
    /// The loss of the batch in f32.
    pub loss: f64,
    /// The loss of the batch under the policy.
    pub policy_loss: f64,
}

/// Runs the first training batch of `recipe` through its network, each operation in f32 and in the
/// recipe's precision. With `scales` it also takes the batch's gradients, in f32, and counts what
/// the precision would lose of them at each of these loss scales.
///
/// The network is the one that training would begin with: its weights come from the recipe's
/// `checkpoint`, or are drawn from its seed. `device` is without autodiff.
///
/// # Errors
///
/// A recipe in f32, which leaves nothing to compare; otherwise those of
/// [`Trainer::new`](crate::Trainer::new).
pub fn audit(recipe: &Recipe, device: &Device, scales: &[f32]) -> Result<Audit, Error> {
    let half = match recipe.precision.dtype {
        RunPrecision::F32 => {
            return Err(Error::Value {
                key: "precision.dtype".into(),
                origin: "the audited recipe".into(),
                expected: "f16 or bf16, to be compared with f32".into(),
                found: "`f32`".into(),
            });
        }
        RunPrecision::F16 => halfseg_amp::Precision::F16,
        RunPrecision::Bf16 => halfseg_amp::Precision::Bf16,
    };
    // The gradients are taken in f32.
    let mut needs = recipe.clone();
    needs.precision.dtype = RunPrecision::F32;
    check_memory(&needs)?;

    let training = device.clone().autodiff();
    let (images, labels) = first_batch(recipe, &training)?;
    let Start {
        model,
        policy,
        loaded,
        ..
    } = Start::of(recipe, &training, &Ranks::default())?;

    // The same channels are dropped each time.
    let loss = |model: &Segmentor| {
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
        let losses = model.loss(images.clone(), labels.clone(), &mut rng);
        losses.total
    };
    let number = |loss: Tensor<1>| f64::from(loss.into_scalar::<f32>());

    let (exact, report) = halfseg_amp::audit(&model, &policy, || number(loss(&model)));
    let (rounded, casts) = cast_report(|| autocast(&policy, || number(loss(&model))));
    let underflow = (!scales.is_empty()).then(|| {
        let mut scaler = GradScaler::fixed(1.0);
        scaler.begin(&model);
        let grads = scaler.scale(loss(&model)).backward(&model);
        let report = scaler.unscale(grads).underflow(half, scales);
        scaler.abandon(&model);
        report
    });
    Ok(Audit {
        loaded,
        report,
        casts,
        underflow,
        loss: exact,
        policy_loss: rounded,
    })
}

/// The batch of the first iteration.
fn first_batch(recipe: &Recipe, device: &Device) -> Result<(Tensor<4>, Tensor<3, Int>), Error> {
    let config = LoaderConfig {
        batch: recipe.train.batch,
        seed: recipe.seed,
        workers: 1,
        queue: 1,
        start_at: 0,
    };
    let train = open_split(recipe, &recipe.data.train_split)?;
    check_channels(recipe, &*train)?;
    let pipeline = pipeline_for(recipe, &*train);
    let mut loader = Loader::new(train, pipeline, config);
    let batch = loader.next().expect("a loader has no end")?;
    batch.check_labels(recipe.model.num_classes)?;
    Ok(batch.into_tensors(device))
}
