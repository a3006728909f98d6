//! Kernels over many tensors at once, as many as a kernel binds.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::list::Tensors;
use super::ops::Lists;
use crate::SgdStep;
use crate::gpu::launch::{buffer, element, empty};
use crate::gpu::reduce::{UNITS, add_rows};

/// Groups of units that share a tensor at most: a few times what large GPUs run at once.
const GROUPS: usize = 1024;
/// Vectors that a unit should have to work on at least.
const VECTORS: usize = 4;
/// Values that a unit reads at a time, where a tensor's length is a multiple of it.
const LANES: usize = 4;
/// Tensors of one kernel at most: each has its own copy of the code.
const TENSORS: usize = 32;

/// Looks at the values of each tensor times `factor`, as their dtype holds them, and leaves for each
/// group of units how many of its own are not finite and the sum of their squares:
/// `[2, all tensors, all_groups]`, zeros for groups that there are not. With `write` the products take the
/// values' place. Groups are numbered by x, tensors by y; `places` are theirs among all, `lengths` count
/// vectors.
#[cube(launch_unchecked)]
fn scale_and_measure<E: Float, N: Size>(
    mut values: Sequence<Box<[Vector<E, N>]>>,
    lengths: Sequence<usize>,
    places: Sequence<usize>,
    parts: &mut [f32],
    factor: f32,
    tensors: usize,
    all_groups: usize,
    #[comptime] write: bool,
    #[define(E)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let groups = CUBE_COUNT_X as usize;
    let step = groups * UNITS;
    // Values that are not finite, then squares.
    let mut tables = Shared::<[f32]>::new_slice(comptime!(2 * UNITS));
    let mut lost = 0.0f32.runtime();
    let mut sums = Vector::<f32, N>::new(0.0);
    let mut place = 0usize.runtime();
    #[unroll]
    for tensor in 0..values.len() {
        if CUBE_POS_Y as usize == tensor {
            place = places[tensor];
            let values = &mut values[tensor];
            let mut k = CUBE_POS_X as usize * UNITS + unit;
            while k < lengths[tensor] {
                let factor = Vector::<f32, N>::new(factor);
                let product = Vector::<E, N>::cast_from(Vector::cast_from(values[k]) * factor);
                let value = Vector::<f32, N>::cast_from(product);
                #[unroll]
                for lane in 0..N::value() {
                    // By its bits, since some compilers assume that there are no such values.
                    if u32::reinterpret(value.extract(lane)) & 0x7f80_0000u32 == 0x7f80_0000u32 {
                        lost += 1.0;
                    }
                }
                if comptime!(write) {
                    values[k] = product;
                }
                sums += value * value;
                k += step;
            }
        }
    }
    let mut sum = sums.extract(0usize);
    #[unroll]
    for lane in 1..N::value() {
        sum += sums.extract(lane);
    }
    tables[unit] = lost;
    tables[UNITS + unit] = sum;
    add_rows(&mut tables, unit, 0, 2usize, UNITS, 1usize, 1usize);
    let first = place * all_groups;
    let squares = tensors * all_groups + first;
    if unit == 0 {
        let group = CUBE_POS_X as usize;
        parts[first + group] = tables[0];
        parts[squares + group] = tables[UNITS];
    }
    if CUBE_POS_X == 0 {
        let mut group = groups + unit;
        while group < all_groups {
            parts[first + group] = 0.0;
            parts[squares + group] = 0.0;
            group += UNITS;
        }
    }
}

/// `[2, tensors, groups]` -> `[tensors, 2]`, whether all are finite and the sum, one tensor a group of
/// units.
#[cube(launch_unchecked)]
fn combine(parts: &[f32], report: &mut [f32], tensors: usize, groups: usize) {
    let tensor = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let mut tables = Shared::<[f32]>::new_slice(comptime!(2 * UNITS));
    let mut lost = 0.0f32.runtime();
    let mut sum = 0.0f32.runtime();
    let mut group = unit;
    while group < groups {
        let at = tensor * groups + group;
        lost += parts[at];
        sum += parts[tensors * groups + at];
        group += UNITS;
    }
    tables[unit] = lost;
    tables[UNITS + unit] = sum;
    add_rows(&mut tables, unit, 0, 2usize, UNITS, 1usize, 1usize);
    if unit == 0 {
        report[2 * tensor] = select(tables[0] == 0.0, 1.0, 0.0);
        report[2 * tensor + 1] = tables[UNITS];
    }
}

