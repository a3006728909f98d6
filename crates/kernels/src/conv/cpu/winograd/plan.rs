//! Whether fewer products pay, and how tiles, kernels and buffers lie.

use super::super::geometry::{Geometry, inside};
use super::super::micro::Core;
use super::super::weight::Weight;
#[cfg(target_arch = "x86_64")]
use super::avx512;

/// Values between points: at a power of two, all points of a tile would meet in one set of a cache, and
/// in one of those that keep where pages are.
pub const APART: usize = 1040;

/// The most columns of a window.
#[cfg(target_arch = "x86_64")]
const MOST: usize = 6;
/// What the transforms of 32 channels cost, in products: measured roughly.
const OVERHEAD: usize = 6;

/// What the transform of a kernel costs for each point, in products: as roughly. It is made in each pass.
const OF_KERNEL: usize = 60;
/// Products of f32 that tiles make in the time of one by vectors, of F(4x4, 3x3), and products of bf16 by dot products:
/// measured for 256 and 512 channels, on an Intel Xeon with AMX and on AMD's Zen 5.
const FAST: usize = 2;

/// Whether F(TILE x TILE, 3x3) is faster than sums, where a kernel's transform costs nothing: in a weight gradient.
pub fn pays<const TILE: usize>(geometry: &Geometry) -> bool {
    cost::<TILE>(geometry).is_some_and(|cost| cost < direct_products(geometry))
}

/// Whether it is faster in a pass that transforms kernels; `fast` if sums would be made by tiles or dot products.
pub fn pays_with_kernels<const TILE: usize>(geometry: &Geometry, fast: bool) -> bool {
    let direct = match fast {
        true => direct_products(geometry) / FAST,
        false => direct_products(geometry),
    };
    let (points, batch) = ((TILE + 2) * (TILE + 2), geometry.batch);
    let of_kernels = points * OF_KERNEL;
    cost::<TILE>(geometry).is_some_and(|cost| batch * cost + of_kernels < batch * direct)
}

/// Of a pair of channels, in products; nothing where it does not apply.
fn cost<const TILE: usize>(geometry: &Geometry) -> Option<usize> {
    let options = geometry.options;
    let fits = geometry.kernel == [3, 3] && options.stride == [1, 1] && options.groups == 1;
    if !fits || geometry.c_in < 32 || geometry.c_out < 32 {
        return None;
    }
    let points = (TILE + 2) * (TILE + 2);
    let transformed = tiles_along(geometry, 0, TILE) * tiles_along(geometry, 1, TILE) * points;
    // A transform costs the same for few channels as for many.
    let least = geometry.c_in.min(geometry.c_out);
    Some(transformed + transformed * 32 * OVERHEAD / least)
}

/// Where a tile's first output lies.
#[derive(Clone, Copy)]
pub struct Tile {
    pub image: usize,
    pub y: usize,
    pub x: usize,
}

/// All tiles; those that follow each other in a row of an interleaved map do so here.
pub fn tiles(geometry: &Geometry, tile: usize) -> Vec<Tile> {
    let (rows, columns) = (starts(geometry, 0, tile), starts(geometry, 1, tile));
    let mut tiles = Vec::with_capacity(geometry.batch * rows.len() * columns.len());
    for image in 0..geometry.batch {
        for &y in &rows {
            tiles.extend(columns.iter().map(|&x| Tile { image, y, x }));
        }
    }
    tiles
}

/// The first outputs of tiles along one axis, one interleaved map after the other.
pub fn starts(geometry: &Geometry, axis: usize, tile: usize) -> Vec<usize> {
    let (size, dilation) = (geometry.output[axis], geometry.options.dilation[axis]);
    (0..dilation.min(size))
        .flat_map(|residue| (residue..size).step_by(dilation * tile))
        .collect()
}

/// Tiles of all interleaved maps along one axis.
fn tiles_along(geometry: &Geometry, axis: usize, tile: usize) -> usize {
    let (size, dilation) = (geometry.output[axis], geometry.options.dilation[axis]);
    (0..dilation.min(size))
        .map(|residue| (size - residue).div_ceil(dilation).div_ceil(tile))
        .sum()
}

/// Products that direct sums take, per image and pair of channels.
fn direct_products(geometry: &Geometry) -> usize {
    let along = |axis: usize| -> usize {
        (0..3)
            .map(|tap| {
                let offset = geometry.offset(axis, tap);
                inside(geometry.output[axis], 1, offset, geometry.input[axis]).len()
            })
            .sum()
    };
    along(0) * along(1)
}

/// The kernels of a convolution, as one of stride 1 sees them.
#[derive(Clone, Copy)]
pub struct Kernels<'a, W> {
    pub weight: Weight<'a, W>,
    /// Values from one output channel, and from one input channel, to the next.
    pub strides: [usize; 2],
    /// Whether taps are counted from the last.
    pub turned: bool,
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
pub struct Layout {
    /// Panels of tiles.
    pub panels: usize,
    /// Panels of output channels.
    pub rows: usize,
    /// Values from one point to the next.
    pub inputs: usize,
    pub kernels: usize,
    pub sums: usize,
}

impl Layout {
    /// Of blocks of so many panels and channels.
    pub fn new<C: Core>(panels: usize, c_out: usize, depth: usize) -> Self {
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

/// Neighbouring tiles of one row, in lanes `first..last` of a group.
#[derive(Clone, Copy)]
pub struct Run {
    pub first: usize,
    pub last: usize,
    /// Of the first tile.
    pub tile: Tile,
    /// For each column of the window, which values of a row there are; and which outputs.
    #[cfg(target_arch = "x86_64")]
    pub masks: ([avx512::Masks; MOST], avx512::Masks),
}

/// The tiles of a group, by rows.
pub fn runs(
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
