//! 3x3 convolutions of stride 1 with a quarter of the products: Winograd's minimal filtering
//! F(4x4, 3x3) (arXiv:1509.09308). Four by four outputs come from 36 products of transformed 6x6
//! inputs and transformed kernels, instead of 144.
//!
//! The transforms add and scale, which loses about a digit against direct sums: results stay within
//! 1e-4 (2-norm), so only inference uses this. A dilation `d` is `d * d` interleaved maps of
//! dilation 1.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::isa::{Work, compiled};
use super::micro::{Core, LANES, Walk};
use super::{Aligned, Element, Geometry, Shared, Tail, Weight, inside, with_scratch};

/// Outputs of a tile in each direction.
const TILE: usize = 4;
/// Inputs of a tile in each direction.
const WINDOW: usize = 6;
/// Products of a tile and channel.
const POINTS: usize = WINDOW * WINDOW;
/// Input channels that are summed in one go: longer than in direct sums, because sums are held for
/// all points at once and go through memory.
const DEPTH: usize = 512;
/// Values of the transformed inputs of a task: a few times a second-level cache, which the products of
/// one point fit.
const STRIP: usize = 2 << 20;
/// Values of the sums that are held at a time: 9 bytes for every 4 of the output that they make.
const HELD: usize = 12 << 20;
/// Values of kernels that share a strip of inputs in the cache.
const CHUNK: usize = 96 << 10;

/// What the transforms cost, in products of the direct sum, per channel and tile: measured roughly.
const OVERHEAD: usize = 2;

/// Whether a convolution is faster this way than summed directly.
pub fn pays(geometry: &Geometry) -> bool {
    let options = geometry.options;
    let fits = geometry.kernel == [3, 3] && options.stride == [1, 1] && options.groups == 1;
    if !fits || geometry.c_in < 32 || geometry.c_out < 32 {
        return false;
    }
    let pixels = |axis: usize| {
        (0..3).map(move |tap| {
            let offset = geometry.offset(axis, tap);
            inside(geometry.output[axis], 1, offset, geometry.input[axis]).len()
        })
    };
    let direct: usize = pixels(0)
        .map(|rows| pixels(1).map(|columns| rows * columns).sum::<usize>())
        .sum();
    let transformed = tiles_along(geometry, 0) * tiles_along(geometry, 1) * POINTS;
    // A transform costs the same for few channels as for many.
    let least = geometry.c_in.min(geometry.c_out);
    transformed + transformed * 32 * OVERHEAD / least < direct
}

/// Tiles of all interleaved maps along one axis.
fn tiles_along(geometry: &Geometry, axis: usize) -> usize {
    let (size, dilation) = (geometry.output[axis], geometry.options.dilation[axis]);
    (0..dilation.min(size))
        .map(|residue| (size - residue).div_ceil(dilation).div_ceil(TILE))
        .sum()
}

/// Where a tile's first output lies.
#[derive(Clone, Copy)]
struct Tile {
    image: usize,
    y: usize,
    x: usize,
}

fn tiles(geometry: &Geometry) -> Vec<Tile> {
    let starts = |axis: usize| -> Vec<usize> {
        let (size, dilation) = (geometry.output[axis], geometry.options.dilation[axis]);
        (0..dilation.min(size))
            .flat_map(|residue| (residue..size).step_by(dilation * TILE))
            .collect()
    };
    let (rows, columns) = (starts(0), starts(1));
    let mut tiles = Vec::with_capacity(geometry.batch * rows.len() * columns.len());
    for image in 0..geometry.batch {
        for &y in &rows {
            tiles.extend(columns.iter().map(|&x| Tile { image, y, x }));
        }
    }
    tiles
}

