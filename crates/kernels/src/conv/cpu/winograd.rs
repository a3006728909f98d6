//! 3x3 convolutions of stride 1 with a quarter of the products: Winograd's minimal filtering
//! F(4x4, 3x3) (arXiv:1509.09308). Four by four outputs come from 36 products of transformed 6x6
//! inputs and transformed kernels, instead of 144.
//!
//! The transforms add and scale, which loses about a digit against direct sums: results stay within
//! 1e-4 (2-norm), so only inference uses this. A dilation `d` is `d * d` interleaved maps of
//! dilation 1.

use rayon::prelude::*;

use super::micro::{BLOCK, MR, NR, Walk, has_avx2, multiply};
use super::{Element, Geometry, Shared, Tail, inside, with_scratch};

/// Outputs of a tile in each direction.
const TILE: usize = 4;
/// Inputs of a tile in each direction.
const WINDOW: usize = 6;
/// Products of a tile and channel.
const POINTS: usize = WINDOW * WINDOW;
/// Input channels that are summed in one go, as in direct sums.
const DEPTH: usize = 256;
/// Panels of [`NR`] tiles of which a task transforms the inputs.
const PANELS: usize = 6;
/// Panels whose sums are held at a time: 9 bytes for every 4 of the output that they make.
const HELD: usize = 64;
/// Panels of output channels that share a strip of inputs in the cache.
const CHUNK: usize = 16;

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

pub fn forward<E: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: &[E],
    tail: Tail<'_, E>,
    output: &mut [E],
) {
    let avx2 = has_avx2();
    let all = tiles(geometry);
    let rows = geometry.c_out.div_ceil(MR);
    let target = Shared(output.as_mut_ptr());
    let mut sums: Vec<f32> = Vec::new();
    let mut kernels: Vec<f32> = Vec::new();
    for held in all.chunks(HELD * NR) {
        let panels = held.len().div_ceil(NR);
        let tasks = 3 * rayon::current_num_threads();
        let per_task = panels.div_ceil(tasks).clamp(1, PANELS);
        let length = POINTS * rows * per_task * BLOCK;
        sums.clear();
        sums.resize(panels.div_ceil(per_task) * length, 0.0);
        let cuts = geometry.c_in.div_ceil(DEPTH);
        for cut in 0..cuts {
            let channels = geometry.c_in * cut / cuts..geometry.c_in * (cut + 1) / cuts;
            transform_kernels(geometry, weight, channels.clone(), &mut kernels);
            let kernels = &kernels;
            sums.par_chunks_mut(length)
                .zip(held.par_chunks(per_task * NR))
                .for_each(|(sums, tiles)| {
                    let part = Part {
                        geometry,
                        tiles,
                        panels: per_task,
                    };
                    let scratch = POINTS * per_task * channels.len() * NR;
                    with_scratch(scratch, |scratch| {
                        #[cfg(target_arch = "x86_64")]
                        if avx2 {
                            // SAFETY: the processor has the instructions.
                            return unsafe {
                                part.multiply_avx2(x, channels.clone(), kernels, scratch, sums)
                            };
                        }
                        part.multiply::<E, false>(x, channels.clone(), kernels, scratch, sums);
                    });
                });
        }
        sums.par_chunks(length)
            .zip(held.par_chunks(per_task * NR))
            .for_each(|(sums, tiles)| {
                let part = Part {
                    geometry,
                    tiles,
                    panels: per_task,
                };
                #[cfg(target_arch = "x86_64")]
                if avx2 {
                    // SAFETY: the processor has the instructions; tiles own their outputs.
                    return unsafe { part.store_avx2(sums, tail, target) };
                }
                // SAFETY: as above.
                unsafe { part.store::<E, false>(sums, tail, target) }
            });
    }
}

