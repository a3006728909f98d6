//! Sums over the units of a group.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

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