/// Rounds each tensor. Groups are numbered by x, tensors by y; `lengths` count vectors.
#[cube(launch_unchecked)]
fn round<E: Float, N: Size>(
    values: Sequence<Box<[Vector<f32, N>]>>,
    mut rounded: Sequence<Box<[Vector<E, N>]>>,
    lengths: Sequence<usize>,
    #[define(E)] _dtype: ElemType,
) {
    let step = CUBE_COUNT_X as usize * UNITS;
    #[unroll]
    for tensor in 0..values.len() {
        if CUBE_POS_Y as usize == tensor {
            let values = &values[tensor];
            let rounded = &mut rounded[tensor];
            let mut k = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
            while k < lengths[tensor] {
                rounded[k] = Vector::cast_from(values[k]);
                k += step;
            }
        }
    }
}

/// The numbers of one parameter's step.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    lr: f32,
    momentum: f32,
    weight_decay: f32,
}

/// One step of [`SgdStep`]. Groups are numbered by x, tensors by y; `lengths` count vectors. In the `first`
/// step there are no `gradients`: the velocities hold them.
#[cube(launch_unchecked)]
fn descend<N: Size>(
    mut parameters: Sequence<Box<[Vector<f32, N>]>>,
    mut velocities: Sequence<Box<[Vector<f32, N>]>>,
    gradients: Sequence<Box<[Vector<f32, N>]>>,
    lengths: Sequence<usize>,
    steps: Sequence<Numbers>,
    #[comptime] first: bool,
) {
    let step = CUBE_COUNT_X as usize * UNITS;
    #[unroll]
    for tensor in 0..parameters.len() {
        if CUBE_POS_Y as usize == tensor {
            let numbers = &steps[tensor];
            let lr = Vector::<f32, N>::new(numbers.lr);
            let momentum = Vector::<f32, N>::new(numbers.momentum);
            let weight_decay = Vector::<f32, N>::new(numbers.weight_decay);
            let parameters = &mut parameters[tensor];
            let velocities = &mut velocities[tensor];
            let mut k = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
            while k < lengths[tensor] {
                let parameter = parameters[k];
                let mut velocity = velocities[k];
                if comptime!(first) {
                    velocity += weight_decay * parameter;
                } else {
                    let gradient = (&gradients[tensor])[k];
                    let change = weight_decay * parameter + gradient;
                    velocity = momentum * velocity + change;
                }
                velocities[k] = velocity;
                parameters[k] = parameter - lr * velocity;
                k += step;
            }
        }
    }
}

/// Tensors that one kernel can work on where it binds `each` buffers for one of them.
fn together(tensor: &CubeTensor, each: usize) -> usize {
    // Two more are for results and sizes.
    let bindings = tensor.client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(2) / each).clamp(1, TENSORS)
}

/// Groups of units for a tensor of `length` vectors.
fn groups(length: usize) -> usize {
    length.div_ceil(UNITS * VECTORS).clamp(1, GROUPS)
}

/// Values that a unit reads at a time of a tensor of `length` values.
fn lanes(length: usize) -> usize {
    match length.is_multiple_of(LANES) {
        true => LANES,
        false => 1,
    }
}

/// Tensors that share a kernel, `together` at most: those that are as long as each other, roughly, so that few
/// groups of units have nothing to do, and that are read by as many values at a time and of one `kind`.
struct Batch {
    places: Vec<usize>,
    lanes: usize,
    /// Groups of units for each.
    groups: usize,
}

