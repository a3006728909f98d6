//! Sums over the units of a group.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a group that reduces together.
pub const UNITS: usize = 256;

/// Units of a group that are beside each other in one pixel of `channels` vectors, a power of two: as many
/// as leave the fewest without a channel, and enough to read a row of memory at once.
pub fn across(channels: usize) -> usize {
    const ROW: usize = 8;
    let least = ROW.min(channels.next_power_of_two());
    let sizes = [32, 16, ROW, 4, 2, 1].into_iter();
    sizes
        .filter(|size| *size >= least)
        .min_by_key(|size| channels.next_multiple_of(*size))
        .unwrap_or(1)
}

/// Units that add up one value each of `splits` parts, a power of two; the others of a group are beside
/// them, at other values.
pub fn along(splits: usize) -> usize {
    // Eight values beside each other are what memory is read by.
    splits.next_power_of_two().min(UNITS / 8)
}

/// Groups for sums of `length` values, each over `rows` units, and units of a group.
pub fn launch_sums(like: &CubeTensor, length: usize, rows: usize) -> (CubeCount, CubeDim) {
    let columns = UNITS / rows;
    let dim = CubeDim::new_2d(columns as u32, rows as u32);
    let units = length.div_ceil(columns) * UNITS;
    (
        cubecl::calculate_cube_count_elemwise(&like.client, units, dim),
        dim,
    )
}

/// Adds up the rows of some tables and leaves the sums in their first rows: pairwise, so that the order
/// does not depend on when units run.
///
/// `values` are `tables` tables of `size` values each, in rows of `width` values, whose number is a power of
/// two. All units of a group call this, after each has written the `lanes` values of its `row` from
/// `column` on in every table.
#[cube]
pub fn add_rows(
    values: &mut Shared<[f32]>,
    row: usize,
    column: usize,
    #[comptime] tables: usize,
    #[comptime] size: usize,
    #[comptime] width: usize,
    #[comptime] lanes: usize,
) {
    sync_cube();
    let mut half = comptime!(size / width / 2).runtime();
    while half > 0 {
        if row < half {
            #[unroll]
            for table in 0..tables {
                #[unroll]
                for lane in 0..lanes {
                    let here = table * size + row * width + column + lane;
                    let other = values[here + half * width];
                    values[here] += other;
                }
            }
        }
        sync_cube();
        half /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_units_are_without_a_channel() {
        for (channels, units) in [(1, 1), (3, 4), (8, 8), (19, 8), (38, 8), (48, 16), (64, 32)] {
            assert_eq!(across(channels), units, "{channels}");
        }
    }
}