/// Writes every output.
///
/// # Safety
/// `output` has room for the output; the processor has the core's instructions.
pub unsafe fn forward<C: Core<Value = f32>, E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    output: Shared<E>,
) {
    let all = tiles(geometry);
    let rows = geometry.c_out.div_ceil(C::MR);
    let cuts = geometry.c_in.div_ceil(DEPTH);
    let depth = geometry.c_in.div_ceil(cuts);
    // Tasks of equal size, a few for every thread.
    let block = POINTS * rows * C::BLOCK;
    let held = (HELD / block).max(1) * C::NR;
    let held = all.len().div_ceil(all.len().div_ceil(held));
    let tasks = 3 * rayon::current_num_threads();
    let most = (STRIP / (POINTS * depth * C::NR)).max(1);
    let per_task = held.div_ceil(C::NR).div_ceil(tasks).clamp(1, most);
    let length = block * per_task;
    let mut sums = Aligned::<f32>::zeros(held.div_ceil(per_task * C::NR) * length);
    let mut kernels = Aligned::<f32>::zeros(POINTS * rows * depth * C::MR);
    for held in all.chunks(held) {
        for cut in 0..cuts {
            let channels = geometry.c_in * cut / cuts..geometry.c_in * (cut + 1) / cuts;
            transform_kernels::<C, E, W>(geometry, weight, channels.clone(), &mut kernels);
            let kernels = &kernels[..];
            sums.par_chunks_mut(length)
                .zip(held.par_chunks(per_task * C::NR))
                .for_each(|(sums, tiles)| {
                    let part = Part::<C> {
                        geometry,
                        tiles,
                        panels: per_task,
                        core: PhantomData,
                    };
                    let scratch = POINTS * per_task * channels.len() * C::NR;
                    with_scratch([scratch, 0], |strip: &mut [f32], _| {
                        let work = Multiply {
                            part: &part,
                            x,
                            channels: channels.clone(),
                            kernels,
                            strip,
                            sums,
                        };
                        // SAFETY: cores are chosen by what the processor has.
                        unsafe { compiled(C::ISA, work) }
                    });
                });
        }
        sums.par_chunks(length)
            .zip(held.par_chunks(per_task * C::NR))
            .for_each(|(sums, tiles)| {
                let part = Part::<C> {
                    geometry,
                    tiles,
                    panels: per_task,
                    core: PhantomData,
                };
                let work = Store {
                    part: &part,
                    sums,
                    tail,
                    output,
                };
                // SAFETY: cores are chosen by what the processor has; tiles own their outputs.
                unsafe { compiled(C::ISA, work) }
            });
    }
}

/// `[point][panel of MR output channels][channel][MR]` of `channels`.
fn transform_kernels<C: Core<Value = f32>, E: Element, W: Element>(
    geometry: &Geometry,
    weight: Weight<'_, W>,
    channels: std::ops::Range<usize>,
    target: &mut [f32],
) {
    struct Transform<'a, E, W, C> {
        geometry: &'a Geometry,
        weight: Weight<'a, W>,
        channels: std::ops::Range<usize>,
        row: usize,
        target: Shared<f32>,
        core: PhantomData<(E, C)>,
    }
    impl<E: Element, W: Element, C: Core<Value = f32>> Work for Transform<'_, E, W, C> {
        #[inline(always)]
        unsafe fn run(self) {
            // SAFETY: the caller's promises are the same.
            unsafe { self.transform() }
        }
    }
    impl<E: Element, W: Element, C: Core<Value = f32>> Transform<'_, E, W, C> {
        /// # Safety
        /// The target has room for all points of this row of panels, which no other thread writes.
        #[inline(always)]
        unsafe fn transform(self) {
            let Self {
                geometry,
                weight,
                channels,
                row,
                target,
                ..
            } = self;
            let rows = geometry.c_out.div_ceil(C::MR);
            let depth = channels.len();
            let outs = row * C::MR..geometry.c_out.min((row + 1) * C::MR);
            for (step, channel) in channels.enumerate() {
                // Some lanes more than rows of a block.
                let mut kernel = [[[0f32; LANES]; 3]; 3];
                for (lane, out) in outs.clone().enumerate() {
                    let start = (out * geometry.c_in + channel) * 9;
                    for (tap, value) in weight.values[start..start + 9].iter().enumerate() {
                        let mut value = value.widen();
                        if let Some(scale) = weight.scale {
                            value = E::narrow(value * scale[out]).widen();
                        }
                        kernel[tap / 3][tap % 3][lane] = value;
                    }
                }
                let mut half = [[[0f32; LANES]; 3]; WINDOW];
                for column in 0..3 {
                    let lines =
                        kernel_line(&[kernel[0][column], kernel[1][column], kernel[2][column]]);
                    for (half, line) in half.iter_mut().zip(lines) {
                        half[column] = line;
                    }
                }
                for (i, line) in half.iter().enumerate() {
                    for (j, values) in kernel_line(line).iter().enumerate() {
                        let point = i * WINDOW + j;
                        let at = ((point * rows + row) * depth + step) * C::MR;
                        // SAFETY: every row of panels is one task's own, inside the target.
                        unsafe {
                            std::ptr::copy_nonoverlapping(values.as_ptr(), target.at(at), C::MR);
                        }
                    }
                }
            }
        }
    }
    const { assert!(C::MR <= LANES) };
    let rows = geometry.c_out.div_ceil(C::MR);
    assert!(target.len() >= POINTS * rows * channels.len() * C::MR);
    let target = Shared(target.as_mut_ptr());
    (0..rows).into_par_iter().for_each(|row| {
        let work = Transform::<E, W, C> {
            geometry,
            weight,
            channels: channels.clone(),
            row,
            target,
            core: PhantomData,
        };
        // SAFETY: cores are chosen by what the processor has; rows of panels are tasks' own.
        unsafe { compiled(C::ISA, work) }
    });
}

