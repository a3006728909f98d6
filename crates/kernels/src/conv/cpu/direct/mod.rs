//! Sums over all taps: `out[m, p] = sum over taps and channels of
//! weight[tap, c, m] * in[c, position(p) + offset(tap)]` for the forward pass and the input gradient, and
//! the weight gradient.

mod pack;
mod problem;
mod strip;
mod weight_gradient;
#[cfg(target_arch = "x86_64")]
mod weight_gradient_pairs;

pub use weight_gradient::weight_gradient;
#[cfg(target_arch = "x86_64")]
pub use weight_gradient_pairs::weight_gradient as weight_gradient_pairs;

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::atomic::AtomicBool;

use super::geometry::Geometry;
use super::kept;
use super::micro::Core;
use super::tail::Tail;
use super::weight::Weight;
use crate::cpu::element::Element;
use crate::cpu::isa::compiled;
use crate::cpu::scratch::{Aligned, Shared, with_scratch};
use crate::cpu::tasks;
use pack::{WeightStrides, pack_weight};
use problem::{Problem, Tap};
use strip::Strip;

/// Writes every output, and returns whether packed values meant what the operands do: else the output
/// holds nothing of use.
///
/// # Safety
/// `output` has room for the output.
pub unsafe fn forward<C: Core, E: Element, W: Element>(
    _: C,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    output: Shared<E>,
) -> bool {
    let [kernel_height, kernel_width] = geometry.kernel;
    let taps = (0..kernel_height * kernel_width)
        .map(|index| Tap {
            index,
            offset: [
                geometry.offset(0, index / kernel_width),
                geometry.offset(1, index % kernel_width),
            ],
        })
        .collect();
    let groups = geometry.options.groups;
    let channels = [geometry.c_in / groups, geometry.c_out / groups];
    let kernel = kernel_height * kernel_width;
    let problem = Problem {
        taps,
        channels,
        grid: geometry.output,
        step: geometry.options.stride,
        input: geometry.input,
        output: geometry.output,
        output_step: [1, 1],
        output_base: [0, 0],
    };
    let strides = WeightStrides {
        m: channels[0] * kernel,
        c: kernel,
        tap: 1,
    };
    // SAFETY: the caller's promises.
    unsafe { run::<C, E, W>(&problem, geometry, x, weight, strides, tail, output) }
}

/// A stride scatters the output's gradient over the input's; each residue of the stride is a problem
/// of its own, with the taps that reach it. Returns what [`forward`] does.
///
/// # Safety
/// `result` has room for the input.
pub unsafe fn input_gradient<C: Core, E: Element, W: Element>(
    _: C,
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
    result: Shared<E>,
) -> bool {
    let [kernel_height, kernel_width] = geometry.kernel;
    let groups = geometry.options.groups;
    let channels = [geometry.c_out / groups, geometry.c_in / groups];
    let kernel = kernel_height * kernel_width;
    let stride = geometry.options.stride;
    // Output position = (input position - offset of the tap) / stride, if that is whole.
    let reach = |axis: usize, residue: usize, tap: usize| {
        let distance = residue as isize - geometry.offset(axis, tap);
        let step = stride[axis] as isize;
        (distance.rem_euclid(step) == 0).then(|| distance.div_euclid(step))
    };
    for residue_y in 0..stride[0].min(geometry.input[0]) {
        for residue_x in 0..stride[1].min(geometry.input[1]) {
            let taps = (0..kernel)
                .filter_map(|index| {
                    let y = reach(0, residue_y, index / kernel_width)?;
                    let x = reach(1, residue_x, index % kernel_width)?;
                    Some(Tap {
                        index,
                        offset: [y, x],
                    })
                })
                .collect::<Vec<_>>();
            if taps.is_empty() {
                continue;
            }
            let problem = Problem {
                taps,
                channels,
                grid: [
                    (geometry.input[0] - residue_y).div_ceil(stride[0]),
                    (geometry.input[1] - residue_x).div_ceil(stride[1]),
                ],
                step: [1, 1],
                input: geometry.output,
                output: geometry.input,
                output_step: stride,
                output_base: [residue_y, residue_x],
            };
            let strides = WeightStrides {
                m: kernel,
                c: channels[1] * kernel,
                tap: 1,
            };
            let weight = Weight::plain(weight);
            let tail = Tail::none();
            // SAFETY: the caller's promises.
            let exact = unsafe {
                run::<C, E, W>(&problem, geometry, gradient, weight, strides, tail, result)
            };
            if !exact {
                return false;
            }
        }
    }
    true
}

