//! Kernels over many tensors at once, as many as a kernel binds.

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::list::Tensors;
use super::ops::Lists;
use crate::SgdStep;
use crate::gpu::launch::{buffer, element, elementwise, empty};
use crate::gpu::reduce::add_rows;

/// Units that work together.
const UNITS: usize = 256;
/// Groups of units that share the largest tensor at most.
const GROUPS: usize = 128;
/// Values that a unit should have to work on at least.
const VALUES: usize = 8;
/// Tensors of one kernel at most: each has its own copy of the code.
const TENSORS: usize = 32;

/// Looks at the values of each tensor times `factor`, as their dtype holds them, and leaves for each
/// group of units how many of its own are not finite and the sum of their squares:
/// `[2, all tensors, groups]`. With `write` the products take the values' place. Groups are numbered by
/// x, tensors by y; `places` are theirs among all.
#[cube(launch_unchecked)]
fn scale_and_measure<E: Float>(
    mut values: Sequence<Box<[E]>>,
    lengths: Sequence<usize>,
    places: Sequence<usize>,
    parts: &mut [f32],
    factor: f32,
    tensors: usize,
    #[comptime] write: bool,
    #[define(E)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let groups = CUBE_COUNT_X as usize;
    let step = groups * UNITS;
    // Values that are not finite, then squares.
    let mut tables = Shared::<[f32]>::new_slice(comptime!(2 * UNITS));
    let mut lost = 0.0f32.runtime();
    let mut sum = 0.0f32.runtime();
    let mut place = 0usize.runtime();
    #[unroll]
    for tensor in 0..values.len() {
        if CUBE_POS_Y as usize == tensor {
            place = places[tensor];
            let values = &mut values[tensor];
            let mut k = CUBE_POS_X as usize * UNITS + unit;
            while k < lengths[tensor] {
                let product = E::cast_from(f32::cast_from(values[k]) * factor);
                let value = f32::cast_from(product);
                // By its bits, since some compilers assume that there are no such values.
                if u32::reinterpret(value) & 0x7f80_0000u32 == 0x7f80_0000u32 {
                    lost += 1.0;
                }
                if comptime!(write) {
                    values[k] = product;
                }
                sum += value * value;
                k += step;
            }
        }
    }
    tables[unit] = lost;
    tables[UNITS + unit] = sum;
    add_rows(&mut tables, unit, 0, 2usize, UNITS, 1usize, 1usize);
    if unit == 0 {
        let at = place * groups + CUBE_POS_X as usize;
        parts[at] = tables[0];
        parts[tensors * groups + at] = tables[UNITS];
    }
}

/// `[2, tensors, groups]` -> `[tensors, 2]`, whether all are finite and the sum, one tensor a unit.
#[cube(launch_unchecked)]
fn combine(parts: &[f32], report: &mut [f32], tensors: usize, groups: usize) {
    let tensor = ABSOLUTE_POS;
    if tensor >= tensors {
        terminate!();
    }
    let mut lost = 0.0f32.runtime();
    let mut sum = 0.0f32.runtime();
    for group in 0..groups {
        let at = tensor * groups + group;
        lost += parts[at];
        sum += parts[tensors * groups + at];
    }
    report[2 * tensor] = select(lost == 0.0, 1.0, 0.0);
    report[2 * tensor + 1] = sum;
}

/// The numbers of one parameter's step.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    lr: f32,
    momentum: f32,
    weight_decay: f32,
}

