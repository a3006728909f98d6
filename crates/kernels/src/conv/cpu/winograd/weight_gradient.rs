//! Weight gradient: `G^T (sum over tiles of (A dy A^T) (B^T x B)) G`, the adjoint of F(2x2, 3x3).
//!
//! Tiles are the inner dimension of the products, so channels lie side by side: rows of both maps are
//! interleaved first.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::geometry::Geometry;
use super::super::micro::{Core, LANES, interleave};
use super::multiply::Multiply;
use super::plan::{APART, starts};
use super::scheme::{Lanes, Minimal, Scheme, both_axes};
use crate::cpu::element::{Element, convert};
use crate::cpu::isa::{Registers, Work, compiled};
use crate::cpu::scratch::{Room, Shared, with_scratch};
use crate::cpu::tasks;

/// Outputs and inputs of a tile in each direction.
const TILE: usize = 2;
const WINDOW: usize = 4;
const POINTS: usize = WINDOW * WINDOW;
/// Tiles whose products are summed before others are transformed.
const TILES: usize = 256;
/// Input channels whose sums are held at a time.
const CHANNELS: usize = 256;
/// Values of interleaved rows: about half of a second-level cache.
const ROWS: usize = 96 << 10;

/// Neighbouring rows of tiles of one interleaved map.
#[derive(Clone, Copy)]
struct TileRows {
    image: usize,
    /// The first output row, and how many rows of tiles there are.
    y: usize,
    rows: usize,
}

/// Writes every value of the result.
pub fn weight_gradient<C: Core<Value = f32>, E: Element, W: Element>(
    _: C,
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
    result: &mut [W],
) {
    let (c_in, c_out) = (geometry.c_in, geometry.c_out);
    let columns = starts(geometry, 1, TILE);
    let blocks = blocks(geometry, &columns, C::NR.max(C::MR));
    let deepest = blocks
        .iter()
        .map(|block| tiles_of(block, &columns))
        .max()
        .unwrap_or(0);
    let left_panels = c_out.div_ceil(C::MR);
    let chunk = CHANNELS
        .next_multiple_of(C::NR)
        .min(c_in.next_multiple_of(C::NR));
    let right_panels = chunk / C::NR;
    let left_point = left_panels * deepest * C::MR + APART;
    let right_point = right_panels * deepest * C::NR + APART;
    let sums_point = left_panels * right_panels * C::BLOCK + APART;
    let mut left = Room::new(POINTS * left_point);
    let mut right = Room::new(POINTS * right_point);
    let mut sums = Room::new(POINTS * sums_point);
    let [left, right, sums] = [&mut left, &mut right, &mut sums].map(Room::values);
    let padding = geometry.options.padding;
    for first in (0..c_in).step_by(chunk) {
        let channels = first..c_in.min(first + chunk);
        let panels = channels.len().div_ceil(C::NR);
        for (index, block) in blocks.iter().enumerate() {
            let depth = tiles_of(block, &columns);
            // All tiles of one block keep for all channels.
            if first == 0 || blocks.len() > 1 {
                let side = Side::<C, E, TILE> {
                    geometry,
                    source: gradient,
                    size: geometry.output,
                    padding: [0, 0],
                    channels: 0..c_out,
                    all: c_out,
                    lanes: C::MR,
                    point: left_point,
                    target: left,
                    core: PhantomData,
                };
                // SAFETY: the target has room for every panel of the block; cores are chosen by what
                // the processor has.
                unsafe { side.transform(block, &columns, depth) };
            }
            let side = Side::<C, E, WINDOW> {
                geometry,
                source: x,
                size: geometry.input,
                padding,
                channels: channels.clone(),
                all: c_in,
                lanes: C::NR,
                point: right_point,
                target: right,
                core: PhantomData,
            };
            // SAFETY: as above.
            unsafe { side.transform(block, &columns, depth) };
            tasks::each(POINTS * panels, |task| {
                let (point, panel) = (task / panels, task % panels);
                let work = Multiply::<C> {
                    left: left.from(point * left_point),
                    right: right.from(point * right_point),
                    sums: sums.from(point * sums_point),
                    rows: 0..left_panels,
                    panels: panel..panel + 1,
                    all_panels: right_panels,
                    depth,
                    slice: C::DEPTH,
                    add: index > 0,
                    core: PhantomData,
                };
                // SAFETY: cores are chosen by what the processor has; tasks own their sums.
                unsafe { compiled(C::ISA, work) };
            });
        }
        tasks::each_chunk(result, c_in * 9, |row, target| {
            let work = Store::<C, E, W> {
                sums,
                point: sums_point,
                block: row / C::MR * right_panels,
                lane: row % C::MR,
                target: &mut target[channels.start * 9..channels.end * 9],
                types: PhantomData,
            };
            // SAFETY: cores are chosen by what the processor has.
            unsafe { compiled(C::ISA, work) };
        });
    }
}

