//! Dropout of whole channels.

use burn::module::Module;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use halfseg_devices::Worker;
use rand::{Rng, RngExt};

/// In training zeroes each channel of each image with probability `ratio` and scales the others by
/// `1 / (1 - ratio)` (Dropout2d, arXiv:1411.4280); elsewhere the identity.
///
/// The choice is made on the host by the caller's generator, so that a run repeats on any device.
#[derive(Module, Debug)]
pub struct ChannelDropout {
    ratio: f64,
}

impl ChannelDropout {
    /// A layer that drops this share of channels.
    ///
    /// # Panics
    /// If `ratio` is not in `0..1`.
    pub fn new(ratio: f64) -> Self {
        assert!(
            (0.0..1.0).contains(&ratio),
            "a dropout ratio must be in 0..1, not {ratio}"
        );
        Self { ratio }
    }

    /// `[n, c, h, w]` -> the same shape and dtype.
    pub fn forward(&self, x: Tensor<4>, rng: &mut impl Rng) -> Tensor<4> {
        if self.ratio == 0.0 || !x.device().is_autodiff() {
            return x;
        }
        let [n, c, ..] = x.dims();
        let kept = (1.0 / (1.0 - self.ratio)) as f32;
        // Workers draw for all images, as one of them with all images would.
        let (rank, size) = Worker::current().map_or((0, 1), |w| (w.rank(), w.size()));
        let mask: Vec<f32> = (0..size * n * c)
            .map(|_| {
                if rng.random::<f64>() < self.ratio {
                    0.0
                } else {
                    kept
                }
            })
            .collect();
        let dtype = FloatDType::from(x.dtype());
        let mask = Tensor::<4>::from_data(
            TensorData::new(mask[rank * n * c..][..n * c].to_vec(), [n, c, 1, 1]),
            (&x.device(), DType::F32),
        );
        x * mask.cast(dtype)
    }
}