/// `[point][panel of MR output channels][channel][MR]` of `channels`.
fn transform_kernels<E: Element>(
    geometry: &Geometry,
    weight: &[E],
    channels: std::ops::Range<usize>,
    target: &mut Vec<f32>,
) {
    let rows = geometry.c_out.div_ceil(MR);
    let depth = channels.len();
    target.resize(POINTS * rows * depth * MR, 0.0);
    let target = Shared(target.as_mut_ptr());
    (0..rows).into_par_iter().for_each(|row| {
        for (step, channel) in channels.clone().enumerate() {
            let mut kernel = [[[0f32; MR]; 3]; 3];
            for (lane, out) in (row * MR..geometry.c_out.min((row + 1) * MR)).enumerate() {
                let start = (out * geometry.c_in + channel) * 9;
                for (tap, value) in weight[start..start + 9].iter().enumerate() {
                    kernel[tap / 3][tap % 3][lane] = value.widen();
                }
            }
            let rows_done: [[[f32; MR]; 3]; WINDOW] = {
                let mut done = [[[0f32; MR]; 3]; WINDOW];
                for column in 0..3 {
                    let lines =
                        kernel_line(&[kernel[0][column], kernel[1][column], kernel[2][column]]);
                    for (done, line) in done.iter_mut().zip(lines) {
                        done[column] = line;
                    }
                }
                done
            };
            for (i, line) in rows_done.iter().enumerate() {
                for (j, values) in kernel_line(line).iter().enumerate() {
                    let point = i * WINDOW + j;
                    let at = ((point * rows + row) * depth + step) * MR;
                    // SAFETY: every row of panels is one task's own, inside the vector.
                    unsafe { target.at(at).cast::<[f32; MR]>().write(*values) };
                }
            }
        }
    });
}

