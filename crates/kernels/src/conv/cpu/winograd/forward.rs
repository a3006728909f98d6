//! Forward pass and input gradient.
//!
//! A block of tiles is transformed into `[point][panel of NR tiles][channel][NR]`, the products of each
//! point are a task of their own, and the sums are transformed back: kernels are read once for a whole
//! block, however many threads there are.

use std::marker::PhantomData;

use super::super::geometry::Geometry;
use super::super::micro::{Core, LANES};
use super::super::tail::Tail;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::multiply::Multiply;
use super::plan::{Kernels, Layout, Run, runs, tiles};
use super::scheme::{Minimal, Scheme};
use super::transform::{Store, TransformInputs, transform_kernels};
use crate::cpu::element::Element;
use crate::cpu::isa::compiled;
use crate::cpu::scratch::{Room, Shared, with_scratch};
use crate::cpu::tasks;

/// Input channels that are summed in one go: longer than in direct sums, because sums are held for
/// all points at once and go through memory.
const DEPTH: usize = 512;
/// Values of the transformed inputs and of the sums of a block, which a third-level cache holds. Where
/// channels are cut, so many times as many: kernels are transformed anew for every block and cut.
const HELD: usize = 2 << 20;
/// Values of kernels that share a panel of inputs in the cache.
const CHUNK: usize = 96 << 10;
/// Writes every output.
///
/// # Safety
/// `output` has room for the output.
pub unsafe fn forward<C, E, W, const TILE: usize, const WINDOW: usize>(
    _: C,
    geometry: &Geometry,
    x: &[E],
    kernels: Kernels<'_, W>,
    tail: Tail<'_, E>,
    output: Shared<E>,
) where
    C: Core<Value = f32>,
    E: Element,
    W: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    const { assert!(C::MR <= LANES && C::NR.is_multiple_of(LANES)) };
    let points = WINDOW * WINDOW;
    let all = tiles(geometry, TILE);
    let cuts = geometry.c_in.div_ceil(DEPTH);
    let depth = geometry.c_in.div_ceil(cuts);
    // Blocks of equal size.
    let most = cuts * HELD / (points * C::NR * (depth + geometry.c_out));
    let panels = all.len().div_ceil(C::NR);
    let blocks = panels.div_ceil(most.max(1));
    let panels = panels.div_ceil(blocks);
    let layout = Layout::new::<C>(panels, geometry.c_out, depth);
    let mut inputs = Room::new(points * layout.inputs);
    let mut sums = Room::new(points * layout.sums);
    let mut packed = Room::new(points * layout.kernels);
    let [inputs, sums, packed] = [&mut inputs, &mut sums, &mut packed].map(Room::values);
    let threads = rayon::current_num_threads();
    // Enough tasks for every thread, each time.
    let wanted = 3 * threads;
    #[cfg(target_arch = "x86_64")]
    let scatter = avx512::Scatter::new(
        TILE,
        geometry.options.dilation[1].min(avx512::FARTHEST / TILE),
    );
    for block in all.chunks(panels * C::NR) {
        let mut groups: Vec<Vec<Run>> = block
            .chunks(LANES)
            .map(|tiles| {
                runs(
                    geometry,
                    tiles,
                    TILE,
                    #[cfg(target_arch = "x86_64")]
                    &scatter,
                )
            })
            .collect();
        // The lanes of a panel that hold no tile are multiplied, too, and dropped.
        let panels_used = block.len().div_ceil(C::NR);
        groups.resize(panels_used * C::NR / LANES, Vec::new());
        for cut in 0..cuts {
            let channels = geometry.c_in * cut / cuts..geometry.c_in * (cut + 1) / cuts;
            if cuts > 1 || block.as_ptr() == all.as_ptr() {
                transform_kernels::<C, E, W, TILE, WINDOW>(
                    geometry,
                    kernels,
                    channels.clone(),
                    layout,
                    packed,
                );
            }
            let target = inputs;
            let share = groups.len().div_ceil(4 * threads).max(1);
            let line = (LANES * TILE + 2) * geometry.options.dilation[1];
            let chunks = groups.len().div_ceil(share);
            // Few tiles are shared out by channels, too.
            let parts = wanted
                .div_ceil(chunks)
                .min(channels.len().div_ceil(LANES))
                .max(1);
            let part = channels.len().div_ceil(parts);
            tasks::each(chunks * parts, |task| {
                let (chunk, first) = (task / parts, task % parts * part);
                let groups = &groups[chunk * share..groups.len().min((chunk + 1) * share)];
                let work = TransformInputs::<C, E, TILE, WINDOW> {
                    geometry,
                    x,
                    channels: channels.clone(),
                    steps: first.min(channels.len())..channels.len().min(first + part),
                    groups,
                    first: chunk * share,
                    layout,
                    target,
                    core: PhantomData,
                };
                with_scratch([0, line], |_: &mut [f32], line| {
                    // SAFETY: the caller promises the instructions; tasks own their channels of a group.
                    unsafe { compiled(C::ISA, (work, line)) };
                });
            });
            let most = layout.rows.div_ceil(wanted.div_ceil(points));
            let chunk = (CHUNK / (depth * C::MR)).clamp(1, most);
            let chunks = layout.rows.div_ceil(chunk);
            tasks::each(points * chunks, |task| {
                let (point, first) = (task / chunks, task % chunks * chunk);
                let work = Multiply::<C> {
                    left: packed.from(point * layout.kernels),
                    right: inputs.from(point * layout.inputs),
                    sums: sums.from(point * layout.sums),
                    rows: first..layout.rows.min(first + chunk),
                    panels: 0..panels_used,
                    all_panels: layout.panels,
                    depth: channels.len(),
                    slice: depth,
                    add: cut > 0,
                    core: PhantomData,
                };
                // SAFETY: the caller promises the instructions; tasks own their rows of a point.
                unsafe { compiled(C::ISA, work) };
            });
        }
        let share = layout.rows.div_ceil(4 * threads);
        let shares = layout.rows.div_ceil(share);
        // Few channels are shared out by tiles, too.
        let parts = wanted.div_ceil(shares).min(panels_used);
        let part = panels_used.div_ceil(parts);
        tasks::each(shares * parts, |task| {
            let (task, first) = (task / parts, task % parts * part);
            let work = Store::<C, E, TILE, WINDOW> {
                geometry,
                groups: &groups,
                rows: task * share..layout.rows.min((task + 1) * share),
                panels: first.min(panels_used)..panels_used.min(first + part),
                layout,
                sums,
                tail,
                output,
                #[cfg(target_arch = "x86_64")]
                scatter: &scatter,
                core: PhantomData,
            };
            // SAFETY: the caller promises the instructions and the room; tasks own their tiles of a channel.
            unsafe { compiled(C::ISA, work) };
        });
    }
}