fn tiles_of(block: &[TileRows], columns: &[usize]) -> usize {
    block.iter().map(|band| band.rows).sum::<usize>() * columns.len()
}

/// All rows of tiles, in bands whose interleaved rows fit a cache, in blocks of about [`TILES`] tiles.
fn blocks(geometry: &Geometry, columns: &[usize], lanes: usize) -> Vec<Vec<TileRows>> {
    let dilation = geometry.options.dilation[0];
    let width = geometry.output[1] + (WINDOW - 1) * geometry.options.dilation[1];
    let most = (ROWS / (width * lanes)).saturating_sub(WINDOW - TILE) / TILE;
    let most = most.min(TILES / columns.len()).max(1);
    let mut blocks = vec![Vec::<TileRows>::new()];
    let mut tiles = 0;
    for image in 0..geometry.batch {
        for residue in 0..dilation.min(geometry.output[0]) {
            let all = (geometry.output[0] - residue)
                .div_ceil(dilation)
                .div_ceil(TILE);
            let cuts = all.div_ceil(most);
            for cut in 0..cuts {
                let [first, last] = [cut, cut + 1].map(|cut| all * cut / cuts);
                let band = TileRows {
                    image,
                    y: residue + first * TILE * dilation,
                    rows: last - first,
                };
                let more = band.rows * columns.len();
                if tiles > 0 && tiles + more > TILES {
                    blocks.push(Vec::new());
                    tiles = 0;
                }
                tiles += more;
                if let Some(block) = blocks.last_mut() {
                    block.push(band);
                }
            }
        }
    }
    blocks
}

/// One operand: a map, of which `FROM x FROM` values of a tile become 16.
struct Side<'a, C, E, const FROM: usize> {
    geometry: &'a Geometry,
    source: &'a [E],
    size: [usize; 2],
    /// How far a tile's first value lies before its first output.
    padding: [usize; 2],
    channels: Range<usize>,
    /// Channels of the map.
    all: usize,
    /// Channels of a panel.
    lanes: usize,
    /// Values from one point to the next.
    point: usize,
    /// `[point][panel][tile][lane]`.
    target: Shared<f32>,
    core: PhantomData<C>,
}

/// `A dy A^T` of the paper's transforms.
#[inline(always)]
fn spread(d: &[Lanes; TILE]) -> [Lanes; WINDOW] {
    let mut result = [[0.0; LANES]; WINDOW];
    for lane in 0..LANES {
        let [a, b] = [d[0][lane], d[1][lane]];
        result[0][lane] = a;
        result[1][lane] = a + b;
        result[2][lane] = a - b;
        result[3][lane] = -b;
    }
    result
}

/// `G^T m`.
#[inline(always)]
fn gather(m: &[Lanes; WINDOW]) -> [Lanes; 3] {
    let mut result = [[0.0; LANES]; 3];
    for lane in 0..LANES {
        let [a, b, c, d] = [m[0][lane], m[1][lane], m[2][lane], m[3][lane]];
        let (even, odd) = ((b + c) * 0.5, (b - c) * 0.5);
        result[0][lane] = a + even;
        result[1][lane] = odd;
        result[2][lane] = even + d;
    }
    result
}

impl<C: Core<Value = f32>, E: Element, const FROM: usize> Side<'_, C, E, FROM> {
    /// # Safety
    /// The target has room for `depth` tiles of every panel. The processor has the core's
    /// instructions.
    unsafe fn transform(&self, block: &[TileRows], columns: &[usize], depth: usize) {
        const { assert!(FROM == TILE || FROM == WINDOW) };
        let mut first = 0;
        let bands: Vec<(TileRows, usize)> = block
            .iter()
            .map(|&band| {
                let at = first;
                first += band.rows * columns.len();
                (band, at)
            })
            .collect();
        let panels = self.channels.len().div_ceil(self.lanes);
        let most = block.iter().map(|band| band.rows).max().unwrap_or(0);
        // The last vector of the last pixel may reach past its lanes, and interleaving, too.
        let length = self.rows(most) * self.width() * self.lanes + 2 * LANES;
        tasks::each(panels * bands.len(), |task| {
            let (panel, (band, tile)) = (task / bands.len(), bands[task % bands.len()]);
            let work = Panel {
                side: self,
                band,
                columns,
                panel,
                at: (panel * depth + tile) * self.lanes,
            };
            with_scratch([0, length], |_: &mut [f32], rows| {
                // SAFETY: the caller's promises; tasks own their tiles of a panel.
                unsafe { compiled(C::ISA, (work, rows)) };
            });
        });
    }

    /// Rows of a map, `dilation` apart, that `tiles` rows of tiles see.
    fn rows(&self, tiles: usize) -> usize {
        tiles * TILE + FROM - TILE
    }

    /// Columns that tiles see.
    fn width(&self) -> usize {
        self.geometry.output[1] + (FROM - 1) * self.geometry.options.dilation[1]
    }
}