/// `G g` of the paper, for several kernels side by side.
#[inline(always)]
fn kernel_line(g: &[[f32; LANES]; 3]) -> [[f32; LANES]; WINDOW] {
    let mut result = [[0f32; LANES]; WINDOW];
    for lane in 0..LANES {
        let [a, b, c] = [g[0][lane], g[1][lane], g[2][lane]];
        let (even, odd) = (-(a + c) / 6.0, -b / 6.0);
        let (wide_even, wide_odd) = (a / 24.0 + c / 6.0, b / 12.0);
        result[0][lane] = a / 4.0;
        result[1][lane] = even + odd;
        result[2][lane] = even - odd;
        result[3][lane] = wide_even + wide_odd;
        result[4][lane] = wide_even - wide_odd;
        result[5][lane] = c;
    }
    result
}

/// `B^T d` of the paper, for several tiles side by side.
#[inline(always)]
fn input_line(d: &[[f32; LANES]; WINDOW]) -> [[f32; LANES]; WINDOW] {
    let mut result = [[0f32; LANES]; WINDOW];
    for lane in 0..LANES {
        let d: [f32; WINDOW] = std::array::from_fn(|i| d[i][lane]);
        let (near_even, near_odd) = (d[4] - 4.0 * d[2], d[3] - 4.0 * d[1]);
        let (far_even, far_odd) = (d[4] - d[2], 2.0 * (d[3] - d[1]));
        result[0][lane] = 4.0 * d[0] - 5.0 * d[2] + d[4];
        result[1][lane] = near_even + near_odd;
        result[2][lane] = near_even - near_odd;
        result[3][lane] = far_even + far_odd;
        result[4][lane] = far_even - far_odd;
        result[5][lane] = 4.0 * d[1] - 5.0 * d[3] + d[5];
    }
    result
}

/// `A^T m` of the paper, for several tiles side by side.
#[inline(always)]
fn output_line(m: &[[f32; LANES]; WINDOW]) -> [[f32; LANES]; TILE] {
    let mut result = [[0f32; LANES]; TILE];
    for lane in 0..LANES {
        let m: [f32; WINDOW] = std::array::from_fn(|i| m[i][lane]);
        let (near_even, near_odd) = (m[1] + m[2], m[1] - m[2]);
        let (far_even, far_odd) = (m[3] + m[4], m[3] - m[4]);
        result[0][lane] = m[0] + near_even + far_even;
        result[1][lane] = near_odd + 2.0 * far_odd;
        result[2][lane] = near_even + 4.0 * far_even;
        result[3][lane] = near_odd + 8.0 * far_odd + m[5];
    }
    result
}

/// The tiles of one task, in `panels` panels of `NR`, of which the last may be short.
struct Part<'a, C> {
    geometry: &'a Geometry,
    tiles: &'a [Tile],
    panels: usize,
    core: PhantomData<C>,
}

