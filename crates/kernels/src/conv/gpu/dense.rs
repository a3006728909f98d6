//! Convolutions of one group, by whatever is fastest of what sums in f32; those of f32 maps by products of matrices
//! without matrix units, which would round f32 to TF32.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::DType;
use burn_cubecl::CubeTuneId;
use burn_cubecl::cubecl;
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::tune::{LocalTuner, Tunable, TunableSet, TuneGroup, anchor, local_tuner};
use cubek::convolution::{
    AcceleratedTileKind, ConvAlgorithm, ConvolutionArgs, ConvolutionInputs, Strategy, launch_ref,
};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::std::InputBinding;

use super::super::Conv2dOptions;
use super::problem::{Declined, Problem};
use super::product::multiply;
use super::tried::is_tried;
use super::weight::by_channel;
use super::{direct, split};
use crate::gpu::launch::{element, empty};

type Candidate = fn(Problem) -> Result<CubeTensor, Declined>;

/// The implicit matrix products that burn-cubecl tries as well; they need tensor cores, and sum in f32.
pub const IMPLICIT: [(&str, ConvAlgorithm, AcceleratedTileKind); 6] = {
    use AcceleratedTileKind::{Cmma, Mma};
    use ConvAlgorithm::{
        SimpleAsyncCyclic, SimpleAsyncStrided, SimpleAsyncTma, SimpleSyncCyclic, SimpleSyncStrided,
    };
    [
        ("sync_cmma", SimpleSyncCyclic, Cmma),
        ("sync_mma", SimpleSyncStrided, Mma),
        ("async_cmma", SimpleAsyncCyclic, Cmma),
        ("async_mma", SimpleAsyncStrided, Mma),
        ("tma_cmma", SimpleAsyncTma, Cmma),
        ("tma_mma", SimpleAsyncTma, Mma),
    ]
};

/// What a pass can be computed with.
struct Pass {
    tuner: LocalTuner<String, CubeTuneId>,
    /// All that decides which candidates can be launched, and, with sizes rounded, which is fastest.
    key: fn(&Problem) -> String,
    /// By matrix products first, and by a library.
    whole: &'static [(&'static str, Candidate)],
    implicit: fn(Problem, &Strategy) -> Result<CubeTensor, Declined>,
    /// Those of the implicit ones that are measured beside the others. Each kernel has to be compiled first; the rest are
    /// measured where all of these decline.
    compared: &'static [&'static str],
    /// Never declines. Compared with nothing: it is slow, and tried where all others decline.
    last: (&'static str, fn(Problem) -> CubeTensor),
    /// Whether it was said that all others declined.
    said: AtomicBool,
}

/// One way to compute a pass.
#[derive(Clone, Copy)]
enum Way {
    Whole(Candidate),
    Implicit(
        fn(Problem, &Strategy) -> Result<CubeTensor, Declined>,
        ConvAlgorithm,
        AcceleratedTileKind,
    ),
}

impl Way {
    fn run(self, problem: Problem) -> Result<CubeTensor, Declined> {
        match self {
            Self::Whole(whole) => whole(problem),
            Self::Implicit(implicit, algorithm, tile_kind) => {
                let strategy = Strategy::Inferred {
                    algorithm,
                    tile_kind,
                };
                implicit(problem, &strategy)
            }
        }
    }
}

/// A size as tuning tells it from others, so that images of all sizes do not each tune anew.
pub fn rounded(size: usize) -> usize {
    anchor(size, None, None, None)
}