/// A panel of channels in a band.
struct Panel<'a, C, E, const FROM: usize> {
    side: &'a Side<'a, C, E, FROM>,
    band: TileRows,
    columns: &'a [usize],
    panel: usize,
    /// Of the first tile, in the target.
    at: usize,
}

impl<C: Core<Value = f32>, E: Element, const FROM: usize> Work
    for (Panel<'_, C, E, FROM>, &mut [f32])
{
    /// # Safety
    /// The target has room for the tiles, which no other thread writes.
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let (work, rows) = self;
        let side = work.side;
        let lanes = side.lanes;
        let row_length = side.width() * lanes;
        work.interleave(rows);
        let dilation = side.geometry.options.dilation[1];
        let mut at = work.at;
        for tile_row in 0..work.band.rows {
            let rows = &rows[tile_row * TILE * row_length..];
            for &column in work.columns {
                for first in (0..lanes).step_by(LANES) {
                    let mut values = [[[0.0; LANES]; FROM]; FROM];
                    for (i, values) in values.iter_mut().enumerate() {
                        for (j, values) in values.iter_mut().enumerate() {
                            let at = i * row_length + (column + j * dilation) * lanes + first;
                            *values = *rows[at..]
                                .first_chunk::<LANES>()
                                .expect("rows end with some slack");
                        }
                    }
                    let points = if FROM == TILE {
                        let values = std::array::from_fn(|i| std::array::from_fn(|j| values[i][j]));
                        both_axes!(spread, &values, TILE, WINDOW)
                    } else {
                        let values = std::array::from_fn(|i| std::array::from_fn(|j| values[i][j]));
                        both_axes!(Minimal::input, &values, WINDOW, WINDOW)
                    };
                    for (point, values) in points.iter().flatten().enumerate() {
                        let target = side.target.at(point * side.point + at + first);
                        // Lengths that are known are moved without a call.
                        // SAFETY: the caller's promise.
                        unsafe {
                            if lanes == C::MR {
                                std::ptr::copy_nonoverlapping(values.as_ptr(), target, C::MR);
                            } else {
                                target.cast::<Lanes>().write_unaligned(*values);
                            }
                        }
                    }
                }
                at += lanes;
            }
        }
    }
}

impl<C: Core<Value = f32>, E: Element, const FROM: usize> Panel<'_, C, E, FROM> {
    /// Writes the rows that the band sees, pixel by pixel; what lies outside the map is zero.
    #[inline(always)]
    fn interleave(&self, rows: &mut [f32]) {
        let side = self.side;
        let (lanes, [height, width]) = (side.lanes, side.size);
        let row_length = side.width() * lanes;
        let [padding_y, padding_x] = side.padding;
        let first = side.channels.start + self.panel * lanes;
        let count = lanes.min(side.channels.end - first);
        let shown = width.min(side.width() - padding_x);
        for i in 0..side.rows(self.band.rows) {
            let y = (self.band.y + i * side.geometry.options.dilation[0]).wrapping_sub(padding_y);
            let target = &mut rows[i * row_length..][..row_length + LANES];
            if y >= height {
                target[..row_length].fill(0.0);
                continue;
            }
            let sources: [*const E; 32] = std::array::from_fn(|lane| {
                let channel = self.band.image * side.all + first + lane.min(count - 1);
                side.source[(channel * height + y) * width..][..width].as_ptr()
            });
            target[..padding_x * lanes].fill(0.0);
            // SAFETY: sources are rows of `width` values; the target has room for as many pixels and
            // some slack.
            unsafe {
                let target = target.as_mut_ptr().add(padding_x * lanes);
                interleave(C::ISA, lanes, &sources, count, shown, target);
            }
            target[(padding_x + shown) * lanes..row_length].fill(0.0);
        }
    }
}

/// Transforms the sums of one output channel back.
struct Store<'a, C, E, W> {
    sums: Shared<f32>,
    point: usize,
    /// The first block of the channel's panel, and its row in there.
    block: usize,
    lane: usize,
    /// `[input channel][9]`.
    target: &'a mut [W],
    types: PhantomData<(C, E)>,
}

impl<C: Core<Value = f32>, E: Element, W: Element> Work for Store<'_, C, E, W> {
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        for (group, target) in self.target.chunks_mut(LANES * 9).enumerate() {
            let (panel, first) = (group * LANES / C::NR, group * LANES % C::NR);
            let at = (self.block + panel) * C::BLOCK + self.lane * C::NR + first;
            let mut values = [[[0.0; LANES]; WINDOW]; WINDOW];
            for (point, values) in values.as_flattened_mut().iter_mut().enumerate() {
                // SAFETY: the products of every block were summed.
                *values = unsafe { self.sums.at(point * self.point + at).cast::<Lanes>().read() };
            }
            let taps = both_axes!(gather, &values, WINDOW, 3);
            for (lane, target) in target.chunks_exact_mut(9).enumerate() {
                for (target, values) in target.iter_mut().zip(taps.as_flattened()) {
                    *target = convert(E::narrow(values[lane]));
                }
            }
        }
    }
}
