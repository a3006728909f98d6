//! Blocks of products without special instructions.

use super::{Walk, Wide};
use crate::cpu::isa::Isa;

/// `left * right + sum`, rounded once where every processor of the target has an instruction for that; where none has, it
/// would be a call.
#[inline(always)]
fn multiplied(left: f32, right: f32, sum: f32) -> f32 {
    match cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        true => left.mul_add(right, sum),
        false => left * right + sum,
    }
}

/// Six rows of two AVX registers, without their instructions.
pub struct Portable;

impl Wide for Portable {
    const ISA: Isa = Isa::PORTABLE;
    const ROWS: usize = 6;
    const COLUMNS: usize = 16;
    const DEPTH: usize = 256;
    const STRIP: usize = 48 << 10;

    #[inline(always)]
    unsafe fn multiply(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        let mut sums = [[0f32; Self::COLUMNS]; Self::ROWS];
        for row in 0..walk.rows {
            for step in 0..walk.depth {
                // SAFETY: the caller promises these values.
                let (left, right) = unsafe {
                    (
                        &*left
                            .add(row * walk.left_row + step * Self::ROWS)
                            .cast::<[f32; Self::ROWS]>(),
                        &*right
                            .add(row * walk.right_row + step * walk.right_step)
                            .cast::<[f32; Self::COLUMNS]>(),
                    )
                };
                for (sums, left) in sums.iter_mut().zip(left) {
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = multiplied(*left, *right, *sum);
                    }
                }
            }
        }
        // SAFETY: the caller promises a whole block.
        let block = unsafe { &mut *block.cast::<[[f32; Self::COLUMNS]; Self::ROWS]>() };
        for (block, sums) in block.iter_mut().zip(&sums) {
            for (block, sum) in block.iter_mut().zip(sums) {
                *block = if add { *block + sum } else { *sum };
            }
        }
    }
}
