//! How long convolutions on the CPU take, one by one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::DType;

use super::Conv2dOptions;
use crate::cpu::tasks::{self, Shares};

/// One convolution that was timed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TimedConvolution {
    /// What was computed.
    pub pass: ConvolutionPass,
    /// `[n, c_in, h, w]` of the forward pass.
    pub input: [usize; 4],
    /// `[c_out, c_in / groups, kh, kw]`.
    pub weight: [usize; 4],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// How the window moves.
    pub options: Conv2dOptions,
    /// What maps hold.
    pub dtype: DType,
    /// From the operands as Burn has them to the result, with all threads.
    pub seconds: f64,
    /// Of these, seconds in which the calling thread alone worked.
    pub serial: f64,
    /// Into how many tasks the threads shared out what took longest.
    pub tasks: usize,
}

/// A pass of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConvolutionPass {
    /// The output.
    Forward,
    /// The gradient of the input.
    InputGradient,
    /// The gradient of the weight.
    WeightGradient,
}

impl TimedConvolution {
    /// Multiply-adds, with those of the padding, as papers count them.
    pub fn macs(&self) -> u64 {
        let outputs = self.input[0] * self.output[0] * self.output[1];
        outputs as u64 * self.weight.iter().product::<usize>() as u64
    }
}

static WANTED: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<Vec<TimedConvolution>> = Mutex::new(Vec::new());

fn times() -> MutexGuard<'static, Vec<TimedConvolution>> {
    // Whole entries are pushed.
    TIMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body`, and tells how long each convolution took that this process computed on the CPU meanwhile, in the
/// order in which they ended.
///
/// # Panics
/// If it is called within itself, or by several threads at once.
pub fn time_convolutions<R>(body: impl FnOnce() -> R) -> (R, Vec<TimedConvolution>) {
    assert!(
        !WANTED.swap(true, Ordering::SeqCst),
        "convolutions are timed already"
    );
    struct Stop;
    impl Drop for Stop {
        fn drop(&mut self) {
            WANTED.store(false, Ordering::SeqCst);
        }
    }
    let stop = Stop;
    times().clear();
    let result = body();
    drop(stop);
    (result, std::mem::take(&mut *times()))
}

/// Bytes of a result up to which its convolution is computed where its tasks run. A larger one takes milliseconds, beside
/// which waking threads is little; and allocators serve large blocks of such threads worse.
const SMALL: usize = 4 << 20;

/// Runs `body`, the work of one convolution, and, where that is wanted, notes how long it took.
pub(super) fn timed<R: Send>(
    pass: ConvolutionPass,
    [input, weight]: [[usize; 4]; 2],
    options: Conv2dOptions,
    dtype: DType,
    body: impl FnOnce() -> R + Send,
) -> R {
    let output = options.output_size(input, weight);
    let values: usize = match pass {
        ConvolutionPass::Forward => input[0] * weight[0] * output[0] * output[1],
        ConvolutionPass::InputGradient => input.iter().product(),
        ConvolutionPass::WeightGradient => weight.iter().product(),
    };
    let is_small = values * dtype.size() <= SMALL;
    let wanted = WANTED.load(Ordering::Relaxed);
    let body = || match wanted {
        true => tasks::watch(body),
        false => (body(), Shares::default()),
    };
    let start = Instant::now();
    let (result, shares) = if is_small {
        tasks::together(body)
    } else {
        body()
    };
    if !wanted {
        return result;
    }
    let seconds = start.elapsed().as_secs_f64();
    times().push(TimedConvolution {
        pass,
        input,
        weight,
        output,
        options,
        dtype,
        seconds,
        serial: seconds - shares.seconds,
        tasks: shares.tasks,
    });
    result
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::conv2d;

    #[test]
    fn each_pass_of_a_convolution_is_timed_while_that_is_wanted() {
        let device = Device::flex().autodiff();
        let x = Tensor::<4>::ones([2, 3, 9, 8], &device).require_grad();
        let weight = Tensor::<4>::ones([5, 3, 3, 3], &device).require_grad();
        let options = Conv2dOptions {
            stride: [2, 1],
            ..Conv2dOptions::default()
        };
        let step = || {
            let y = conv2d(x.clone(), weight.clone(), None, options);
            weight.grad(&y.sum().backward()).is_some()
        };
        let (found, times) = time_convolutions(step);
        // Other tests convolve at the same time.
        let ours = |timed: &&TimedConvolution| timed.options == options;
        let ours: Vec<_> = times.iter().filter(ours).collect();
        assert!(found && ours.len() == 3);
        let passes = [
            ConvolutionPass::Forward,
            ConvolutionPass::InputGradient,
            ConvolutionPass::WeightGradient,
        ];
        for (timed, pass) in ours.iter().zip(passes) {
            assert_eq!((timed.pass, timed.output), (pass, [4, 6]));
            assert_eq!(timed.macs(), 2 * 4 * 6 * 5 * 3 * 9);
            assert!(timed.seconds > timed.serial && timed.serial > 0.0 && timed.tasks > 0);
        }
        assert!(step());
    }
}