static FORWARD: Pass = Pass {
    tuner: local_tuner!("forward"),
    key: |problem| {
        let (map, size, options) = (&problem.map, problem.size, problem.options);
        let weight = problem.other.meta.shape().dims::<4>();
        let [n, h, w, c] = map.meta.shape().dims();
        let (same, early, dtype) = (size == [h, w], problem.ends_early(), map.dtype);
        let sizes = [n, h, w, size[0], size[1]].map(rounded);
        format!("{sizes:?} {same} {early} {c} {weight:?} {options:?} {dtype:?}")
    },
    whole: &[
        ("pointwise", pointwise),
        #[cfg(feature = "cudnn")]
        ("cudnn", super::cudnn::correlate),
    ],
    implicit: implicit_forward,
    // Kernels that fill the registers of matrix units by themselves do what those do that leave it to the compiler. By a
    // simulator's model of time the asynchronous one is slower than the synchronous one in most shapes of these networks.
    compared: &["sync_mma", "tma_mma"],
    last: ("direct", |p| {
        direct::convolve(p.map, p.other, p.size, p.options, false)
    }),
    said: AtomicBool::new(false),
};

static WEIGHT_GRADIENT: Pass = Pass {
    tuner: local_tuner!("weight-gradient"),
    key: |problem| {
        let (kernel, options, dtype) = (problem.size, problem.options, problem.map.dtype);
        let [n, h, w, c_in] = problem.map.meta.shape().dims();
        let [_, h_out, w_out, c_out] = problem.other.meta.shape().dims();
        let sizes = [n, h, w, h_out, w_out].map(rounded);
        format!("{sizes:?} {c_in} {c_out} {kernel:?} {options:?} {dtype:?}")
    },
    whole: &[
        ("split", split::weight_gradient),
        #[cfg(feature = "cudnn")]
        ("cudnn", super::cudnn::weight_gradient),
    ],
    implicit: implicit_weight_gradient,
    // A weight has too few values to fill a device without splitting the sum over pixels, which they do not: by a
    // simulator's model they take 1.4 to 10 times as long as products over parts, in all shapes of these networks.
    compared: &[],
    last: ("direct", |p| {
        direct::weight_gradient(p.map, p.other, p.size, p.dtype, p.options)
    }),
    said: AtomicBool::new(false),
};

/// `map` `[n, h, w, c]` by `weight` `[c_out, kh, kw, c]` -> `[n, *to, c_out]`. The padding is that of the
/// upper left; `to` says how far the output goes.
pub fn correlate(
    map: CubeTensor,
    weight: CubeTensor,
    to: [usize; 2],
    options: Conv2dOptions,
) -> CubeTensor {
    let problem = Problem {
        dtype: map.dtype,
        map,
        other: weight,
        size: to,
        options,
        trial: false,
    };
    let [_, kh, kw, _] = problem.other.meta.shape().dims();
    if problem.map.dtype == DType::F32 {
        let output = pointwise(problem.clone()).or_else(|_| split::correlate(problem.clone()));
        return output.unwrap_or_else(|_| (FORWARD.last.1)(problem));
    }
    FORWARD.run_product(problem, [kh, kw])
}

/// The gradient of the weight, `[c_out, c_in, kh, kw]`, of maps that lie pixel by pixel.
pub fn weight_gradient(
    x: CubeTensor,
    gradient: CubeTensor,
    kernel: [usize; 2],
    dtype: DType,
    options: Conv2dOptions,
) -> CubeTensor {
    let problem = Problem {
        map: x,
        other: gradient,
        size: kernel,
        dtype,
        options,
        trial: false,
    };
    if problem.map.dtype == DType::F32 {
        let gradient = split::weight_gradient(problem.clone());
        return gradient.unwrap_or_else(|_| (WEIGHT_GRADIENT.last.1)(problem));
    }
    WEIGHT_GRADIENT.run_product(problem, kernel)
}

/// Whether a convolution reads each pixel by itself, for an output of the map's size: a matrix product.
pub fn is_pointwise(kernel: [usize; 2], options: Conv2dOptions) -> bool {
    let Conv2dOptions {
        stride, padding, ..
    } = options;
    (kernel, stride, padding) == ([1, 1], [1, 1], [0, 0])
}

