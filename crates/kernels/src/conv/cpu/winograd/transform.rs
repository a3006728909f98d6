//! Kernels and inputs to points, and sums of points to outputs.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::geometry::Geometry;
use super::super::micro::{Core, LANES};
use super::super::tail::Tail;
use super::super::weight::rounded;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::plan::{Kernels, Layout, Run, Tile};
use super::scheme::{Lanes, Minimal, Scheme, both_axes};
use crate::cpu::element::Element;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Level;
use crate::cpu::isa::{Registers, Work, compiled};
use crate::cpu::scratch::{Shared, prefetch};
use crate::cpu::tasks;

/// Kernels of an output channel that are read in one go.
const FETCHED: usize = 16;
/// Channels that are fetched ahead of those that are transformed.
const AHEAD: usize = 2;
/// The largest dilation of which a row is first copied whole.
const DENSE: usize = 4;

/// Packs the transformed kernels of `channels`: `[point][panel of MR output channels][channel][MR]`.
pub fn transform_kernels<C, E, W, const TILE: usize, const WINDOW: usize>(
    geometry: &Geometry,
    kernels: Kernels<'_, W>,
    channels: Range<usize>,
    layout: Layout,
    target: Shared<f32>,
) where
    C: Core<Value = f32>,
    E: Element,
    W: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    tasks::each(layout.rows, |row| {
        let work = TransformKernels::<C, E, W, TILE, WINDOW> {
            kernels,
            channels: channels.clone(),
            outs: row * C::MR..geometry.c_out.min((row + 1) * C::MR),
            layout,
            target: Shared(target.at(row * channels.len() * C::MR)),
            types: PhantomData,
        };
        // SAFETY: cores are chosen by what the processor has; rows of panels are tasks' own.
        unsafe { compiled(C::ISA, work) }
    });
}

struct TransformKernels<'a, C, E, W, const TILE: usize, const WINDOW: usize> {
    kernels: Kernels<'a, W>,
    channels: Range<usize>,
    outs: Range<usize>,
    layout: Layout,
    target: Shared<f32>,
    types: PhantomData<(C, E)>,
}

impl<C, E, W, const TILE: usize, const WINDOW: usize> Work
    for TransformKernels<'_, C, E, W, TILE, WINDOW>
where
    C: Core<Value = f32>,
    E: Element,
    W: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    /// # Safety
    /// The target has room for all points of this row of panels, which no other thread writes.
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let Kernels {
            weight,
            strides,
            turned,
        } = self.kernels;
        // Some lanes more than rows of a block.
        let mut taps = [[[0f32; 9]; FETCHED]; LANES];
        for (step, channel) in self.channels.clone().enumerate() {
            if step % FETCHED == 0 {
                // In long runs: a kernel at a time would wait for memory each time.
                let channels = channel..self.channels.end.min(channel + FETCHED);
                for (out, taps) in self.outs.clone().zip(&mut taps) {
                    for (channel, taps) in channels.clone().zip(taps) {
                        let start = out * strides[0] + channel * strides[1];
                        for (tap, value) in taps.iter_mut().zip(&weight.values[start..start + 9]) {
                            let scale = weight.scale.map(|scale| scale[out]);
                            *tap = rounded::<E, W>(*value, scale).widen();
                        }
                    }
                }
            }
            let mut kernel = [[[0f32; LANES]; 3]; 3];
            for tap in 0..9 {
                let from = if turned { 8 - tap } else { tap };
                for (lane, taps) in taps.iter().enumerate().take(C::MR) {
                    kernel[tap / 3][tap % 3][lane] = taps[step % FETCHED][from];
                }
            }
            let points = both_axes!(Minimal::kernel, &kernel, 3, WINDOW);
            for (point, values) in points.iter().flatten().enumerate() {
                let target = self.target.at(point * self.layout.kernels + step * C::MR);
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), target, C::MR) };
            }
        }
    }
}