/// One step of [`SgdStep`]. Groups are numbered by x, tensors by y. In the `first` step there are no
/// `gradients`: the velocities hold them.
#[cube(launch_unchecked)]
fn descend(
    mut parameters: Sequence<Box<[f32]>>,
    mut velocities: Sequence<Box<[f32]>>,
    gradients: Sequence<Box<[f32]>>,
    lengths: Sequence<usize>,
    steps: Sequence<Numbers>,
    #[comptime] first: bool,
) {
    let step = CUBE_COUNT_X as usize * UNITS;
    #[unroll]
    for tensor in 0..parameters.len() {
        if CUBE_POS_Y as usize == tensor {
            let numbers = &steps[tensor];
            let parameters = &mut parameters[tensor];
            let velocities = &mut velocities[tensor];
            let mut k = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
            while k < lengths[tensor] {
                let parameter = parameters[k];
                let mut velocity = velocities[k];
                if comptime!(first) {
                    velocity += numbers.weight_decay * parameter;
                } else {
                    let gradient = (&gradients[tensor])[k];
                    let change = numbers.weight_decay * parameter + gradient;
                    velocity = numbers.momentum * velocity + change;
                }
                velocities[k] = velocity;
                parameters[k] = parameter - numbers.lr * velocity;
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

/// Groups of units for tensors of up to `length` values.
fn groups(length: usize) -> usize {
    length.div_ceil(UNITS * VALUES).clamp(1, GROUPS)
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

/// Ranges of at most `size`, that make up `0..count`.
fn chunks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count)
        .step_by(size)
        .map(move |start| start..count.min(start + size))
}

fn buffers<E: Float>(tensors: &[CubeTensor]) -> SequenceArg<Box<[E]>> {
    tensors
        .iter()
        .map(|tensor| buffer(tensor.clone()))
        .collect()
}

/// The tensor without gaps, and in memory that nothing else reads.
fn owned(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() {
        true => tensor,
        false => tensor.copy(),
    }
}

/// Measures tensors without gaps, and with `write` multiplies them in place. Returns `[tensors, 2]`.
fn measure(tensors: &[CubeTensor], factor: f32, write: bool) -> CubeTensor {
    let lengths: Vec<_> = tensors.iter().map(length).collect();
    let count = tensors.len();
    let first = &tensors[0];
    let groups = groups(lengths.iter().copied().max().unwrap_or(0));
    let parts = empty(first, [2, count, groups], DType::F32);
    let together = together(first, 1);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let places: Vec<_> = (0..count)
            .filter(|place| tensors[*place].dtype == dtype)
            .collect();
        for places in places.chunks(together) {
            let tensors: Vec<_> = places.iter().map(|place| tensors[*place].clone()).collect();
            // SAFETY: units stay within the length of the tensor that their group works on; no two
            // work on the same value, and nothing else reads what is written.
            unsafe {
                scale_and_measure::launch_unchecked(
                    &first.client,
                    CubeCount::Static(groups as u32, places.len() as u32, 1),
                    CubeDim::new_1d(UNITS as u32),
                    buffers(&tensors),
                    places.iter().map(|place| lengths[*place]).collect(),
                    places.iter().copied().collect(),
                    buffer(parts.clone()),
                    factor,
                    count,
                    write,
                    element(&tensors[0]),
                );
            }
        }
    }
    let report = empty(first, [count, 2], DType::F32);
    let (cubes, dim) = elementwise(&report, count);
    // SAFETY: units beyond the tensors stop; `parts` has all groups of all tensors.
    unsafe {
        combine::launch_unchecked(
            &first.client,
            cubes,
            dim,
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
        for range in chunks(count, together(&parameters[0], lists)) {
            let lengths = &lengths[range.clone()];
            let groups = groups(lengths.iter().copied().max().unwrap_or(0));
            let numbers =
                |step: &SgdStep| NumbersLaunch::new(step.lr, step.momentum, step.weight_decay);
            // SAFETY: units stay within the length of the tensors that their group works on, which
            // are as long as each other; no two work on the same value.
            unsafe {
                descend::launch_unchecked(
                    &parameters[0].client,
                    CubeCount::Static(groups as u32, lengths.len() as u32, 1),
                    CubeDim::new_1d(UNITS as u32),
                    buffers(&parameters[range.clone()]),
                    buffers(&velocities[range.clone()]),
                    buffers(gradients.get(range.clone()).unwrap_or_default()),
                    lengths.iter().copied().collect(),
                    steps[range].iter().map(numbers).collect(),
                    gradients.is_empty(),
                );
            }
        }
        parameters.extend(velocities);
        Tensors(parameters)
    }
}
