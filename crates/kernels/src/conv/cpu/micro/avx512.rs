//! Blocks of products with AVX-512.

use std::arch::x86_64::*;

use super::{Walk, Wide};
use crate::cpu::isa::{Isa, Level};

/// Values of the left operand that are fetched ahead of those that are multiplied.
const FETCHED: usize = 256;

/// `MR` rows of `VECTORS` registers; 24 sums leave room for the operands and hide the latency of
/// their additions.
pub struct Avx512<const MR: usize, const VECTORS: usize>(());

impl<const MR: usize, const VECTORS: usize> Avx512<MR, VECTORS> {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        assert!(isa.has(Level::Avx512));
        Self(())
    }
}

impl<const MR: usize, const VECTORS: usize> Wide for Avx512<MR, VECTORS> {
    // SAFETY: who has a core has found the instructions.
    const ISA: Isa = unsafe { Isa::assume(Level::Avx512) };
    const ROWS: usize = MR;
    const COLUMNS: usize = VECTORS * 16;
    const DEPTH: usize = 192;
    const STRIP: usize = 160 << 10;

    #[inline(always)]
    unsafe fn multiply(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { multiply_avx512::<MR, VECTORS>(walk, left, right, block, add) }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn multiply_avx512<const MR: usize, const VECTORS: usize>(
    walk: Walk,
    left: *const f32,
    right: *const f32,
    block: *mut f32,
    add: bool,
) {
    // SAFETY: every address is one that the caller promises.
    unsafe {
        for line in (0..MR * VECTORS * 16).step_by(16) {
            _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line).cast());
        }
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; MR];
        for row in 0..walk.rows {
            let mut a = left.add(row * walk.left_row);
            let mut b = right.add(row * walk.right_row);
            for _ in 0..walk.depth {
                let mut columns = [_mm512_setzero_ps(); VECTORS];
                for (j, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(b.add(j * 16));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(i));
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm512_fmadd_ps(value, column, *sum);
                    }
                }
                _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(FETCHED).cast());
                a = a.wrapping_add(MR);
                b = b.wrapping_add(walk.right_step);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let target = block.add((i * VECTORS + j) * 16);
                let sum = if add {
                    _mm512_add_ps(_mm512_loadu_ps(target), sum)
                } else {
                    sum
                };
                _mm512_storeu_ps(target, sum);
            }
        }
    }
}
