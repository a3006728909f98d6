//! Forward pass and input gradient.
//!
//! A block of tiles is transformed into `[point][panel of NR tiles][channel][NR]`, the products of each
//! point are a task of their own, and the sums are transformed back: kernels are read once for a whole
//! block, however many threads there are.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::super::geometry::Geometry;
use super::super::micro::{Core, LANES};
use super::super::tail::Tail;
use super::super::weight::{Weight, rounded};
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{
    APART, Lanes, Minimal, Multiply, Scheme, Tile, both_axes, direct_products, tiles, tiles_along,
};
use crate::cpu::element::Element;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Isa;
use crate::cpu::isa::{Work, compiled};
use crate::cpu::scratch::{Room, Shared, prefetch, with_scratch};

/// Input channels that are summed in one go: longer than in direct sums, because sums are held for
/// all points at once and go through memory.
const DEPTH: usize = 512;
/// Values of the transformed inputs and of the sums of a block, which a third-level cache holds. Where
/// channels are cut, so many times as many: kernels are transformed anew for every block and cut.
const HELD: usize = 2 << 20;
/// Values of kernels that share a panel of inputs in the cache.
const CHUNK: usize = 96 << 10;
/// Kernels of an output channel that are read in one go.
const FETCHED: usize = 16;
/// Channels that are fetched ahead of those that are transformed.
const AHEAD: usize = 2;
/// The most columns of a window.
#[cfg(target_arch = "x86_64")]
const MOST: usize = 6;
/// The largest dilation of which a row is first copied whole.
const DENSE: usize = 4;

/// What the transforms of 32 channels cost, in products: measured roughly.
const OVERHEAD: usize = 6;

/// Whether F(TILE x TILE, 3x3) is faster than sums.
pub fn pays<const TILE: usize>(geometry: &Geometry) -> bool {
    let options = geometry.options;
    let fits = geometry.kernel == [3, 3] && options.stride == [1, 1] && options.groups == 1;
    if !fits || geometry.c_in < 32 || geometry.c_out < 32 {
        return false;
    }
    let points = (TILE + 2) * (TILE + 2);
    let transformed = tiles_along(geometry, 0, TILE) * tiles_along(geometry, 1, TILE) * points;
    // A transform costs the same for few channels as for many.
    let least = geometry.c_in.min(geometry.c_out);
    transformed + transformed * 32 * OVERHEAD / least < direct_products(geometry)
}

/// The kernels of a convolution, as one of stride 1 sees them.
#[derive(Clone, Copy)]
pub struct Kernels<'a, W> {
    weight: Weight<'a, W>,
    /// Values from one output channel, and from one input channel, to the next.
    strides: [usize; 2],
    /// Whether taps are counted from the last.
    turned: bool,
}

impl<'a, W> Kernels<'a, W> {
    /// Of the forward pass.
    pub fn forward(geometry: &Geometry, weight: Weight<'a, W>) -> Self {
        Self {
            weight,
            strides: [geometry.c_in * 9, 9],
            turned: false,
        }
    }

    /// Of the convolution that makes the input's gradient from the output's, and that convolution.
    /// None where it would have to crop.
    pub fn input_gradient(geometry: &Geometry, weight: &'a [W]) -> Option<(Geometry, Self)> {
        let mut options = geometry.options;
        for (padding, dilation) in options.padding.iter_mut().zip(options.dilation) {
            *padding = (2 * dilation).checked_sub(*padding)?;
        }
        let kernels = Self {
            weight: Weight::plain(weight),
            strides: [9, geometry.c_in * 9],
            turned: true,
        };
        let geometry = Geometry {
            c_in: geometry.c_out,
            c_out: geometry.c_in,
            input: geometry.output,
            output: geometry.input,
            options,
            ..*geometry
        };
        Some((geometry, kernels))
    }
}

/// How the buffers of a block are laid out.
#[derive(Clone, Copy)]
struct Layout {
    /// Panels of tiles.
    panels: usize,
    /// Panels of output channels.
    rows: usize,
    /// Values from one point to the next.
    inputs: usize,
    kernels: usize,
    sums: usize,
}

impl Layout {
    fn new<C: Core>(panels: usize, c_out: usize, depth: usize) -> Self {
        let rows = c_out.div_ceil(C::MR);
        Self {
            panels,
            rows,
            inputs: panels * depth * C::NR + APART,
            kernels: rows * depth * C::MR + APART,
            sums: rows * panels * C::BLOCK + APART,
        }
    }
}

