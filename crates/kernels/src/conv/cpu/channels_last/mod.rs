//! Convolutions of maps in half precision that lie channels last, `[n, h, w, c]`, with tiles.
//!
//! A tile takes sixteen pixels where they lie, and a tap is the same pixels elsewhere: nothing is gathered, and an
//! output's channels are neighbours when they are stored. Where the window leaves the map, or where neighbouring
//! pixels would meet in one set of the first-level cache, the rows of a task are copied first, once for all taps
//! and output channels. Inference alone works so: maps between two such convolutions stay as they lie.

mod depthwise;
mod pack;
mod task;

use std::any::TypeId;
use std::ops::Range;

use half::{bf16, f16};

use super::geometry::Geometry;
use super::kept;
use super::micro::{Amx, Core, Tiled};
use super::tail::Tail;
use super::weight::Weight;
use super::{check_forward, is};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level, compiled};
use crate::cpu::scratch::{Shared, with_scratch};
use crate::cpu::tasks;
use pack::pack;
use task::Task;

/// Pixels of a tile.
const TILE: usize = 16;
/// Output channels of a panel, which are the columns of a block.
const PANEL: usize = <Amx<bf16> as Core>::NR;
/// Channels of a step of products, which is a cache line of a map.
const STEP: usize = <Amx<bf16> as Core>::STEP;
/// Channels that are multiplied before the next taps.
const CHUNK: usize = 256;
/// Output pixels of a task, whose rows, sums and weights share a second-level cache.
const PIXELS: usize = 512;
/// Panels of output channels whose sums are kept together.
const TOGETHER: usize = 8;
/// Panels that are stored together: neighbouring channels of a pixel, of the map that is added, too.
const STORED: usize = 8;
/// Values of a task's rows, of one chunk.
const ROWS: usize = 384 << 10;

/// Whether [`forward`] is the way to compute this.
pub fn takes<E: Element>(isa: Isa, geometry: &Geometry) -> bool {
    let tiles = if is::<E, bf16>() {
        isa.has(Level::Amx)
    } else {
        is::<E, f16>() && isa.has(Level::AmxFp16)
    };
    if !tiles || geometry.sizes().contains(&0) {
        return false;
    }
    if geometry.is_depthwise() {
        return geometry.c_in >= TILE;
    }
    let geometry = geometry.flattened();
    let width = geometry.output[1];
    // Tiles that are mostly filled; few channels are a small part of a step.
    geometry.options.groups == 1
        && geometry.c_in >= STEP
        && geometry.c_out >= TILE
        && 4 * width >= 3 * width.next_multiple_of(TILE)
}

/// `act(x * weight + bias + skip)`; `x` and `skip` lie channels last, and so does the result.
///
/// # Panics
/// If this is none that [`takes`] is true of, or the operands have other sizes.
pub fn forward<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
) -> Vec<E> {
    assert!(takes::<E>(isa, geometry));
    let geometry = geometry.flattened();
    check_forward(&geometry, x, weight, tail);
    let [_, _, length] = geometry.sizes();
    let mut output = Vec::with_capacity(length);
    let target = Shared(output.as_mut_ptr());
    // SAFETY: the target has room for the output, all of which is written.
    unsafe {
        if geometry.is_depthwise() {
            depthwise::forward(isa, &geometry, x, weight, tail, target);
        } else if is::<E, bf16>() {
            let core = Amx::<bf16>::on(isa);
            dense(core, &geometry, x, weight, tail, target);
        } else {
            let core = Amx::<f16>::on(isa);
            dense(core, &geometry, x, weight, tail, target);
        }
        output.set_len(length);
    }
    output
}

/// How a convolution is cut into tasks. Which products are summed in which order depends on the sizes of the convolution
/// alone, not on how many threads there are.
pub struct Plan {
    /// Channels of the input, with those that fill up the last step.
    channels: usize,
    /// Channels that are multiplied in one go.
    chunk: usize,
    /// Whether tiles take the input where it lies.
    direct: bool,
    /// Height and width of a task's outputs.
    rectangle: [usize; 2],
    /// Panels of output channels of a task.
    panels: usize,
}

impl Plan {
    fn of(geometry: &Geometry) -> Self {
        let channels = geometry.c_in.next_multiple_of(STEP);
        let plain = geometry.kernel == [1, 1] && geometry.options.padding == [0, 0];
        // Sixteen lines apart, the 32 pixels of a block and their lines just fit the first-level cache.
        let direct = plain
            && geometry.c_in == channels
            && channels * geometry.options.stride[1] <= 16 * STEP
            && geometry.output[1] >= TILE;
        let all_panels = geometry.c_out.div_ceil(PANEL);
        // Of the kernel and the channels alone: a packed weight fits maps of any size.
        let chunk = match geometry.kernel[0] {
            // In one go, where that fits the first-level cache.
            1 if channels <= 2 * CHUNK => channels,
            1 => CHUNK,
            // The rows of all taps share the second-level cache.
            _ if channels > CHUNK => CHUNK / 2,
            _ => CHUNK,
        };
        let mut plan = Self {
            channels,
            chunk: channels.min(chunk),
            direct,
            rectangle: [1, 1],
            panels: all_panels,
        };
        let mut pixels = PIXELS;
        plan.cut(geometry, pixels);
        while !direct && plan.rows(geometry) * plan.row(geometry) > ROWS && pixels > 2 * TILE {
            pixels /= 2;
            plan.cut(geometry, pixels);
        }
        if !plan.is_short(geometry) {
            plan.panels = all_panels.div_ceil(all_panels.div_ceil(TOGETHER));
        }
        // Enough tasks for every thread.
        let wanted = 3 * rayon::current_num_threads();
        while plan.tasks(geometry) < wanted && pixels > 2 * TILE {
            pixels /= 2;
            plan.cut(geometry, pixels);
        }
        while plan.tasks(geometry) < wanted && plan.panels > 1 {
            plan.panels = plan.panels.div_ceil(2);
        }
        plan
    }

