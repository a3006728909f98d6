//! Blocks of products of bf16 with the tile registers of AMX.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Core, Walk};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level};

/// Two by two tiles of 16 x 16 sums; products of bf16 are exact and are added in f32. Values
/// below 2^-126 count as zero.
pub struct Amx(());

impl Amx {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        assert!(isa.has(Level::Amx));
        Self(())
    }

    /// Bytes of a row of a block.
    const BLOCK_STRIDE: usize = Self::NR * size_of::<f32>();

    /// Loads a block into the first four tiles to add to it, or clears them.
    ///
    /// # Safety
    /// As [`Core::multiply`].
    #[inline(always)]
    pub unsafe fn begin(block: *const f32, add: bool) {
        // SAFETY: the caller's promises.
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{low} + {stride}]",
                    "tileloadd tmm1, [{low} + {stride} + 64]",
                    "tileloadd tmm2, [{high} + {stride}]",
                    "tileloadd tmm3, [{high} + {stride} + 64]",
                    low = in(reg) block,
                    high = in(reg) block.add(16 * Self::NR),
                    stride = in(reg) Self::BLOCK_STRIDE,
                    options(nostack, readonly, preserves_flags),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags),
                );
            }
        }
    }

    /// Stores the first four tiles as a block.
    ///
    /// # Safety
    /// As [`Core::multiply`].
    #[inline(always)]
    pub unsafe fn end(block: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe {
            asm!(
                "tilestored [{low} + {stride}], tmm0",
                "tilestored [{low} + {stride} + 64], tmm1",
                "tilestored [{high} + {stride}], tmm2",
                "tilestored [{high} + {stride} + 64], tmm3",
                low = in(reg) block,
                high = in(reg) block.add(16 * Self::NR),
                stride = in(reg) Self::BLOCK_STRIDE,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl Core for Amx {
    type Value = u16;
    // SAFETY: who has a core has found the instructions.
    const ISA: Isa = unsafe { Isa::assume(Level::Amx) };
    const MR: usize = 32;
    const NR: usize = 32;
    const PAIR: usize = 2;
    const STEP: usize = 32;
    const DEPTH: usize = 512;
    const STRIP: usize = 320 << 10;

    // Two tiles of 16 rows, each with 32 products side by side.
    fn left_at(step: usize, lane: usize) -> usize {
        step / Self::STEP * (Self::STEP * Self::MR) + lane * Self::STEP + step % Self::STEP
    }

    #[inline(always)]
    unsafe fn values<E: Element>(elements: &[E], [target, _]: [&mut [u16]; 2]) -> bool {
        for (target, element) in target.iter_mut().zip(elements) {
            *target = element.bf16_bits();
        }
        true
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(
        [first, second]: [Option<&[E]>; 2],
        target: &mut [u16],
        lane: usize,
    ) -> bool {
        assert_eq!(size_of::<E>(), size_of::<u16>());
        let first = first.unwrap_or_default();
        let target = &mut target[lane * 2..][..first.len() * 2];
        assert!(second.is_none_or(|second| second.len() == first.len()));
        // SAFETY: elements are bf16; both runs and the target have the lengths that were checked,
        // and the caller promises the instructions.
        unsafe {
            pair_up(
                first.as_ptr().cast(),
                second.map(|second| second.as_ptr().cast()),
                first.len(),
                target.as_mut_ptr(),
            );
        }
        true
    }

    #[inline(always)]
    unsafe fn multiply(
        walk: Walk,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { multiply_rows(walk, left, right, 64, block, add) }
    }
}

/// Writes `length` pairs of neighbouring values, one of each run; zeros for a missing one.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair_up(first: *const u16, second: Option<*const u16>, length: usize, target: *mut u16) {
    // Value `i` of a register: from the first run where even, from the second where odd.
    const fn order(from: u16) -> [u16; 32] {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = from + (i / 2) as u16 + 32 * (i % 2) as u16;
            i += 1;
        }
        order
    }
    const LOW: [u16; 32] = order(0);
    const HIGH: [u16; 32] = order(16);
    // SAFETY: masks keep every access inside the runs and the target.
    unsafe {
        let low = _mm512_loadu_si512(LOW.as_ptr().cast());
        let high = _mm512_loadu_si512(HIGH.as_ptr().cast());
        let mut done = 0;
        while done < length {
            let left = (length - done).min(32);
            let mask = u32::MAX >> (32 - left);
            let a = _mm512_maskz_loadu_epi16(mask, first.add(done).cast());
            let b = match second {
                Some(second) => _mm512_maskz_loadu_epi16(mask, second.add(done).cast()),
                None => _mm512_setzero_si512(),
            };
            let target = target.add(done * 2).cast();
            let near = _mm512_permutex2var_epi16(a, low, b);
            _mm512_mask_storeu_epi32(target, mask as u16, near);
            if left > 16 {
                let far = _mm512_permutex2var_epi16(a, high, b);
                _mm512_mask_storeu_epi32(target.add(16), (mask >> 16) as u16, far);
            }
            done += left;
        }
    }
}

/// As [`Core::multiply`]; neighbouring rows of a left tile are `left_stride` bytes apart, and its
/// second tile 16 rows on.
#[inline(always)]
pub unsafe fn multiply_rows(
    walk: Walk,
    left: *const u16,
    right: *const u16,
    left_stride: usize,
    block: *mut f32,
    add: bool,
) {
    debug_assert!(walk.depth.is_multiple_of(Amx::STEP));
    let right_stride = walk.right_step * 2 * size_of::<u16>();
    // SAFETY: `compiled` configured eight tiles of 16 rows of 64 bytes; every address is one that
    // the caller promises. No other code of this program uses tile registers.
    unsafe {
        Amx::begin(block, add);
        for row in 0..walk.rows {
            let left = left.wrapping_add(row * walk.left_row);
            // Packed tiles follow each other; rows of a map go on where they are.
            let left_step = if left_stride == 64 { 64 * Amx::MR } else { 64 };
            asm!(
                "2:",
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{low} + {left_stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {right_stride} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{high} + {left_stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {low}, {left_step}",
                "add {high}, {left_step}",
                "add {right}, {right_move}",
                "dec {count}",
                "jnz 2b",
                low = inout(reg) left => _,
                high = inout(reg) left.byte_add(16 * left_stride) => _,
                right = inout(reg) right.wrapping_add(row * walk.right_row) => _,
                count = inout(reg) walk.depth / Amx::STEP => _,
                left_stride = in(reg) left_stride,
                right_stride = in(reg) right_stride,
                left_step = in(reg) left_step,
                right_move = in(reg) right_stride * 16,
                options(nostack, readonly),
            );
        }
        Amx::end(block);
    }
}
