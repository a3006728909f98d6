//! Weights as the right operand of tiles.

use std::any::TypeId;

use super::super::geometry::Geometry;
use super::super::weight::{Weight, rounded};
use super::{PANEL, Plan};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level, dispatch};
use crate::cpu::scratch::{Aligned, Shared};
use crate::cpu::tasks;

/// Values of a panel: `[chunk][tap][pair of channels][output channel][channel]`.
pub fn panel_length(geometry: &Geometry, plan: &Plan) -> usize {
    geometry.kernel[0] * geometry.kernel[1] * plan.channels * PANEL
}

/// A weight panel by panel; what fills up is zero.
pub fn pack<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    plan: &Plan,
    weight: Weight<'_, W>,
) -> Aligned<u16> {
    assert_eq!(size_of::<E>(), size_of::<u16>());
    let length = panel_length(geometry, plan);
    let panels = geometry.c_out.div_ceil(PANEL);
    let fill = |target: Shared<u16>| {
        tasks::each(panels, |panel| {
            // SAFETY: each panel is one task's own; it is written before it is read, as zeros.
            let target = unsafe {
                target.at(panel * length).write_bytes(0, length);
                std::slice::from_raw_parts_mut(target.at(panel * length), length)
            };
            dispatch(
                // Nothing is multiplied here.
                isa.at_most(Level::Avx512),
                #[inline(always)]
                |isa| pack_panel::<E, W>(isa, geometry, plan, weight, panel, target),
            );
        });
    };
    // SAFETY: every panel is written.
    unsafe { Aligned::written(panels * length, fill) }
}

#[inline(always)]
fn pack_panel<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    plan: &Plan,
    weight: Weight<'_, W>,
    panel: usize,
    target: &mut [u16],
) {
    let taps = geometry.kernel[0] * geometry.kernel[1];
    let row_length = geometry.c_in * taps;
    let mut wide = vec![0f32; row_length];
    let mut values = vec![E::default(); row_length];
    for lane in 0..PANEL.min(geometry.c_out - panel * PANEL) {
        let out = panel * PANEL + lane;
        let row = &weight.values[out * row_length..][..row_length];
        match weight.scale.map(|scale| scale[out]) {
            None if TypeId::of::<W>() == TypeId::of::<E>() => {
                for (value, source) in values.iter_mut().zip(row) {
                    *value = rounded(*source, None);
                }
            }
            scale => {
                W::widen_run(isa, row, &mut wide);
                if let Some(scale) = scale {
                    wide.iter_mut().for_each(|wide| *wide *= scale);
                }
                E::narrow_run(isa, &wide, &mut values);
            }
        }
        for first in (0..geometry.c_in).step_by(plan.chunk) {
            let depth = plan.chunk.min(plan.channels - first);
            let count = depth.min(geometry.c_in - first);
            let chunk = &mut target[first * taps * PANEL..][..depth * taps * PANEL];
            for (tap, chunk) in chunk.chunks_exact_mut(depth * PANEL).enumerate() {
                let values = values[first * taps + tap..]
                    .iter()
                    .step_by(taps)
                    .take(count);
                for (channel, value) in values.enumerate() {
                    chunk[channel / 2 * (2 * PANEL) + lane * 2 + channel % 2] = bits(*value);
                }
            }
        }
    }
}

/// The bits of a value of two bytes.
#[inline(always)]
fn bits<E: Element>(value: E) -> u16 {
    const { assert!(size_of::<E>() <= size_of::<f32>()) };
    assert_eq!(size_of::<E>(), size_of::<u16>());
    // SAFETY: a value of two bytes, which has no other bits.
    unsafe { std::ptr::from_ref(&value).cast::<u16>().read() }
}