/// For each input of some tiles, where it lies in its channel's plane, or a mask that clears it.
struct Inputs {
    offsets: [[u32; LANES]; POINTS],
    masks: [[u32; LANES]; POINTS],
    images: [usize; LANES],
    whole: bool,
}

/// Adds the products of `channels` to `sums`, `[point][panel of MR channels][panel][MR][NR]`.
struct Multiply<'a, C, E> {
    part: &'a Part<'a, C>,
    x: &'a [E],
    channels: std::ops::Range<usize>,
    kernels: &'a [f32],
    strip: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<C: Core<Value = f32>, E: Element> Work for Multiply<'_, C, E> {
    #[inline(always)]
    unsafe fn run(self) {
        let Self {
            part,
            x,
            channels,
            kernels,
            strip,
            sums,
        } = self;
        let depth = channels.len();
        let rows = part.geometry.c_out.div_ceil(C::MR);
        let used = part.tiles.len().div_ceil(C::NR);
        assert!(strip.len() >= POINTS * part.panels * depth * C::NR);
        assert!(kernels.len() >= POINTS * rows * depth * C::MR);
        assert!(sums.len() >= POINTS * rows * part.panels * C::BLOCK);
        // The lanes of a short panel that hold no tile are multiplied, too, and dropped.
        let stride = part.panels * depth * C::NR;
        for (group, tiles) in part.tiles.chunks(LANES).enumerate() {
            let (panel, lane) = (group * LANES / C::NR, group * LANES % C::NR);
            let inputs = part.inputs(tiles);
            for (step, channel) in channels.clone().enumerate() {
                let at = (panel * depth + step) * C::NR + lane;
                part.transform(x, channel, &inputs, &mut strip[at..], stride);
            }
        }
        let walk = Walk::packed::<C>(depth);
        let add = channels.start > 0;
        let chunk = (CHUNK / (depth * C::MR)).max(1);
        for point in 0..POINTS {
            for first in (0..rows).step_by(chunk) {
                for panel in 0..used {
                    let at = (point * part.panels + panel) * depth * C::NR;
                    let right = &strip[at..at + depth * C::NR];
                    for row in first..rows.min(first + chunk) {
                        let left =
                            &kernels[(point * rows + row) * depth * C::MR..][..depth * C::MR];
                        let at = ((point * rows + row) * part.panels + panel) * C::BLOCK;
                        let block = &mut sums[at..at + C::BLOCK];
                        // SAFETY: the slices hold `depth` products and a block; the caller promises
                        // the instructions.
                        unsafe {
                            C::multiply(
                                walk,
                                left.as_ptr(),
                                right.as_ptr(),
                                block.as_mut_ptr(),
                                add,
                            );
                        }
                    }
                }
            }
        }
    }
}

