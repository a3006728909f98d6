//! The CPU kernels for tensors of Burn's Flex backend.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;

use super::Conv2dOptions;
use super::cpu::{self, Exactness, Geometry, Owner, Tail, Weight};
use super::ops::Convolution;
use super::times::{ConvolutionPass, timed};
use crate::cpu::element::Element;
use crate::cpu::tensor::{shape, tensor, values, with_element};
use crate::cpu::transpose;

/// Calls `$body` with `$W` bound to the type of `$weight`: that of `$map`, which is `$E`, or f32.
macro_rules! with_weight {
    ($map:expr, $weight:expr, $E:ident, $W:ident => $body:expr) => {
        if $weight.dtype() == $map.dtype() {
            type $W = $E;
            $body
        } else {
            if $weight.dtype() != DType::F32 {
                one_dtype(&[Some(&$map), Some(&$weight)]);
            }
            type $W = f32;
            $body
        }
    };
}

/// What a convolution does beside summing.
#[derive(Default)]
struct Extra {
    scale: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    skip: Option<FlexTensor>,
    relu: bool,
}

fn run(
    x: FlexTensor,
    weight: FlexTensor,
    extra: Extra,
    options: Conv2dOptions,
    exactness: Exactness,
) -> FlexTensor {
    let (shapes, dtype) = ([shape(&x), shape(&weight)], x.dtype());
    timed(ConvolutionPass::Forward, shapes, options, dtype, || {
        forward(x, weight, extra, options, exactness)
    })
}

fn forward(
    x: FlexTensor,
    weight: FlexTensor,
    extra: Extra,
    options: Conv2dOptions,
    exactness: Exactness,
) -> FlexTensor {
    let geometry = Geometry::new(shape(&x), shape(&weight), options);
    // A pass that is recorded may be followed by a step, which changes the weight.
    let keeps = exactness == Exactness::Output && cpu::keeps();
    let owner = keeps.then(|| owner(&weight, options.groups));
    let channels_last = exactness == Exactness::Output
        && with_element!(x.dtype(), E => cpu::takes_channels_last::<E>(&geometry));
    let laid = |map: FlexTensor| match channels_last {
        // No copy where it lies so, as what such a convolution makes does.
        true => transpose::channels_last(&map),
        false => transpose::planar(&map),
    };
    let (x, weight) = (laid(x), weight.to_contiguous());
    let skip = extra.skip.map(laid);
    one_dtype(&[Some(&x), skip.as_ref()]);
    let [scale, bias] = [extra.scale, extra.bias].map(|per_channel| {
        per_channel.map(|values| {
            let values = values.to_contiguous();
            with_element!(values.dtype(), E => widened::<E>(&values))
        })
    });
    with_element!(x.dtype(), E => {
        let tail = Tail {
            bias: bias.as_deref(),
            skip: skip.as_ref().map(values::<E>),
            relu: extra.relu,
        };
        let scale = scale.as_deref();
        let output = with_weight!(x, weight, E, W => {
            let weight = Weight {
                values: values::<W>(&weight),
                scale,
                owner: owner.as_ref(),
            };
            match channels_last {
                true => cpu::forward_channels_last::<E, W>(&geometry, values(&x), weight, tail),
                false => cpu::forward::<E, W>(&geometry, values(&x), weight, tail, exactness),
            }
        });
        let shape = geometry.output_shape();
        if !channels_last {
            return tensor(output, shape);
        }
        let [n, c, h, w] = shape;
        tensor(output, [n, h, w, c]).permute(&[0, 3, 1, 2])
    })
}

/// What `weight` is known by, whose memory is held weakly: it may be freed, but while it is not, nothing
/// else lies at its address, and whoever wants to change it takes other memory.
fn owner(weight: &FlexTensor, groups: usize) -> Owner {
    let (memory, layout) = (weight.data_arc(), weight.layout());
    let strides = layout.strides();
    Owner {
        address: std::ptr::from_ref(&*memory).addr(),
        first: layout.start_offset(),
        shape: shape(weight),
        strides: std::array::from_fn(|axis| strides[axis]),
        groups,
        unchanged: {
            let memory = std::sync::Arc::downgrade(&memory);
            std::sync::Arc::new(move || memory.strong_count() > 0)
        },
    }
}

fn widened<E: Element + burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> Vec<f32> {
    values::<E>(tensor)
        .iter()
        .map(|value| value.widen())
        .collect()
}