fn batches<K: Ord>(lengths: &[usize], together: usize, kind: impl Fn(usize) -> K) -> Vec<Batch> {
    let key = |place: &usize| (kind(*place), lanes(lengths[*place]));
    let mut places: Vec<_> = (0..lengths.len()).collect();
    places.sort_by_key(|place| (key(place), std::cmp::Reverse(lengths[*place])));
    let batches = places
        .chunk_by(|a, b| key(a) == key(b))
        .flat_map(|alike| alike.chunks(together));
    batches
        .map(|places| {
            let lanes = lanes(lengths[places[0]]);
            Batch {
                places: places.to_vec(),
                lanes,
                groups: groups(lengths[places[0]] / lanes),
            }
        })
        .collect()
}

fn length(tensor: &CubeTensor) -> usize {
    let length = tensor.meta.num_elements();
    // Kernels index with 32 bits, and step beyond the end.
    assert!(
        (1..1 << 31).contains(&length),
        "a tensor of a list has 1 to 2^31 values, not {length}"
    );
    length
}

fn buffers<E: Scalar, N: Size>(
    tensors: &[CubeTensor],
    places: &[usize],
) -> SequenceArg<Box<[Vector<E, N>]>> {
    let tensors = places.iter().map(|place| &tensors[*place]);
    tensors.map(|tensor| buffer(tensor.clone())).collect()
}

/// The tensor without gaps, and in memory that nothing else reads.
fn owned(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() {
        true => tensor,
        false => tensor.copy(),
    }
}

/// Without gaps, `[n, h, w, c]` where it is a map or a weight.
fn in_pixels(tensor: CubeTensor) -> CubeTensor {
    if tensor.meta.num_dims() != 4 {
        return into_contiguous(tensor);
    }
    let [n, c, h, w] = tensor.meta.shape().dims();
    // The same memory.
    match [h, w] == [1, 1] && tensor.is_contiguous() {
        true => reshape(tensor, [n, h, w, c].into()),
        false => into_contiguous(permute_nchw_to_nhwc(tensor)),
    }
}

/// A tensor of another dtype with no values yet.
fn like(tensor: &CubeTensor, dtype: DType) -> CubeTensor {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    empty_device_contiguous_dtype(client, device, tensor.shape(), dtype)
}

