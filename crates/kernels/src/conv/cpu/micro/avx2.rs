//! Blocks of products with AVX2 and FMA.

use std::arch::x86_64::*;

use super::{Walk, Wide};
use crate::cpu::isa::{Isa, Level};

/// Six rows of two registers leave room for the operands.
pub struct Avx2(());

impl Avx2 {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        assert!(isa.has(Level::Avx2));
        Self(())
    }
}

impl Wide for Avx2 {
    // SAFETY: who has a core has found the instructions.
    const ISA: Isa = unsafe { Isa::assume(Level::Avx2) };
    const ROWS: usize = 6;
    const COLUMNS: usize = 16;
    const DEPTH: usize = 256;
    const STRIP: usize = 80 << 10;

    #[inline(always)]
    unsafe fn multiply(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { multiply_avx2(walk, left, right, block, add) }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn multiply_avx2(
    walk: Walk,
    left: *const f32,
    right: *const f32,
    block: *mut f32,
    add: bool,
) {
    // SAFETY: every address is one that the caller promises.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; Avx2::ROWS];
        for row in 0..walk.rows {
            let mut a = left.add(row * walk.left_row);
            let mut b = right.add(row * walk.right_row);
            for _ in 0..walk.depth {
                let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(i));
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
                a = a.wrapping_add(Avx2::ROWS);
                b = b.wrapping_add(walk.right_step);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let target = block.add(i * Avx2::COLUMNS + j * 8);
                let sum = if add {
                    _mm256_add_ps(_mm256_loadu_ps(target), sum)
                } else {
                    sum
                };
                _mm256_storeu_ps(target, sum);
            }
        }
    }
}