/// Transforms some channels of the inputs of some groups of tiles.
pub struct TransformInputs<'a, C, E, const TILE: usize, const WINDOW: usize> {
    pub geometry: &'a Geometry,
    pub x: &'a [E],
    /// All that are summed in one go.
    pub channels: Range<usize>,
    /// Those of this task, counted from the first of `channels`.
    pub steps: Range<usize>,
    pub groups: &'a [Vec<Run>],
    /// Of the groups, in the block.
    pub first: usize,
    pub layout: Layout,
    pub target: Shared<f32>,
    pub core: PhantomData<C>,
}

impl<C, E, const TILE: usize, const WINDOW: usize> Work
    for (TransformInputs<'_, C, E, TILE, WINDOW>, &mut [f32])
where
    C: Core<Value = f32>,
    E: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    /// # Safety
    /// The target has room for the block, of which no other thread writes these channels of these groups.
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let (work, line) = self;
        for (group, runs) in work.groups.iter().enumerate() {
            let lane = (work.first + group) * LANES;
            let (panel, lane) = (lane / C::NR, lane % C::NR);
            for step in work.steps.clone() {
                let channel = work.channels.start + step;
                work.prefetch(runs, channel + AHEAD);
                let window = work.window(runs, channel, line);
                let points = both_axes!(Minimal::input, &window, WINDOW, WINDOW);
                let at = (panel * work.channels.len() + step) * C::NR + lane;
                for (point, values) in points.iter().flatten().enumerate() {
                    let target = work.target.at(at + point * work.layout.inputs);
                    // SAFETY: the caller's promise.
                    unsafe { target.cast::<Lanes>().write(*values) };
                }
            }
        }
    }
}

impl<C, E: Element, const TILE: usize, const WINDOW: usize> TransformInputs<'_, C, E, TILE, WINDOW>
where
    C: Core<Value = f32>,
{
    /// Asks for what a later [`window`](Self::window) reads: each channel lies in pages of its own.
    #[inline(always)]
    fn prefetch(&self, runs: &[Run], channel: usize) {
        let geometry = self.geometry;
        let [height, width] = geometry.input;
        let [dilation_y, dilation_x] = geometry.options.dilation;
        let [padding_y, padding_x] = geometry.options.padding;
        for run in runs {
            let start = (run.tile.image * geometry.c_in + channel) * height * width;
            let count = ((run.last - run.first) * TILE + 2) * dilation_x;
            for i in 0..WINDOW {
                let y = (run.tile.y + i * dilation_y).wrapping_sub(padding_y);
                let at = start + y.min(height) * width + run.tile.x;
                prefetch(self.x, at.wrapping_sub(padding_x), count.min(width));
            }
        }
    }

    /// One channel's inputs of a group of tiles, each in a lane.
    #[inline(always)]
    fn window(&self, runs: &[Run], channel: usize, line: &mut [f32]) -> [[Lanes; WINDOW]; WINDOW] {
        let geometry = self.geometry;
        let [height, width] = geometry.input;
        let [dilation_y, dilation_x] = geometry.options.dilation;
        let [padding_y, padding_x] = geometry.options.padding;
        let step = TILE * dilation_x;
        let mut window = [[[0.0; LANES]; WINDOW]; WINDOW];
        #[cfg(target_arch = "x86_64")]
        if C::ISA.has(Level::Avx512) && avx512::handles(step) {
            for run in runs {
                let start = (run.tile.image * geometry.c_in + channel) * height * width;
                let plane = &self.x[start..start + height * width];
                // Where lane 0 would start.
                let first = run.tile.x.wrapping_sub(padding_x + run.first * step);
                for (i, row) in window.iter_mut().enumerate() {
                    let y = (run.tile.y + i * dilation_y).wrapping_sub(padding_y);
                    if y >= height {
                        continue;
                    }
                    let source = plane.as_ptr().wrapping_add((y * width).wrapping_add(first));
                    for (j, lanes) in row.iter_mut().enumerate() {
                        let source = source.wrapping_add(j * dilation_x);
                        let masks = &run.masks.0[j];
                        // SAFETY: masks have pixels of this row; the caller promises the instructions.
                        unsafe {
                            match step {
                                2 => avx512::gather::<E, 2>(source, masks, lanes),
                                4 => avx512::gather::<E, 4>(source, masks, lanes),
                                _ => avx512::gather::<E, 8>(source, masks, lanes),
                            }
                        }
                    }
                }
            }
            return window;
        }
        for run in runs {
            let start = (run.tile.image * geometry.c_in + channel) * height * width;
            let plane = &self.x[start..start + height * width];
            let first = run.tile.x as isize - padding_x as isize;
            for (i, row) in window.iter_mut().enumerate() {
                let y = (run.tile.y + i * dilation_y).wrapping_sub(padding_y);
                if y >= height {
                    continue;
                }
                let source = &plane[y * width..][..width];
                if dilation_x > DENSE {
                    for (j, lanes) in row.iter_mut().enumerate() {
                        let lanes = &mut lanes[run.first..run.last];
                        for (i, lane) in lanes.iter_mut().enumerate() {
                            let x = first + (i * step + j * dilation_x) as isize;
                            if let Some(value) = source.get(x as usize) {
                                *lane = value.widen();
                            }
                        }
                    }
                    continue;
                }
                // The pixels of lane `l` start at `l * step` of the line.
                let count = (run.last - run.first - 1) * step + (WINDOW - 1) * dilation_x + 1;
                let line_of_run = &mut line[run.first * step..][..count];
                let before = first.min(0).unsigned_abs().min(count);
                let last = (width as isize - first).clamp(before as isize, count as isize) as usize;
                line_of_run[..before].fill(0.0);
                if last > before {
                    let at = (first + before as isize) as usize;
                    E::widen_run(
                        C::ISA,
                        &source[at..at + last - before],
                        &mut line_of_run[before..last],
                    );
                }
                line_of_run[last..].fill(0.0);
                let line = &*line;
                for (j, lanes) in row.iter_mut().enumerate() {
                    let line = &line[j * dilation_x..];
                    match step {
                        2 => every::<2>(line, run, lanes),
                        4 => every::<4>(line, run, lanes),
                        8 => every::<8>(line, run, lanes),
                        16 => every::<16>(line, run, lanes),
                        _ => {
                            for lane in run.first..run.last {
                                lanes[lane] = line[lane * step];
                            }
                        }
                    }
                }
            }
        }
        window
    }
}