/// `G g` of the paper, for several kernels side by side.
#[inline(always)]
fn kernel_line<const N: usize>(g: &[[f32; N]; 3]) -> [[f32; N]; WINDOW] {
    let mut result = [[0f32; N]; WINDOW];
    for lane in 0..N {
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
fn input_line(d: &[[f32; NR]; WINDOW]) -> [[f32; NR]; WINDOW] {
    let mut result = [[0f32; NR]; WINDOW];
    for lane in 0..NR {
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
fn output_line(m: &[[f32; NR]; WINDOW]) -> [[f32; NR]; TILE] {
    let mut result = [[0f32; NR]; TILE];
    for lane in 0..NR {
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

/// The tiles of one task, in `panels` panels of [`NR`], of which the last may be short.
struct Part<'a> {
    geometry: &'a Geometry,
    tiles: &'a [Tile],
    panels: usize,
}

/// For each of a panel's inputs, where it lies in its channel's plane, or a mask that clears it.
struct Inputs {
    offsets: [[u32; NR]; POINTS],
    masks: [[u32; NR]; POINTS],
    images: [usize; NR],
    whole: bool,
}

impl Part<'_> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn multiply_avx2<E: Element>(
        &self,
        x: &[E],
        channels: std::ops::Range<usize>,
        kernels: &[f32],
        strip: &mut [f32],
        sums: &mut [f32],
    ) {
        self.multiply::<E, true>(x, channels, kernels, strip, sums);
    }

    /// Adds the products of `channels` to `sums`, `[point][panel of MR channels][panel][MR][NR]`.
    /// With `AVX2` the processor has AVX2, FMA and F16C.
    #[inline(always)]
    fn multiply<E: Element, const AVX2: bool>(
        &self,
        x: &[E],
        channels: std::ops::Range<usize>,
        kernels: &[f32],
        strip: &mut [f32],
        sums: &mut [f32],
    ) {
        let depth = channels.len();
        let rows = self.geometry.c_out.div_ceil(MR);
        let used = self.tiles.len().div_ceil(NR);
        assert!(strip.len() >= POINTS * self.panels * depth * NR);
        assert!(kernels.len() >= POINTS * rows * depth * MR);
        assert!(sums.len() >= POINTS * rows * self.panels * BLOCK);
        for (panel, tiles) in self.tiles.chunks(NR).enumerate() {
            let inputs = self.inputs(tiles);
            for (step, channel) in channels.clone().enumerate() {
                let at = (panel * depth + step) * NR;
                let stride = self.panels * depth * NR;
                self.transform(x, channel, &inputs, &mut strip[at..], stride);
            }
        }
        let walk = Walk {
            rows: 1,
            depth,
            left_row: 0,
            right_row: 0,
            right_step: NR,
        };
        for point in 0..POINTS {
            for first in (0..rows).step_by(CHUNK) {
                for panel in 0..used {
                    let right = &strip[(point * self.panels + panel) * depth * NR..][..depth * NR];
                    for row in first..rows.min(first + CHUNK) {
                        let left = &kernels[(point * rows + row) * depth * MR..][..depth * MR];
                        let at = ((point * rows + row) * self.panels + panel) * BLOCK;
                        let block = &mut sums[at..at + BLOCK];
                        // SAFETY: the slices hold `depth` steps and a block.
                        unsafe {
                            multiply::<AVX2>(
                                walk,
                                left.as_ptr(),
                                right.as_ptr(),
                                block.as_mut_ptr(),
                            );
                        }
                    }
                }
            }
        }
    }

    fn inputs(&self, tiles: &[Tile]) -> Inputs {
        let geometry = self.geometry;
        let mut inputs = Inputs {
            offsets: [[0; NR]; POINTS],
            masks: [[0; NR]; POINTS],
            images: [0; NR],
            whole: tiles.len() == NR,
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

    /// Writes one channel's 36 transformed inputs of a panel, `stride` values apart.
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
        let mut window = [[[0f32; NR]; WINDOW]; WINDOW];
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
        let mut half = [[[0f32; NR]; WINDOW]; WINDOW];
        for column in 0..WINDOW {
            let lines = input_line(&std::array::from_fn(|row| window[row][column]));
            for (half, line) in half.iter_mut().zip(&lines) {
                half[column] = *line;
            }
        }
        for (row, half) in half.iter().enumerate() {
            for (column, values) in input_line(half).iter().enumerate() {
                let at = (row * WINDOW + column) * stride;
                target[at..at + NR].copy_from_slice(values);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_avx2<E: Element>(&self, sums: &[f32], tail: Tail<'_, E>, output: Shared<E>) {
        // SAFETY: the caller's promises are the same.
        unsafe { self.store::<E, true>(sums, tail, output) }
    }

    /// Transforms the sums back, adds what follows them, rounds and stores.
    ///
    /// # Safety
    /// No other thread writes the outputs of these tiles, and `output` has them.
    #[inline(always)]
    unsafe fn store<E: Element, const AVX2: bool>(
        &self,
        sums: &[f32],
        tail: Tail<'_, E>,
        output: Shared<E>,
    ) {
        let geometry = self.geometry;
        let rows = geometry.c_out.div_ceil(MR);
        let [height, width] = geometry.output;
        let [dilation_y, dilation_x] = geometry.options.dilation;
        for channel in 0..geometry.c_out {
            for (panel, tiles) in self.tiles.chunks(NR).enumerate() {
                let mut half = [[[0f32; NR]; WINDOW]; TILE];
                for column in 0..WINDOW {
                    let lines = output_line(&std::array::from_fn(|row| {
                        let point = row * WINDOW + column;
                        let block = (point * rows + channel / MR) * self.panels + panel;
                        let at = block * BLOCK + channel % MR * NR;
                        *sums[at..]
                            .first_chunk::<NR>()
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
                            tail.apply::<AVX2>(channel, start, &mut row[..columns]);
                        } else {
                            for (j, value) in row[..columns].iter_mut().enumerate() {
                                let at = start + j * dilation_x;
                                tail.apply::<AVX2>(channel, at, std::slice::from_mut(value));
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