impl Convolution for Flex {
    fn halfseg_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        options: Conv2dOptions,
        exactness: Exactness,
    ) -> FlexTensor {
        run(x, weight, Extra::default(), options, exactness)
    }

    fn halfseg_conv2d_biased(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        options: Conv2dOptions,
        exactness: Exactness,
    ) -> FlexTensor {
        one_dtype(&[Some(&x), Some(&bias)]);
        let extra = Extra {
            bias: Some(bias),
            ..Extra::default()
        };
        run(x, weight, extra, options, exactness)
    }

    fn halfseg_conv2d_act(
        x: FlexTensor,
        weight: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        options: Conv2dOptions,
        relu: bool,
    ) -> FlexTensor {
        let extra = Extra {
            scale: Some(scale),
            bias: Some(shift),
            skip: None,
            relu,
        };
        run(x, weight, extra, options, Exactness::Output)
    }

    fn halfseg_conv2d_add_act(
        x: FlexTensor,
        weight: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        skip: FlexTensor,
        options: Conv2dOptions,
        relu: bool,
    ) -> FlexTensor {
        let extra = Extra {
            scale: Some(scale),
            bias: Some(shift),
            skip: Some(skip),
            relu,
        };
        run(x, weight, extra, options, Exactness::Output)
    }

    fn halfseg_conv2d_input_gradient(
        weight: FlexTensor,
        gradient: FlexTensor,
        size: [usize; 2],
        options: Conv2dOptions,
    ) -> FlexTensor {
        let [batch, ..] = shape(&gradient);
        let [_, per_group, ..] = shape(&weight);
        let x = [batch, per_group * options.groups, size[0], size[1]];
        let geometry = Geometry::new(x, shape(&weight), options);
        let (shapes, dtype) = ([x, shape(&weight)], gradient.dtype());
        timed(
            ConvolutionPass::InputGradient,
            shapes,
            options,
            dtype,
            || {
                let (weight, gradient) = (weight.to_contiguous(), gradient.to_contiguous());
                with_element!(gradient.dtype(), E => {
                    let result = with_weight!(gradient, weight, E, W => {
                        cpu::input_gradient::<E, W>(&geometry, values(&weight), values(&gradient))
                    });
                    tensor(result, x)
                })
            },
        )
    }

    fn halfseg_conv2d_weight_gradient(
        x: FlexTensor,
        gradient: FlexTensor,
        kernel: [usize; 2],
        options: Conv2dOptions,
        dtype: DType,
    ) -> FlexTensor {
        let [_, c_in, ..] = shape(&x);
        let [_, c_out, ..] = shape(&gradient);
        let weight = [c_out, c_in / options.groups, kernel[0], kernel[1]];
        let geometry = Geometry::new(shape(&x), weight, options);
        one_dtype(&[Some(&x), Some(&gradient)]);
        let (shapes, of_maps) = ([shape(&x), weight], x.dtype());
        timed(
            ConvolutionPass::WeightGradient,
            shapes,
            options,
            of_maps,
            || {
                let (x, gradient) = (x.to_contiguous(), gradient.to_contiguous());
                with_element!(x.dtype(), E => {
                    if dtype == DType::F32 {
                        let result = cpu::weight_gradient::<E, f32>;
                        tensor(result(&geometry, values(&x), values(&gradient)), weight)
                    } else {
                        let result = cpu::weight_gradient::<E, E>;
                        tensor(result(&geometry, values(&x), values(&gradient)), weight)
                    }
                })
            },
        )
    }

    fn halfseg_conv2d_bias_gradient(gradient: FlexTensor) -> FlexTensor {
        let [_, channels, height, width] = shape(&gradient);
        let gradient = gradient.to_contiguous();
        with_element!(gradient.dtype(), E => {
            let mut sums = vec![0f64; channels];
            for (plane, values) in values::<E>(&gradient).chunks(height * width).enumerate() {
                // Rows first: f32 keeps sums of a few hundred values exact enough.
                let rows = values.chunks(width).map(|row| row.iter().map(|v| v.widen()).sum::<f32>());
                sums[plane % channels] += rows.map(f64::from).sum::<f64>();
            }
            tensor(sums.iter().map(|&sum| E::narrow(sum as f32)).collect(), [channels])
        })
    }
}

fn one_dtype(operands: &[Option<&FlexTensor>]) {
    let dtypes: Vec<DType> = operands.iter().flatten().map(|t| t.dtype()).collect();
    assert!(
        dtypes.iter().all(|dtype| *dtype == dtypes[0]),
        "operands of a convolution must have one dtype, not {dtypes:?}: cast them first"
    );
}