/// Writes every output.
///
/// # Safety
/// `output` has room for the output; the processor has the core's instructions.
pub unsafe fn forward<C, E, W, const TILE: usize, const WINDOW: usize>(
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
            groups
                .par_chunks(share)
                .enumerate()
                .for_each(|(chunk, groups)| {
                    let work = TransformInputs::<C, E, TILE, WINDOW> {
                        geometry,
                        x,
                        channels: channels.clone(),
                        groups,
                        first: chunk * share,
                        layout,
                        target,
                        core: PhantomData,
                    };
                    with_scratch([0, line], |_: &mut [f32], line| {
                        // SAFETY: the caller promises the instructions; groups own their lanes.
                        unsafe { compiled(C::ISA, (work, line)) };
                    });
                });
            let chunk = (CHUNK / (depth * C::MR)).max(1);
            let chunks = layout.rows.div_ceil(chunk);
            (0..points * chunks).into_par_iter().for_each(|task| {
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
        (0..layout.rows.div_ceil(share))
            .into_par_iter()
            .for_each(|task| {
                let work = Store::<C, E, TILE, WINDOW> {
                    geometry,
                    groups: &groups,
                    rows: task * share..layout.rows.min((task + 1) * share),
                    layout,
                    sums,
                    tail,
                    output,
                    #[cfg(target_arch = "x86_64")]
                    scatter: &scatter,
                    core: PhantomData,
                };
                // SAFETY: the caller promises the instructions and the room; tasks own their channels.
                unsafe { compiled(C::ISA, work) };
            });
    }
}

/// Neighbouring tiles of one row, in lanes `first..last` of a group.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    last: usize,
    /// Of the first tile.
    tile: Tile,
    /// For each column of the window, which values of a row there are; and which outputs.
    #[cfg(target_arch = "x86_64")]
    masks: ([avx512::Masks; MOST], avx512::Masks),
}

fn runs(
    geometry: &Geometry,
    tiles: &[Tile],
    tile_size: usize,
    #[cfg(target_arch = "x86_64")] scatter: &avx512::Scatter,
) -> Vec<Run> {
    let step = tile_size * geometry.options.dilation[1];
    let mut runs: Vec<Run> = Vec::with_capacity(2);
    for (lane, &tile) in tiles.iter().enumerate() {
        match runs.last_mut() {
            Some(run)
                if run.tile.image == tile.image
                    && run.tile.y == tile.y
                    && run.tile.x + (run.last - run.first) * step == tile.x =>
            {
                run.last += 1;
            }
            _ => runs.push(Run {
                first: lane,
                last: lane + 1,
                tile,
                #[cfg(target_arch = "x86_64")]
                masks: Default::default(),
            }),
        }
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::handles(step) {
        for run in &mut runs {
            let first = run.tile.x as isize - geometry.options.padding[1] as isize;
            for (j, masks) in run.masks.0.iter_mut().enumerate() {
                let offset = first + (j * geometry.options.dilation[1]) as isize;
                *masks = avx512::masks(step, |lane| {
                    let x = offset + (lane as isize - run.first as isize) * step as isize;
                    (run.first..run.last).contains(&lane)
                        && x >= 0
                        && x < geometry.input[1] as isize
                });
            }
            let count = geometry.output[1] - run.tile.x;
            run.masks.1 = scatter.masks(step, run.first, run.last, count);
        }
    }
    runs
}

/// Packs the transformed kernels of `channels`: `[point][panel of MR output channels][channel][MR]`.
fn transform_kernels<C, E, W, const TILE: usize, const WINDOW: usize>(
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
    (0..layout.rows).into_par_iter().for_each(|row| {
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
    unsafe fn run(self) {
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

/// Transforms the inputs of some groups of tiles.
struct TransformInputs<'a, C, E, const TILE: usize, const WINDOW: usize> {
    geometry: &'a Geometry,
    x: &'a [E],
    channels: Range<usize>,
    groups: &'a [Vec<Run>],
    /// Of the groups, in the block.
    first: usize,
    layout: Layout,
    target: Shared<f32>,
    core: PhantomData<C>,
}

impl<C, E, const TILE: usize, const WINDOW: usize> Work
    for (TransformInputs<'_, C, E, TILE, WINDOW>, &mut [f32])
where
    C: Core<Value = f32>,
    E: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    /// # Safety
    /// The target has room for the block, of which no other thread writes the lanes of these groups.
    #[inline(always)]
    unsafe fn run(self) {
        let (work, line) = self;
        for (group, runs) in work.groups.iter().enumerate() {
            let lane = (work.first + group) * LANES;
            let (panel, lane) = (lane / C::NR, lane % C::NR);
            for (step, channel) in work.channels.clone().enumerate() {
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
        if C::ISA >= Isa::Avx512 && avx512::handles(step) {
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
struct Store<'a, C, E, const TILE: usize, const WINDOW: usize> {
    geometry: &'a Geometry,
    groups: &'a [Vec<Run>],
    /// Panels of channels.
    rows: Range<usize>,
    layout: Layout,
    sums: Shared<f32>,
    tail: Tail<'a, E>,
    output: Shared<E>,
    #[cfg(target_arch = "x86_64")]
    scatter: &'a avx512::Scatter,
    core: PhantomData<C>,
}

impl<C, E, const TILE: usize, const WINDOW: usize> Work for Store<'_, C, E, TILE, WINDOW>
where
    C: Core<Value = f32>,
    E: Element,
    Minimal: Scheme<TILE, WINDOW>,
{
    /// # Safety
    /// The output has room for all tiles; no other thread writes these channels.
    #[inline(always)]
    unsafe fn run(self) {
        let geometry = self.geometry;
        let [height, width] = geometry.output;
        let [dilation_y, dilation_x] = geometry.options.dilation;
        // In the order in which sums lie in memory.
        let panels = self.groups.chunks(C::NR / LANES).enumerate();
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
                if C::ISA >= Isa::Avx512 && avx512::handles(TILE * dilation_x) {
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
                            let target = unsafe { std::slice::from_raw_parts_mut(target, count) };
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
