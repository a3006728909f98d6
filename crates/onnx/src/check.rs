//! An export beside the network that it was made of.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use halfseg_segmentor::{Segmentor, SegmentorConfig};
use tract_onnx::prelude::{
    Datum, Framework, InferenceFact, InferenceModelExt, IntoRunnable, IntoTValue, Tensor as Values,
    TractResult, tvec,
};

use crate::{OnnxError, OnnxInput, OnnxOptions, OnnxOutput, WeightFormat};

/// Height and width of the image where an export takes any: no multiple of what the networks divide by.
const ANY_SIZE: [usize; 2] = [65, 97];

/// How well an export agrees with its network, for one batch of noise.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Agreement {
    /// Height and width of the images, in pixels.
    pub size: [usize; 2],
    /// 2-norm of the differences of the logits, divided by that of the logits; `None` where the file gives classes.
    pub relative: Option<f64>,
    /// Share of the pixels that have another class, in 0 to 1.
    pub other_class: f64,
}

impl Agreement {
    /// What [`check`] allows: 2-norm of the logits' differences relative to the logits, and the share of pixels of
    /// another class. Weights that are rounded move both.
    pub fn limits(weights: WeightFormat) -> [f64; 2] {
        match weights {
            WeightFormat::F32 => [1e-4, 1e-3],
            WeightFormat::F16 => [1e-2, 2e-2],
            WeightFormat::Bf16 => [1e-1, 1e-1],
        }
    }
}

/// Runs an export in tract, a runtime in Rust, on noise of the size that it takes (65x97 where it takes any), and
/// `model` in f32 on the same.
///
/// # Errors
/// A file that tract does not run, and results that differ by more than [`Agreement::limits`].
pub fn check(
    file: &[u8],
    model: &Segmentor,
    options: &OnnxOptions,
) -> Result<Agreement, OnnxError> {
    let model = model.valid();
    let config = model.config();
    let size = options.size.unwrap_or(ANY_SIZE);
    let shape = [
        options.batch.unwrap_or(1),
        config.in_channels,
        size[0],
        size[1],
    ];
    let bytes = noise(shape.iter().product());
    let (given, normalised) = match &options.input {
        OnnxInput::Normalised => {
            let image: Vec<f32> = bytes
                .iter()
                .map(|byte| (f32::from(*byte) - 127.5) / 58.0)
                .collect();
            (values(shape, image.clone())?, image)
        }
        OnnxInput::Bytes { mean, std } => {
            let pixels = size[0] * size[1];
            let normalise = |(place, byte): (usize, &u8)| {
                let channel = place / pixels % config.in_channels;
                (f32::from(*byte) - mean[channel]) / std[channel]
            };
            let image = bytes.iter().enumerate().map(normalise).collect();
            (values(shape, bytes)?, image)
        }
    };

    let found = run(file, given).map_err(wrong)?;
    let device = model.devices().into_iter().next();
    let device = device.expect("a network has parameters").inner();
    let image = Tensor::<4>::from_data(TensorData::new(normalised, shape), &device);
    let logits = model.forward(image);
    let expected: Vec<f32> = logits.into_data().iter::<f32>().collect();

    let planes = [shape[0], config.outputs(), size[0] * size[1]];
    let (relative, classes) = match options.output {
        OnnxOutput::Logits => {
            let found = of_type::<f32>(&found)?;
            if found.len() != expected.len() {
                return Err(wrong(format!(
                    "it gave {} values for {} logits",
                    found.len(),
                    expected.len()
                )));
            }
            (
                Some(distance(&found, &expected)),
                decided(&found, config, planes),
            )
        }
        OnnxOutput::Classes => {
            let found = of_type::<u8>(&found)?;
            (None, found.into_iter().map(usize::from).collect())
        }
    };
    let truth = decided(&expected, config, planes);
    if classes.len() != truth.len() {
        let message = format!(
            "it gave {} classes for {} pixels",
            classes.len(),
            truth.len()
        );
        return Err(wrong(message));
    }
    let others = classes.iter().zip(&truth).filter(|(a, b)| a != b).count();
    let agreement = Agreement {
        size,
        relative,
        other_class: others as f64 / truth.len() as f64,
    };
    let [far, other] = Agreement::limits(options.weights);
    // Also refuses what is not a number.
    let near = agreement.relative.is_none_or(|relative| relative <= far);
    match near && agreement.other_class <= other {
        true => Ok(agreement),
        false => Err(wrong(format!(
            "expected logits within {far:e} and {other:e} of the pixels of another class, found {:e} and {:e}",
            agreement.relative.unwrap_or(0.0),
            agreement.other_class
        ))),
    }
}

/// The output of `file` for `given`.
fn run(file: &[u8], given: Values) -> TractResult<Values> {
    let fact = InferenceFact::dt_shape(given.datum_type(), given.shape());
    let network = tract_onnx::onnx()
        .model_for_read(&mut &*file)?
        .with_input_fact(0, fact)?
        .into_optimized()?
        .into_runnable()?;
    let outputs = network.run(tvec!(given.into_tvalue()))?;
    Ok((*outputs[0]).clone())
}

fn values<T: Datum + Copy>(shape: [usize; 4], values: Vec<T>) -> Result<Values, OnnxError> {
    Values::from_shape(&shape, &values).map_err(wrong)
}

fn of_type<T: Datum + Copy>(values: &Values) -> Result<Vec<T>, OnnxError> {
    let plain = values.try_as_plain_ram().map_err(wrong)?;
    Ok(plain.as_slice::<T>().map_err(wrong)?.to_vec())
}

fn wrong(message: impl std::fmt::Display) -> OnnxError {
    OnnxError::Runtime {
        message: format!("{message:#}"),
    }
}

/// Bytes without a pattern that a network would see, the same on every machine.
fn noise(count: usize) -> Vec<u8> {
    let mixed = |place: usize| {
        let place = (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (place ^ (place >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    (0..count).map(|place| (mixed(place) >> 56) as u8).collect()
}

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| value * value).sum::<f64>().sqrt()
    };
    let pairs = found.iter().zip(expected);
    let mut differences = pairs.map(|(a, b)| f64::from(*a) - f64::from(*b));
    let whole = norm(&mut expected.iter().map(|value| f64::from(*value)));
    norm(&mut differences) / whole.max(f64::MIN_POSITIVE)
}

/// The class of each pixel of `[n, outputs, pixels]` logits: the first of the greatest, or what one output decides.
fn decided(
    logits: &[f32],
    config: &SegmentorConfig,
    [n, outputs, pixels]: [usize; 3],
) -> Vec<usize> {
    if config.binary {
        let limit = config.logit_threshold() as f32;
        return logits
            .iter()
            .map(|logit| usize::from(*logit > limit))
            .collect();
    }
    let at = |image: usize, class: usize, pixel: usize| {
        logits[(image * outputs + class) * pixels + pixel]
    };
    let best = |image: usize, pixel: usize| {
        (1..outputs).fold(0, |best, class| {
            match at(image, class, pixel) > at(image, best, pixel) {
                true => class,
                false => best,
            }
        })
    };
    (0..n * pixels)
        .map(|place| best(place / pixels, place % pixels))
        .collect()
}
