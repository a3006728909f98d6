//! Blocks of products of bf16 with the dot products of AVX-512.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use super::amx::pair_up;
use super::{CHANNELS, Core, MOST_PARTS, PixelCore, Walk};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level, Registers};

/// Eight rows of three registers. Products of bf16 are added in f32, two at a time; values below 2^-126
/// count as zero.
pub struct Avx512Bf16(());

const VECTORS: usize = 3;

impl Avx512Bf16 {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        assert!(isa.has(Level::Avx512Bf16));
        Self(())
    }
}

impl Core for Avx512Bf16 {
    type Value = u16;
    // SAFETY: who has a core has found the instructions.
    const ISA: Isa = unsafe { Isa::assume(Level::Avx512Bf16) };
    const MR: usize = 8;
    const NR: usize = VECTORS * 16;
    const PAIR: usize = 2;
    const STEP: usize = 2;
    const DEPTH: usize = 384;
    const STRIP: usize = 320 << 10;

    fn left_at(step: usize, lane: usize) -> usize {
        step / 2 * (2 * Self::MR) + lane * 2 + step % 2
    }

    #[inline(always)]
    unsafe fn values<E: Element>(elements: &[E], [target, ..]: [&mut [u16]; MOST_PARTS]) -> bool {
        for (target, element) in target.iter_mut().zip(elements) {
            *target = element.bf16_bits();
        }
        true
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(
        channels: [Option<&[E]>; 2],
        target: &mut [u16],
        lane: usize,
    ) -> bool {
        // SAFETY: the caller's promises are the same.
        unsafe { pair_up(channels, target, lane) }
        true
    }

    #[inline(always)]
    unsafe fn multiply(
        _: &Registers,
        walk: Walk,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { multiply(walk, left, right, block, add) }
    }
}

impl PixelCore for Avx512Bf16 {
    type Held = bf16;
    const ISA: Isa = <Self as Core>::ISA;
    const SPAN: usize = 2;

    #[inline(always)]
    unsafe fn multiply_pixels(
        _: &Registers,
        walk: Walk,
        left: *const u16,
        right: *const u16,
        left_stride: usize,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { multiply_pixels(walk, left, right, left_stride, block, add) }
    }
}

/// As [`PixelCore::multiply_pixels`], eight rows at a time.
///
/// # Safety
/// As [`PixelCore::multiply_pixels`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_pixels(
    walk: Walk,
    left: *const u16,
    right: *const u16,
    left_stride: usize,
    block: *mut f32,
    add: bool,
) {
    const ROWS: usize = 8;
    const VECTORS: usize = CHANNELS / 16;
    assert!(walk.depth.is_multiple_of(Avx512Bf16::SPAN));
    for first in (0..CHANNELS).step_by(ROWS) {
        let left = left.wrapping_add(first * left_stride);
        // SAFETY: every address is one that the caller promises.
        unsafe {
            let sums = sums::<ROWS, VECTORS>(walk, left, right, [left_stride, 2]);
            put(sums, block.add(first * CHANNELS), add);
        }
    }
}

/// As [`Core::multiply`].
///
/// # Safety
/// As [`Core::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply(walk: Walk, left: *const u16, right: *const u16, block: *mut f32, add: bool) {
    const MR: usize = Avx512Bf16::MR;
    assert!(walk.depth.is_multiple_of(Avx512Bf16::STEP));
    for line in (0..Avx512Bf16::BLOCK).step_by(16) {
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line).cast());
    }
    // SAFETY: every address is one that the caller promises.
    unsafe {
        let sums = sums::<MR, VECTORS>(walk, left, right, [2, 2 * MR]);
        put(sums, block, add);
    }
}

/// Sums over pairs of values of `ROWS` rows with as many vectors of columns. `steps` leads from a row to the next and from a pair
/// to the next on the left.
///
/// # Safety
/// All that `walk` comes by can be read.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn sums<const ROWS: usize, const VECTORS: usize>(
    walk: Walk,
    left: *const u16,
    right: *const u16,
    steps: [usize; 2],
) -> [[__m512; VECTORS]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for row in 0..walk.rows {
        let mut a = left.wrapping_add(row * walk.left_row);
        let mut b = right.wrapping_add(row * walk.right_row);
        for _ in 0..walk.depth / 2 {
            let mut columns = [_mm512_setzero_si512(); VECTORS];
            for (j, column) in columns.iter_mut().enumerate() {
                // SAFETY: the caller promises that these can be read.
                *column = unsafe { _mm512_loadu_si512(b.add(j * 32).cast()) };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let pair = unsafe { a.add(i * steps[0]).cast::<i32>().read_unaligned() };
                let pair = _mm512_set1_epi32(pair);
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = _mm512_dpbf16_ps(*sum, bf16s(pair), bf16s(column));
                }
            }
            a = a.wrapping_add(steps[1]);
            b = b.wrapping_add(2 * walk.right_step);
        }
    }
    sums
}

/// Writes rows of vectors one after the other, or adds them to what is there.
///
/// # Safety
/// `block` has room for them, and holds values if they are added to.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn put<const ROWS: usize, const VECTORS: usize>(
    sums: [[__m512; VECTORS]; ROWS],
    block: *mut f32,
    add: bool,
) {
    for (index, &sum) in sums.as_flattened().iter().enumerate() {
        // SAFETY: the caller promises room.
        unsafe {
            let target = block.add(index * 16);
            let sum = match add {
                true => _mm512_add_ps(_mm512_loadu_ps(target), sum),
                false => sum,
            };
            _mm512_storeu_ps(target, sum);
        }
    }
}

/// The same bits as 32 values.
#[target_feature(enable = "avx512f")]
#[inline]
fn bf16s(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, of which all mean something.
    unsafe { transmute(bits) }
}
