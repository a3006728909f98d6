//! Weights as the cores want them.

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::micro::{Core, MOST_PARTS};
use super::super::weight::{Weight, rounded};
use super::problem::{Problem, Slice};
use crate::cpu::element::Element;
use crate::cpu::isa::{Level, Registers, Work, compiled};
use crate::cpu::scratch::{Aligned, Shared};
use crate::cpu::tasks;

/// Channels of a weight that are packed for all rows of a panel before the next ones.
const TOGETHER: usize = 32;

/// Strides of the weight: from one `m`, `c` and tap to the next.
#[derive(Clone, Copy)]
pub struct WeightStrides {
    pub m: usize,
    pub c: usize,
    pub tap: usize,
}

/// A weight as `[slice][panel of MR channels]`, each as the core packs it; what fills up is zero. `None`
/// where packed values would not mean what the weight's do.
pub fn pack_weight<C: Core, E: Element, W: Element>(
    problem: &Problem,
    slices: &[Slice],
    weight: Weight<'_, W>,
    strides: WeightStrides,
) -> Option<Aligned<C::Value>> {
    let m = problem.channels[1];
    let rows = m.div_ceil(C::MR);
    let depth: usize = slices.iter().map(|slice| slice.depth).sum();
    let exact = AtomicBool::new(true);
    let fill = |target: Shared<C::Value>| {
        tasks::each(rows, |row| {
            let work = PackRow::<E, W, C> {
                problem,
                slices,
                weight,
                strides,
                row,
                target,
                exact: &exact,
                core: PhantomData,
            };
            // Nothing is multiplied here.
            let isa = C::ISA.at_most(Level::Avx512);
            // SAFETY: cores are chosen by what the processor has; each row of panels is one
            // task's own.
            unsafe { compiled(isa, work) };
        });
    };
    // SAFETY: every row of every slice is written, the rest of it cleared before.
    let packed = unsafe { Aligned::written(rows * C::LEFT * depth, fill) };
    exact.into_inner().then_some(packed)
}

/// Packs a weight for one panel of output channels, in all slices.
struct PackRow<'a, E, W, C: Core> {
    problem: &'a Problem,
    slices: &'a [Slice],
    weight: Weight<'a, W>,
    strides: WeightStrides,
    row: usize,
    target: Shared<C::Value>,
    exact: &'a AtomicBool,
    core: PhantomData<(C, E)>,
}

impl<E: Element, W: Element, C: Core> Work for PackRow<'_, E, W, C> {
    /// # Safety
    /// The target has room for the whole weight; no other thread writes this panel's part.
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let m = self.problem.channels[1];
        let rows = m.div_ceil(C::MR);
        let lanes = C::MR.min(m - self.row * C::MR);
        // Each segment, where its slice is packed, and its first product in there.
        let mut places = Vec::new();
        for slice in self.slices {
            let panel = rows * C::LEFT * slice.start + self.row * C::LEFT * slice.depth;
            let panel = self.target.at(panel);
            let products: usize = slice.segments.iter().map(|s| s.last - s.first).sum();
            if lanes < C::MR || products < slice.depth {
                // SAFETY: the caller's promise; zero is all bits clear.
                unsafe { panel.write_bytes(0, C::LEFT * slice.depth) };
            }
            let mut step = 0;
            for &segment in &slice.segments {
                places.push((segment, panel, step));
                step += segment.padded::<C>();
            }
        }
        // A few channels for all taps and lanes, two of which are neighbours in the weight: its cache
        // lines are still there for the next one.
        places.sort_by_key(|(segment, ..)| segment.first);
        for places in places.chunk_by(|(a, ..), (b, ..)| a.first == b.first) {
            let all = places[0].0.first..places[0].0.last;
            for first in all.clone().step_by(TOGETHER) {
                let count = TOGETHER.min(all.end - first);
                for &(segment, panel, step) in places {
                    let tap = self.problem.taps[segment.tap].index;
                    for lane in 0..lanes {
                        // SAFETY: the caller's promise.
                        unsafe {
                            self.pack(tap, [first, count], lane, panel, step + first - all.start)
                        };
                    }
                }
            }
        }
    }
}

impl<E: Element, W: Element, C: Core> PackRow<'_, E, W, C> {
    /// Packs `count` channels of one tap as products from `step` on of row `lane`.
    ///
    /// # Safety
    /// The packed panel has these products; the processor has the core's instructions but for tiles.
    #[inline(always)]
    unsafe fn pack(
        &self,
        tap: usize,
        [first, count]: [usize; 2],
        lane: usize,
        panel: *mut C::Value,
        step: usize,
    ) {
        let out = self.row * C::MR + lane;
        let stride = self.strides.c;
        let start = tap * self.strides.tap + out * self.strides.m + first * stride;
        let source = &self.weight.values[start..=start + (count - 1) * stride];
        let mut values = [E::default(); TOGETHER];
        let values = &mut values[..count];
        match self.weight.scale.map(|scale| scale[out]) {
            None if TypeId::of::<W>() == TypeId::of::<E>() => {
                for (value, source) in values.iter_mut().zip(source.iter().step_by(stride)) {
                    *value = rounded(*source, None);
                }
            }
            scale => {
                let mut wide = [0f32; TOGETHER];
                for (wide, source) in wide.iter_mut().zip(source.iter().step_by(stride)) {
                    *wide = source.widen();
                }
                if let Some(scale) = scale {
                    wide.iter_mut().for_each(|wide| *wide *= scale);
                }
                E::narrow_run(C::ISA, &wide[..count], values);
            }
        }
        let mut parts = [[C::Value::default(); TOGETHER]; MOST_PARTS];
        let targets = parts.each_mut().map(|part| &mut part[..]);
        // SAFETY: the caller promises the instructions.
        if !unsafe { C::values(values, targets) } {
            self.exact.store(false, Ordering::Relaxed);
        }
        let at = C::left_at(step, lane);
        // Inside whole steps products of a row are equally far apart.
        let even = C::STEP == 1 || step.is_multiple_of(C::STEP) && count <= C::STEP;
        let apart = C::left_at(step + 1, lane) - at;
        for (part, parts) in parts.iter().enumerate().take(C::PARTS) {
            // SAFETY: as above; the panel holds all parts.
            let panel = unsafe { panel.add(part * C::MR * C::STEP) };
            for (i, &value) in parts.iter().enumerate().take(count) {
                let at = match (even, apart) {
                    (true, 1) => at + i,
                    (true, apart) => at + i * apart,
                    (false, _) => C::left_at(step + i, lane),
                };
                // SAFETY: the caller's promise; `left_at` tells where.
                unsafe { *panel.add(at) = value };
            }
        }
    }
}