/// `map` `[n, h, w, c]` by `weight` `[c, c_out]` -> `[n, h, w, c_out]`.
pub fn product(map: CubeTensor, weight: CubeTensor) -> Result<CubeTensor, Declined> {
    let [n, h, w, c] = map.meta.shape().dims();
    let [_, c_out] = weight.meta.shape().dims();
    let dtype = map.dtype;
    let map = reshape(map, [n * h * w, c].into());
    // Without gaps between rows, which the kernels that read it do not expect.
    let output = empty(&map, [n * h * w, c_out], dtype);
    let output = multiply(map, weight, output)?;
    Ok(reshape(output, [n, h, w, c_out].into()))
}

impl Pass {
    /// Where the pass is a matrix product anyway, that one, whose own tuner knows more kernels than the
    /// implicit ones are, so that measuring those would only take time.
    fn run_product(&'static self, problem: Problem, kernel: [usize; 2]) -> CubeTensor {
        if is_pointwise(kernel, problem.options) {
            let (_, products) = self.whole[0];
            if let Ok(output) = products(problem.clone()) {
                return output;
            }
        }
        self.run(problem)
    }

    /// By the fastest candidate where they are measured, else by the first that does not decline.
    fn run(&'static self, problem: Problem) -> CubeTensor {
        if cfg!(not(feature = "tune")) {
            return self.first(problem);
        }
        let id = CubeTuneId::new(&problem.map.client, &problem.map.device);
        let client = problem.map.client.clone();
        let set = self.tuner.init(&id, || self.set());
        self.tuner.execute(&id, &client, set, problem)
    }

    /// All ways but the last, with their names.
    fn ways(&self) -> impl Iterator<Item = (&'static str, Way)> {
        let whole = self.whole.iter();
        let whole = whole.map(|(name, candidate)| (*name, Way::Whole(*candidate)));
        let implicit = self.implicit;
        let implicit = IMPLICIT
            .into_iter()
            .map(move |(name, algorithm, kind)| (name, Way::Implicit(implicit, algorithm, kind)));
        whole.chain(implicit).filter(|(name, _)| is_tried(name))
    }

    /// The first candidate that does not decline.
    fn first(&self, problem: Problem) -> CubeTensor {
        let mut declined = String::new();
        for (name, way) in self.ways() {
            match way.run(problem.clone()) {
                Ok(output) => return output,
                Err(why) => declined += &format!("\n  {name}: {why}"),
            }
        }
        if !self.said.swap(true, Ordering::Relaxed) {
            let (name, _) = self.last;
            eprintln!(
                "halfseg: a convolution {} runs in the kernel {name:?}, one value a unit, which is slow, and \
                 so may others. All faster ways declined, most of which need tensor cores:{declined}",
                (self.key)(&problem)
            );
        }
        (self.last.1)(problem)
    }

    /// The candidates for a tuner, which measures them once for each key and keeps the result.
    fn set(&'static self) -> TunableSet<String, Problem, CubeTensor> {
        let fast = TuneGroup::new("fast", |_: &String| 2);
        let rest = TuneGroup::new("rest", |_: &String| 1);
        let slow = TuneGroup::new("slow", |_: &String| 0);
        let trial = |_: &String, problem: &Problem| Problem {
            trial: true,
            ..problem.clone()
        };
        let mut set = TunableSet::new(self.key, trial);
        for (name, way) in self.ways() {
            let candidate = move |problem: Problem| match way.run(problem.clone()) {
                // The key rounds sizes: what was fastest for one may decline another, and CubeCL
                // would panic.
                Err(_) if !problem.trial => Ok(self.first(problem)),
                found => found,
            };
            let group = match way {
                Way::Implicit(..) if !self.compared.contains(&name) => &rest,
                _ => &fast,
            };
            set = set.with(Tunable::new(name, candidate).group(group, |_| 0));
        }
        let (name, last) = self.last;
        let candidate = move |problem: Problem| {
            let silent = problem.trial || self.said.load(Ordering::Relaxed);
            Ok::<_, Declined>(if silent {
                last(problem)
            } else {
                self.first(problem)
            })
        };
        set.with(Tunable::new(name, candidate).group(&slow, |_| 0))
    }
}