impl<C: Core<Value = f32>> Part<'_, C> {
    fn inputs(&self, tiles: &[Tile]) -> Inputs {
        let geometry = self.geometry;
        let mut inputs = Inputs {
            offsets: [[0; LANES]; POINTS],
            masks: [[0; LANES]; POINTS],
            images: [0; LANES],
            whole: tiles.len() == LANES,
        };
        let [dilation_y, dilation_x] = geometry.options.dilation;
        for (lane, tile) in tiles.iter().enumerate() {
            inputs.images[lane] = tile.image;
            for point in 0..POINTS {
                let y = (tile.y + point / WINDOW * dilation_y)
                    .wrapping_sub(geometry.options.padding[0]);
                let x = (tile.x + point % WINDOW * dilation_x)
                    .wrapping_sub(geometry.options.padding[1]);
                if y < geometry.input[0] && x < geometry.input[1] {
                    inputs.offsets[point][lane] = (y * geometry.input[1] + x) as u32;
                    inputs.masks[point][lane] = u32::MAX;
                } else {
                    inputs.whole = false;
                }
            }
        }
        inputs
    }

    /// Writes one channel's 36 transformed inputs of some tiles, `stride` values apart.
    #[inline(always)]
    fn transform<E: Element>(
        &self,
        x: &[E],
        channel: usize,
        inputs: &Inputs,
        target: &mut [f32],
        stride: usize,
    ) {
        let geometry = self.geometry;
        let plane = geometry.input[0] * geometry.input[1];
        let mut window = [[[0f32; LANES]; WINDOW]; WINDOW];
        for (lane, image) in inputs.images.iter().enumerate() {
            let start = (image * geometry.c_in + channel) * plane;
            let source = &x[start..start + plane];
            for point in 0..POINTS {
                // SAFETY: offsets were made from pixels inside the plane.
                let value = unsafe { source.get_unchecked(inputs.offsets[point][lane] as usize) };
                window[point / WINDOW][point % WINDOW][lane] = value.widen();
            }
        }
        if !inputs.whole {
            for point in 0..POINTS {
                let values = &mut window[point / WINDOW][point % WINDOW];
                for (value, mask) in values.iter_mut().zip(&inputs.masks[point]) {
                    *value = f32::from_bits(value.to_bits() & mask);
                }
            }
        }
        // Down the columns, then along the rows.
        let mut half = [[[0f32; LANES]; WINDOW]; WINDOW];
        for column in 0..WINDOW {
            let lines = input_line(&std::array::from_fn(|row| window[row][column]));
            for (half, line) in half.iter_mut().zip(&lines) {
                half[column] = *line;
            }
        }
        for (row, half) in half.iter().enumerate() {
            for (column, values) in input_line(half).iter().enumerate() {
                let at = (row * WINDOW + column) * stride;
                target[at..at + LANES].copy_from_slice(values);
            }
        }
    }
}

/// Transforms the sums back, adds what follows them, rounds and stores.
struct Store<'a, C, E> {
    part: &'a Part<'a, C>,
    sums: &'a [f32],
    tail: Tail<'a, E>,
    output: Shared<E>,
}

impl<C: Core<Value = f32>, E: Element> Work for Store<'_, C, E> {
    /// # Safety
    /// No other thread writes the outputs of these tiles, and `output` has them.
    #[inline(always)]
    unsafe fn run(self) {
        let Self {
            part,
            sums,
            tail,
            output,
        } = self;
        let geometry = part.geometry;
        let rows = geometry.c_out.div_ceil(C::MR);
        let [height, width] = geometry.output;
        let [dilation_y, dilation_x] = geometry.options.dilation;
        for channel in 0..geometry.c_out {
            for (group, tiles) in part.tiles.chunks(LANES).enumerate() {
                let (panel, first) = (group * LANES / C::NR, group * LANES % C::NR);
                let mut half = [[[0f32; LANES]; WINDOW]; TILE];
                for column in 0..WINDOW {
                    let lines = output_line(&std::array::from_fn(|row| {
                        let point = row * WINDOW + column;
                        let block = (point * rows + channel / C::MR) * part.panels + panel;
                        let at = block * C::BLOCK + channel % C::MR * C::NR + first;
                        *sums[at..]
                            .first_chunk::<LANES>()
                            .expect("sums hold every block")
                    }));
                    for (half, line) in half.iter_mut().zip(&lines) {
                        half[column] = *line;
                    }
                }
                let values = half.map(|half| output_line(&half));
                for (lane, tile) in tiles.iter().enumerate() {
                    let plane = (tile.image * geometry.c_out + channel) * height * width;
                    for (i, values) in values.iter().enumerate() {
                        let y = tile.y + i * dilation_y;
                        if y >= height {
                            break;
                        }
                        let columns = (width - tile.x).div_ceil(dilation_x).min(TILE);
                        let start = plane + y * width + tile.x;
                        let mut row: [f32; TILE] = std::array::from_fn(|j| values[j][lane]);
                        if dilation_x == 1 {
                            tail.apply(C::ISA, channel, start, &mut row[..columns]);
                        } else {
                            for (j, value) in row[..columns].iter_mut().enumerate() {
                                let at = start + j * dilation_x;
                                tail.apply(C::ISA, channel, at, std::slice::from_mut(value));
                            }
                        }
                        for (j, &value) in row[..columns].iter().enumerate() {
                            // SAFETY: inside the output, and this tile's own.
                            unsafe { output.at(start + j * dilation_x).write(E::narrow(value)) };
                        }
                    }
                }
            }
        }
    }
}