/// Every `STEP`th value of a line, for the lanes of a run.
#[inline(always)]
fn every<const STEP: usize>(line: &[f32], run: &Run, lanes: &mut Lanes) {
    assert!(line.len() > (LANES - 1) * STEP);
    let values: Lanes = std::array::from_fn(|lane| line[lane * STEP]);
    if run.last - run.first == LANES {
        *lanes = values;
        return;
    }
    for lane in 0..LANES {
        let wanted = lane >= run.first && lane < run.last;
        lanes[lane] = if wanted { values[lane] } else { lanes[lane] };
    }
}

/// Transforms the sums of some channels back, adds what follows them, rounds and stores.
pub struct Store<'a, C, E, const TILE: usize, const WINDOW: usize> {
    pub geometry: &'a Geometry,
    pub groups: &'a [Vec<Run>],
    /// Panels of channels.
    pub rows: Range<usize>,
    /// Panels of tiles.
    pub panels: Range<usize>,
    pub layout: Layout,
    pub sums: Shared<f32>,
    pub tail: Tail<'a, E>,
    pub output: Shared<E>,
    #[cfg(target_arch = "x86_64")]
    pub scatter: &'a avx512::Scatter,
    pub core: PhantomData<C>,
}

impl<C, E, const TILE: usize, const WINDOW: usize> Work for Store<'_, C, E, TILE, WINDOW>
where
    C: Core<Value = f32>,
    E: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    /// # Safety
    /// The output has room for all tiles; no other thread writes these tiles of these channels.
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let geometry = self.geometry;
        let [height, width] = geometry.output;
        let [dilation_y, dilation_x] = geometry.options.dilation;
        // In the order in which sums lie in memory.
        let panels = self.groups.chunks(C::NR / LANES).enumerate();
        let panels = panels.take(self.panels.end).skip(self.panels.start);
        for ((row, (panel, groups)), i) in self
            .rows
            .clone()
            .flat_map(|row| panels.clone().map(move |panel| (row, panel)))
            .flat_map(|block| (0..C::MR).map(move |i| (block, i)))
        {
            let channel = row * C::MR + i;
            if channel >= geometry.c_out {
                continue;
            }
            for (group, runs) in groups.iter().enumerate() {
                let at = (row * self.layout.panels + panel) * C::BLOCK + i * C::NR + group * LANES;
                let sums: [[Lanes; WINDOW]; WINDOW] = std::array::from_fn(|i| {
                    std::array::from_fn(|j| {
                        let at = (i * WINDOW + j) * self.layout.sums + at;
                        // SAFETY: the products of every block were summed.
                        unsafe { self.sums.at(at).cast::<Lanes>().read() }
                    })
                });
                let values = both_axes!(Minimal::output, &sums, WINDOW, TILE);
                #[cfg(target_arch = "x86_64")]
                if C::ISA.has(Level::Avx512) && avx512::handles(TILE * dilation_x) {
                    let bias = self.tail.bias.map_or(0.0, |bias| bias[channel]);
                    for run in runs {
                        let Tile { image, y, x } = run.tile;
                        let first = x.wrapping_sub(run.first * TILE * dilation_x);
                        let plane = (image * geometry.c_out + channel) * height;
                        for (i, values) in values.iter().enumerate() {
                            let y = y + i * dilation_y;
                            if y >= height {
                                break;
                            }
                            let at = ((plane + y) * width).wrapping_add(first);
                            let target = self.output.at(at);
                            let skip = self.tail.skip.map(|skip| skip.as_ptr().wrapping_add(at));
                            let (masks, relu) = (&run.masks.1, self.tail.relu);
                            let to = self.scatter;
                            // SAFETY: masks have pixels of this row; the caller promises the rest.
                            unsafe {
                                match TILE * dilation_x {
                                    2 => to.store::<E, TILE, 2>(
                                        values, masks, bias, skip, relu, target,
                                    ),
                                    4 => to.store::<E, TILE, 4>(
                                        values, masks, bias, skip, relu, target,
                                    ),
                                    _ => to.store::<E, TILE, 8>(
                                        values, masks, bias, skip, relu, target,
                                    ),
                                }
                            }
                        }
                    }
                    continue;
                }
                for (i, values) in values.iter().enumerate() {
                    // Neighbouring outputs of an interleaved map.
                    let mut line = [[0f32; TILE]; LANES];
                    for (lane, line) in line.iter_mut().enumerate() {
                        *line = std::array::from_fn(|j| values[j][lane]);
                    }
                    let line = line.as_flattened_mut();
                    for run in runs {
                        let Tile { image, y, x } = run.tile;
                        let y = y + i * dilation_y;
                        if y >= height {
                            continue;
                        }
                        let count = (width - x).div_ceil(dilation_x);
                        let count = count.min((run.last - run.first) * TILE);
                        let values = &mut line[run.first * TILE..][..count];
                        let start = ((image * geometry.c_out + channel) * height + y) * width + x;
                        let target = self.output.at(start);
                        if dilation_x == 1 {
                            // SAFETY: a run's outputs are neighbours in a row of this task's channel.
                            let target =
                                unsafe { std::slice::from_raw_parts_mut(target.cast(), count) };
                            self.tail.store(C::ISA, channel, start, values, target);
                            continue;
                        }
                        for (k, value) in values.iter_mut().enumerate() {
                            let at = k * dilation_x;
                            self.tail.apply(
                                C::ISA,
                                channel,
                                start + at,
                                std::slice::from_mut(value),
                            );
                            // SAFETY: as above, with other pixels between them.
                            unsafe { target.add(at).write(E::narrow(*value)) };
                        }
                    }
                }
            }
        }
    }
}