/// Measures tensors without gaps, and with `write` multiplies them in place. Returns `[tensors, 2]`.
fn measure(tensors: &[CubeTensor], factor: f32, write: bool) -> CubeTensor {
    let lengths: Vec<_> = tensors.iter().map(length).collect();
    let count = tensors.len();
    let first = &tensors[0];
    let dtypes = [DType::F32, DType::F16, DType::BF16];
    let kind = |place: usize| {
        dtypes
            .iter()
            .position(|dtype| *dtype == tensors[place].dtype)
    };
    let batches = batches(&lengths, together(first, 1), kind);
    let groups = batches.iter().map(|batch| batch.groups).max().unwrap_or(1);
    let parts = empty(first, [2, count, groups], DType::F32);
    for batch in batches {
        let Batch { places, lanes, .. } = &batch;
        // SAFETY: units stay within the length of the tensor that their group works on; no two
        // work on the same value, and nothing else reads what is written.
        unsafe {
            scale_and_measure::launch_unchecked(
                &first.client,
                CubeCount::Static(batch.groups as u32, places.len() as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                *lanes,
                buffers(tensors, places),
                places.iter().map(|place| lengths[*place] / lanes).collect(),
                places.iter().copied().collect(),
                buffer(parts.clone()),
                factor,
                count,
                groups,
                write,
                element(&tensors[places[0]]),
            );
        }
    }
    let report = empty(first, [count, 2], DType::F32);
    // SAFETY: there are as many groups of units as tensors; `parts` has all groups of all tensors.
    unsafe {
        combine::launch_unchecked(
            &first.client,
            CubeCount::Static(count as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            buffer(parts),
            buffer(report.clone()),
            count,
            groups,
        );
    }
    report
}

impl Lists for CubeBackend {
    fn halfseg_scale_list(tensors: Tensors<Self>, factor: f32) -> Tensors<Self> {
        let mut tensors: Vec<_> = tensors.0.into_iter().map(owned).collect();
        let report = measure(&tensors, factor, true);
        tensors.push(report);
        Tensors(tensors)
    }

    fn halfseg_measure_list(tensors: Tensors<Self>) -> CubeTensor {
        let tensors: Vec<_> = tensors.0.into_iter().map(into_contiguous).collect();
        measure(&tensors, 1.0, false)
    }

    fn halfseg_round_list(tensors: Tensors<Self>, dtype: DType) -> Tensors<Self> {
        let tensors: Vec<_> = tensors.0.into_iter().map(in_pixels).collect();
        let rounded: Vec<_> = tensors.iter().map(|tensor| like(tensor, dtype)).collect();
        let lengths: Vec<_> = tensors.iter().map(length).collect();
        for batch in batches(&lengths, together(&tensors[0], 2), |_| ()) {
            let Batch { places, lanes, .. } = &batch;
            // SAFETY: units stay within the length of the tensors that their group works on, which are as long
            // as each other; no two work on the same value.
            unsafe {
                round::launch_unchecked(
                    &tensors[0].client,
                    CubeCount::Static(batch.groups as u32, places.len() as u32, 1),
                    CubeDim::new_1d(UNITS as u32),
                    *lanes,
                    buffers(&tensors, places),
                    buffers(&rounded, places),
                    places.iter().map(|place| lengths[*place] / lanes).collect(),
                    element(&rounded[places[0]]),
                );
            }
        }
        let as_given = |tensor: CubeTensor| match tensor.meta.num_dims() {
            4 => permute_nhwc_to_nchw(tensor),
            _ => tensor,
        };
        Tensors(rounded.into_iter().map(as_given).collect())
    }

    fn halfseg_descend_list(operands: Tensors<Self>, steps: Vec<SgdStep>) -> Tensors<Self> {
        let count = steps.len();
        let mut parameters = operands.0;
        let mut velocities = parameters.split_off(count);
        let gradients = velocities.split_off(count);
        let mut parameters: Vec<_> = parameters.into_iter().map(owned).collect();
        let velocities: Vec<_> = velocities.into_iter().map(owned).collect();
        let gradients: Vec<_> = gradients.into_iter().map(into_contiguous).collect();
        for list in [&velocities, &gradients] {
            for (tensor, parameter) in list.iter().zip(&parameters) {
                assert_eq!(
                    tensor.shape(),
                    parameter.shape(),
                    "a parameter, its gradient and its velocity have one shape"
                );
            }
        }
        let lengths: Vec<_> = parameters.iter().map(length).collect();
        let lists = if gradients.is_empty() { 2 } else { 3 };
        for batch in batches(&lengths, together(&parameters[0], lists), |_| ()) {
            let Batch { places, lanes, .. } = &batch;
            let numbers = |place: &usize| {
                let step = &steps[*place];
                NumbersLaunch::new(step.lr, step.momentum, step.weight_decay)
            };
            let with_gradient = match gradients.is_empty() {
                true => &[],
                false => &places[..],
            };
            // SAFETY: units stay within the length of the tensors that their group works on, which
            // are as long as each other; no two work on the same value.
            unsafe {
                descend::launch_unchecked(
                    &parameters[0].client,
                    CubeCount::Static(batch.groups as u32, places.len() as u32, 1),
                    CubeDim::new_1d(UNITS as u32),
                    *lanes,
                    buffers(&parameters, places),
                    buffers(&velocities, places),
                    buffers(&gradients, with_gradient),
                    places.iter().map(|place| lengths[*place] / lanes).collect(),
                    places.iter().map(numbers).collect(),
                    gradients.is_empty(),
                );
            }
        }
        parameters.extend(velocities);
        Tensors(parameters)
    }
}
