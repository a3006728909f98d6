//! 3x3 convolutions of stride 1 with fewer products: Winograd's minimal filtering (arXiv:1509.09308).
//!
//! `TILE x TILE` outputs come from `WINDOW x WINDOW` products of transformed inputs and transformed
//! kernels, with `WINDOW = TILE + 2`: 16 instead of 36 for F(2x2, 3x3), 36 instead of 144 for
//! F(4x4, 3x3). The first loses no more than direct sums do and serves all passes; the transforms of
//! the second lose about a digit (results stay within 1e-4, 2-norm), so only inference uses it. A
//! dilation `d` is `d * d` interleaved maps of dilation 1.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod maps;
mod weights;

pub use maps::{Kernels, forward, pays};
pub use weights::weight_gradient;

use std::marker::PhantomData;
use std::ops::Range;

use super::geometry::{Geometry, inside};
use super::micro::{Core, LANES, Walk};
use crate::cpu::isa::Work;
use crate::cpu::scratch::Shared;

/// Values between points: at a power of two, all points of a tile would meet in one set of a cache, and
/// in one of those that keep where pages are.
const APART: usize = 1040;

/// Some values side by side.
type Lanes = [f32; LANES];

/// The transforms of F(TILE x TILE, 3x3) along one axis.
pub trait Scheme<const TILE: usize, const WINDOW: usize> {
    /// `G g` of the paper.
    fn kernel(g: &[Lanes; 3]) -> [Lanes; WINDOW];

    /// `B^T d` of the paper.
    fn input(d: &[Lanes; WINDOW]) -> [Lanes; WINDOW];

    /// `A^T m` of the paper.
    fn output(m: &[Lanes; WINDOW]) -> [Lanes; TILE];
}

/// The minimal filters.
pub struct Minimal;

impl Scheme<2, 4> for Minimal {
    #[inline(always)]
    fn kernel(g: &[Lanes; 3]) -> [Lanes; 4] {
        let mut result = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            let [a, b, c] = [g[0][lane], g[1][lane], g[2][lane]];
            let (even, odd) = ((a + c) * 0.5, b * 0.5);
            result[0][lane] = a;
            result[1][lane] = even + odd;
            result[2][lane] = even - odd;
            result[3][lane] = c;
        }
        result
    }

    #[inline(always)]
    fn input(d: &[Lanes; 4]) -> [Lanes; 4] {
        let mut result = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            let [a, b, c, d] = [d[0][lane], d[1][lane], d[2][lane], d[3][lane]];
            result[0][lane] = a - c;
            result[1][lane] = b + c;
            result[2][lane] = c - b;
            result[3][lane] = b - d;
        }
        result
    }

    #[inline(always)]
    fn output(m: &[Lanes; 4]) -> [Lanes; 2] {
        let mut result = [[0.0; LANES]; 2];
        for lane in 0..LANES {
            let [a, b, c, d] = [m[0][lane], m[1][lane], m[2][lane], m[3][lane]];
            result[0][lane] = a + (b + c);
            result[1][lane] = (b - c) - d;
        }
        result
    }
}

impl Scheme<4, 6> for Minimal {
    #[inline(always)]
    fn kernel(g: &[Lanes; 3]) -> [Lanes; 6] {
        let mut result = [[0.0; LANES]; 6];
        for lane in 0..LANES {
            let [a, b, c] = [g[0][lane], g[1][lane], g[2][lane]];
            let (even, odd) = ((a + c) * (-1.0 / 6.0), b * (-1.0 / 6.0));
            let (wide_even, wide_odd) = (a * (1.0 / 24.0) + c * (1.0 / 6.0), b * (1.0 / 12.0));
            result[0][lane] = a * 0.25;
            result[1][lane] = even + odd;
            result[2][lane] = even - odd;
            result[3][lane] = wide_even + wide_odd;
            result[4][lane] = wide_even - wide_odd;
            result[5][lane] = c;
        }
        result
    }

    #[inline(always)]
    fn input(d: &[Lanes; 6]) -> [Lanes; 6] {
        let mut result = [[0.0; LANES]; 6];
        for lane in 0..LANES {
            let d: [f32; 6] = std::array::from_fn(|i| d[i][lane]);
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

    #[inline(always)]
    fn output(m: &[Lanes; 6]) -> [Lanes; 4] {
        let mut result = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            let m: [f32; 6] = std::array::from_fn(|i| m[i][lane]);
            let (near_even, near_odd) = (m[1] + m[2], m[1] - m[2]);
            let (far_even, far_odd) = (m[3] + m[4], m[3] - m[4]);
            result[0][lane] = m[0] + near_even + far_even;
            result[1][lane] = near_odd + 2.0 * far_odd;
            result[2][lane] = near_even + 4.0 * far_even;
            result[3][lane] = near_odd + 8.0 * far_odd + m[5];
        }
        result
    }
}

/// Expands to the transform of a matrix: down its columns, then along its rows. Not a function that
/// takes one: calls of function values are not compiled with their caller's instructions.
macro_rules! both_axes {
    ($line:path, $values:expr, $from:expr, $to:expr) => {{
        let values: &[[Lanes; $from]; $from] = $values;
        let mut half = [[[0.0; LANES]; $from]; $to];
        for column in 0..$from {
            let mut line = [[0.0; LANES]; $from];
            for row in 0..$from {
                line[row] = values[row][column];
            }
            let line = $line(&line);
            for row in 0..$to {
                half[row][column] = line[row];
            }
        }
        let mut result = [[[0.0; LANES]; $to]; $to];
        for row in 0..$to {
            result[row] = $line(&half[row]);
        }
        result
    }};
}
use both_axes;

/// Where a tile's first output lies.
#[derive(Clone, Copy)]
struct Tile {
    image: usize,
    y: usize,
    x: usize,
}

/// All tiles; those that follow each other in a row of an interleaved map do so here.
fn tiles(geometry: &Geometry, tile: usize) -> Vec<Tile> {
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
fn starts(geometry: &Geometry, axis: usize, tile: usize) -> Vec<usize> {
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

/// Adds the products of one point to its sums, `[panel of rows][panel of columns][MR][NR]`.
struct Multiply<C> {
    /// `[panel][product][MR]`.
    left: Shared<f32>,
    /// `[panel][product][NR]`.
    right: Shared<f32>,
    sums: Shared<f32>,
    /// Panels of rows, and of columns.
    rows: Range<usize>,
    panels: Range<usize>,
    /// Panels of columns that the sums hold.
    all_panels: usize,
    depth: usize,
    /// Products that are summed at a time: their columns stay in a cache while rows pass by.
    slice: usize,
    /// Whether there are sums already.
    add: bool,
    core: PhantomData<C>,
}

impl<C: Core<Value = f32>> Work for Multiply<C> {
    /// # Safety
    /// Both operands hold these panels; the sums have room for all blocks, and no other thread touches
    /// these.
    #[inline(always)]
    unsafe fn run(self) {
        let slices = self.depth.div_ceil(self.slice);
        for panel in self.panels.clone() {
            for slice in 0..slices {
                let [first, last] = [slice, slice + 1].map(|cut| self.depth * cut / slices);
                let walk = Walk::packed::<C>(last - first);
                let add = self.add || slice > 0;
                for row in self.rows.clone() {
                    let left = self.left.at((row * self.depth + first) * C::MR);
                    let right = self.right.at((panel * self.depth + first) * C::NR);
                    let block = self.sums.at((row * self.all_panels + panel) * C::BLOCK);
                    // SAFETY: the caller's promise.
                    unsafe { C::multiply(walk, left, right, block, add) };
                }
            }
        }
    }
}