    /// Tasks of about this many pixels.
    fn cut(&mut self, geometry: &Geometry, pixels: usize) {
        let [height, width] = geometry.output;
        let width = width.min(pixels.max(2 * TILE));
        self.rectangle = [(pixels / width).clamp(1, height), width];
    }

    /// Whether a block's sums are complete after one go.
    fn is_short(&self, geometry: &Geometry) -> bool {
        self.chunk == self.channels && geometry.kernel[0] == 1
    }

    /// The most rows of the input that a task reads.
    fn rows(&self, geometry: &Geometry) -> usize {
        let (rows, taps) = (self.rectangle[0], geometry.kernel[0]);
        let reach = (taps - 1) * geometry.options.dilation[0];
        let stride = geometry.options.stride[0];
        (rows * taps).min((rows - 1) * stride + reach + 1)
    }

    /// Pixels of a copied row.
    fn row_pixels(&self, geometry: &Geometry) -> usize {
        let columns = self.rectangle[1].next_multiple_of(TILE);
        let reach = (geometry.kernel[1] - 1) * geometry.options.dilation[1];
        (columns - 1) * geometry.options.stride[1] + reach + 1
    }

    /// Values from one copied pixel to the next: an odd number of lines, so that neighbours do not meet in one set of
    /// the cache.
    fn pixel(&self) -> usize {
        ((self.chunk / STEP) | 1) * STEP
    }

    /// Values of a copied row.
    fn row(&self, geometry: &Geometry) -> usize {
        self.row_pixels(geometry) * self.pixel()
    }

    /// Tasks along images, panels, rows and columns.
    fn counts(&self, geometry: &Geometry) -> [usize; 4] {
        [
            geometry.batch,
            geometry.c_out.div_ceil(PANEL).div_ceil(self.panels),
            geometry.output[0].div_ceil(self.rectangle[0]),
            geometry.output[1].div_ceil(self.rectangle[1]),
        ]
    }

    fn tasks(&self, geometry: &Geometry) -> usize {
        self.counts(geometry).iter().product()
    }

    /// Values of the copied rows, and sums of a task.
    fn scratch(&self, geometry: &Geometry) -> [usize; 2] {
        let rows = match self.direct {
            true => 0,
            // One more of zeros.
            false => (self.rows(geometry) + 1) * self.row(geometry),
        };
        let [height, width] = self.rectangle;
        let blocks = match self.is_short(geometry) {
            true => STORED.min(self.panels),
            false => (height * width.div_ceil(TILE)).div_ceil(2) * self.panels,
        };
        [rows, blocks * <Amx<bf16> as Core>::BLOCK]
    }
}

/// # Safety
/// `output` has room for the output.
unsafe fn dense<F: Tiled, E: Element, W: Element>(
    _: Amx<F>,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    output: Shared<E>,
) {
    assert!(is::<E, F>());
    let plan = Plan::of(geometry);
    let kernel = TypeId::of::<(Plan, F)>();
    let packed = kept::packed(weight.owner, weight.scale, kernel, || {
        let packed = pack::<E, W>(F::ISA, geometry, &plan, weight);
        let bytes = size_of_val(&packed[..]);
        Some((packed, bytes))
    });
    let packed = packed.expect("a weight can always be packed");
    let [_, groups, rows, columns] = plan.counts(geometry);
    let all_panels = geometry.c_out.div_ceil(PANEL);
    let part = |index: usize, size: usize, all: usize| -> Range<usize> {
        index * size..all.min((index + 1) * size)
    };
    tasks::each(plan.tasks(geometry), |index| {
        let (rest, column) = (index / columns, index % columns);
        let (rest, row) = (rest / rows, rest % rows);
        let (image, group) = (rest / groups, rest % groups);
        let task = Task::<E, F> {
            geometry,
            plan: &plan,
            weight: &packed,
            x,
            tail,
            output,
            image,
            panels: part(group, plan.panels, all_panels),
            rows: part(row, plan.rectangle[0], geometry.output[0]),
            columns: part(column, plan.rectangle[1], geometry.output[1]),
            tiles: std::marker::PhantomData,
        };
        with_scratch(plan.scratch(geometry), |values: &mut [u16], sums| {
            // SAFETY: the core was given by who found the instructions; tasks write disjoint pixels or channels.
            unsafe { compiled(F::ISA, (&task, values, sums)) }
        });
    });
}