/// # Safety
/// `output` has room for the output; the processor has the core's instructions.
unsafe fn run<C: Core, E: Element, W: Element>(
    problem: &Problem,
    geometry: &Geometry,
    input: &[E],
    weight: Weight<'_, W>,
    strides: WeightStrides,
    tail: Tail<'_, E>,
    output: Shared<E>,
) -> bool {
    let groups = geometry.options.groups;
    let [c, m] = problem.channels;
    let slices = problem.slices::<C>();
    let kernel = TypeId::of::<(C, E)>();
    let packed = kept::packed(weight.owner, weight.scale, kernel, || {
        let packed: Option<Vec<Aligned<C::Value>>> = (0..groups)
            .map(|group| {
                pack_weight::<C, E, W>(problem, &slices, weight.group(group, groups), strides)
            })
            .collect();
        let bytes =
            |packed: &Vec<Aligned<C::Value>>| packed.iter().map(|of| size_of_val(&of[..])).sum();
        packed
            .map(|packed| (bytes(&packed), packed))
            .map(|(bytes, packed)| (packed, bytes))
    });
    let Some(packed) = packed else { return false };
    let exact = AtomicBool::new(true);
    let panels = (problem.grid[0] * problem.grid[1]).div_ceil(C::NR);
    let rows = m.div_ceil(C::MR);
    let deepest = slices.iter().map(|slice| slice.depth).max().unwrap_or(0);
    // Enough tasks for every thread; few pixels are shared out by output channels.
    let wanted = 3 * rayon::current_num_threads();
    // The panels of a strip, and where sums are taken up again its sums, too, stay in the second-level
    // cache.
    let panel = (deepest * C::RIGHT).max(1) * size_of::<C::Value>();
    let sums = match slices.len() {
        1 => 0,
        _ => rows * C::BLOCK * size_of::<f32>(),
    };
    let half = C::STRIP * size_of::<C::Value>();
    let per_task = (half / panel).min(2 * half / (panel + sums)).clamp(
        1,
        panels
            .div_ceil(wanted.div_ceil(geometry.batch * groups))
            .max(3),
    );
    let strips = panels.div_ceil(per_task);
    let parts = wanted
        .div_ceil(strips * geometry.batch * groups)
        .min(rows.div_ceil(2))
        .max(1);
    let part = rows.div_ceil(parts);
    tasks::each(geometry.batch * groups * strips * parts, |task| {
        let (image, task) = (
            task / (groups * strips * parts),
            task % (groups * strips * parts),
        );
        let (group, task) = (task / (strips * parts), task % (strips * parts));
        let (strip, part_index) = (task / parts, task % parts);
        let rows = part_index * part..rows.min((part_index + 1) * part);
        if rows.is_empty() {
            return;
        }
        let plane = problem.input[0] * problem.input[1];
        let strip = Strip::<E, C> {
            problem,
            slices: &slices,
            weight: &packed[group],
            input: &input[(image * groups + group) * c * plane..][..c * plane],
            panels: strip * per_task..panels.min((strip + 1) * per_task),
            rows,
            tail,
            group,
            start: (image * groups + group) * m * problem.output[0] * problem.output[1],
            output,
            exact: &exact,
            core: PhantomData,
        };
        with_scratch(strip.lengths(), |values: &mut [C::Value], sums| {
            // SAFETY: the caller's promises; tasks write disjoint pixels or channels.
            unsafe { compiled(C::ISA, (&strip, values, sums)) }
        });
    });
    exact.into_inner()
}