/// A kernel of one tap that reads each pixel by itself.
fn pointwise(problem: Problem) -> Result<CubeTensor, Declined> {
    let [_, h, w, _] = problem.map.meta.shape().dims();
    let [c_out, kh, kw, c] = problem.other.meta.shape().dims();
    if !is_pointwise([kh, kw], problem.options) || problem.size != [h, w] {
        return Err("not one pixel to one".to_owned());
    }
    let weight = permute(reshape(problem.other, [c_out, c].into()), &[1, 0]);
    product(problem.map, weight)
}

fn takes_tma(strategy: &Strategy) -> bool {
    let tma = ConvAlgorithm::SimpleAsyncTma;
    matches!(strategy, Strategy::Inferred { algorithm, .. } if *algorithm == tma)
}

/// Whether these kernels of cubek 0.3.1 compute weight gradients wrongly where the padding is read, as half of a stride
/// of 2 does: seen on a simulated GPU, for many sizes.
fn is_wrong_for_weights(strategy: &Strategy) -> bool {
    let cmma = AcceleratedTileKind::Cmma;
    matches!(strategy, Strategy::Inferred { tile_kind, .. } if *tile_kind == cmma)
}

fn arguments(options: Conv2dOptions) -> ConvolutionArgs<2> {
    ConvolutionArgs {
        stride: options.stride,
        padding: options.padding,
        dilation: options.dilation,
    }
}

fn launch(
    strategy: &Strategy,
    like: &CubeTensor,
    inputs: ConvolutionInputs,
    options: Conv2dOptions,
) -> Result<(), Declined> {
    let dtype = element(like);
    let dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: dtype,
        rhs: dtype,
        out: dtype,
    });
    let launched = launch_ref(strategy, &like.client, inputs, arguments(options), dtypes);
    launched.map_err(|error| format!("{error:?}"))
}

fn binding(tensor: CubeTensor) -> InputBinding {
    let dtype = element(&tensor);
    InputBinding::new(tensor.binding(), dtype)
}

fn implicit_forward(problem: Problem, strategy: &Strategy) -> Result<CubeTensor, Declined> {
    // TMA walks along rows as long as the padding allows, and would go on where a shorter one ends.
    if takes_tma(strategy) && problem.ends_early() {
        return Err("the output ends before its padding does".to_owned());
    }
    let Problem {
        map,
        other: weight,
        size: [h, w],
        options,
        ..
    } = problem;
    let [n, ..] = map.meta.shape().dims::<4>();
    let [c_out, ..] = weight.meta.shape().dims::<4>();
    let output = empty(&map, [n, h, w, c_out], map.dtype);
    let inputs = ConvolutionInputs::Forward {
        input: binding(map),
        weight: binding(weight),
        bias: None,
        out: output.clone().binding(),
    };
    launch(strategy, &output, inputs, options)?;
    Ok(output)
}

fn implicit_weight_gradient(problem: Problem, strategy: &Strategy) -> Result<CubeTensor, Declined> {
    if is_wrong_for_weights(strategy) {
        return Err("it leaves zeros where the first taps' gradients belong".to_owned());
    }
    let Problem {
        map: x,
        other: gradient,
        size: [kh, kw],
        dtype,
        options,
        ..
    } = problem;
    let [.., c_in] = x.meta.shape().dims::<4>();
    let [.., c_out] = gradient.meta.shape().dims::<4>();
    let weight = empty(&x, [c_out, kh, kw, c_in], x.dtype);
    let inputs = ConvolutionInputs::BackwardWeight {
        input: binding(x),
        out_grad: binding(gradient),
        weight_grad: weight.clone().binding(),
    };
    launch(strategy, &weight, inputs, options)?;
    Ok(by_channel(weight, dtype))
}
