//! Blocks of products of f16 with the tile registers of AMX, which multiply bf16.

use std::arch::asm;
use std::arch::x86_64::*;

use half::f16;

use super::{Amx, Core, Walk};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Registers};
use crate::cpu::tile_registers::TileRegisters;

/// As [`Amx`], of f16. A finite f16 has 11 significant bits, and is the sum of two bf16 of 8 and of 3: three
/// of the four products of such sums are added in f32. What is left out is at most 2^-16 of a product,
/// a thirty-second of what the result is rounded by. The least part is 2^-24, so that nothing counts as
/// zero. What is not finite has no such parts: it is reported, and left to others.
pub struct AmxF16(());

impl AmxF16 {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        Amx::on(isa);
        Self(())
    }
}

impl Core for AmxF16 {
    type Value = u16;
    const ISA: Isa = Amx::ISA;
    const MR: usize = Amx::MR;
    const NR: usize = Amx::NR;
    const PARTS: usize = 2;
    const PAIR: usize = Amx::PAIR;
    const STEP: usize = Amx::STEP;
    const DEPTH: usize = Amx::DEPTH / Self::PARTS;
    const STRIP: usize = Amx::STRIP;

    fn left_at(step: usize, lane: usize) -> usize {
        step / Self::STEP * (Self::STEP * Self::LEFT) + lane * Self::STEP + step % Self::STEP
    }

    #[inline(always)]
    unsafe fn values<E: Element>(elements: &[E], parts: [&mut [u16]; 2]) -> bool {
        // SAFETY: the caller promises the instructions.
        unsafe { split_run(elements, parts) }
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(
        [first, second]: [Option<&[E]>; 2],
        target: &mut [u16],
        lane: usize,
    ) -> bool {
        assert_eq!(size_of::<E>(), size_of::<f16>());
        let first = first.unwrap_or_default();
        assert!(second.is_none_or(|second| second.len() == first.len()));
        let (high, low) = target.split_at_mut(Self::NR * 2);
        let high = &mut high[lane * 2..][..first.len() * 2];
        let low = &mut low[lane * 2..][..first.len() * 2];
        // SAFETY: elements are f16; both runs and both targets have the lengths that were checked,
        // and the caller promises the instructions.
        unsafe {
            pair_up(
                first.as_ptr().cast(),
                second.map(|second| second.as_ptr().cast()),
                first.len(),
                [high.as_mut_ptr(), low.as_mut_ptr()],
            )
        }
    }

    #[inline(always)]
    unsafe fn multiply(
        registers: &Registers,
        walk: Walk,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    ) {
        let _: &TileRegisters = registers.tiles();
        let steps = walk.depth / Self::STEP;
        assert!(walk.rows == 1 && steps > 0 && walk.depth.is_multiple_of(Self::STEP));
        assert!(walk.right_step == Self::RIGHT);
        // SAFETY: tiles have 16 rows of 64 bytes, as the token says; every address is one that the
        // caller promises.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jz 2f",
                "tileloadd tmm0, [{block} + {stride}]",
                "tileloadd tmm1, [{block} + {stride} + 64]",
                "tileloadd tmm2, [{block} + {stride} + 2048]",
                "tileloadd tmm3, [{block} + {stride} + 2112]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                // High parts of both.
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{left} + {left_stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {right_stride} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {left_stride} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // Low parts of the left one.
                "tileloadd tmm4, [{left} + {left_stride} + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {left_stride} + 3072]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // Low parts of the right one.
                "tileloadd tmm6, [{right} + {right_stride} + 128]",
                "tileloadd tmm4, [{left} + {left_stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {right_stride} + 192]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {left_stride} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 4096",
                "add {right}, 4096",
                "dec {count}",
                "jnz 3b",
                "tilestored [{block} + {stride}], tmm0",
                "tilestored [{block} + {stride} + 64], tmm1",
                "tilestored [{block} + {stride} + 2048], tmm2",
                "tilestored [{block} + {stride} + 2112], tmm3",
                add = in(reg) usize::from(add),
                block = in(reg) block,
                stride = in(reg) Amx::BLOCK_STRIDE,
                left = inout(reg) left => _,
                right = inout(reg) right => _,
                count = inout(reg) steps => _,
                left_stride = in(reg) 64usize,
                right_stride = in(reg) 256usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// The two parts of sixteen numbers, in the upper halves of their lanes, and which of them are not finite
/// or belong to one that is not.
#[target_feature(enable = "avx512f")]
#[inline]
fn split(values: __m512) -> ([__m512i; 2], __mmask16) {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let high = _mm512_and_epi32(_mm512_add_epi32(_mm512_castps_si512(values), half), upper);
    // Exact. Infinity less itself, and whatever is no number, are no number.
    let low = _mm512_sub_ps(values, _mm512_castsi512_ps(high));
    let strange = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(low, low);
    ([high, _mm512_castps_si512(low)], strange)
}

/// Writes the parts of `elements`, which are f16, into two targets that are no shorter. Whether all are finite.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub unsafe fn split_run<E: Element>(elements: &[E], [high, low]: [&mut [u16]; 2]) -> bool {
    assert_eq!(size_of::<E>(), size_of::<f16>());
    assert!(high.len() >= elements.len() && low.len() >= elements.len());
    let (high, low) = (high.as_mut_ptr(), low.as_mut_ptr());
    // SAFETY: the lengths were checked; the rest is the caller's promise.
    unsafe { split_f16(elements.as_ptr().cast(), elements.len(), [high, low]) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn split_f16(elements: *const f16, length: usize, [high, low]: [*mut u16; 2]) -> bool {
    let mut strange = 0;
    for first in (0..length).step_by(16) {
        let mask = u16::MAX >> (16 - (length - first).min(16));
        // SAFETY: the mask keeps to the run and the targets.
        unsafe {
            let values = f16::load_lanes(elements.add(first), mask);
            let ([upper, lower], found) = split(values);
            strange |= found;
            let narrow = |part| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(part));
            _mm256_mask_storeu_epi16(high.add(first).cast(), mask, narrow(upper));
            _mm256_mask_storeu_epi16(low.add(first).cast(), mask, narrow(lower));
        }
    }
    strange == 0
}

/// Writes `length` pairs of neighbouring values, one of each run, part by part; zeros for a missing run.
/// Whether all are finite.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn pair_up(
    first: *const f16,
    second: Option<*const f16>,
    length: usize,
    [high, low]: [*mut u16; 2],
) -> bool {
    let mut strange = 0;
    for done in (0..length).step_by(16) {
        let mask = u16::MAX >> (16 - (length - done).min(16));
        // SAFETY: masks keep every access inside the runs and the targets.
        unsafe {
            let a = f16::load_lanes(first.add(done), mask);
            let b = match second {
                Some(second) => f16::load_lanes(second.add(done), mask),
                None => _mm512_setzero_ps(),
            };
            let (a, found) = split(a);
            strange |= found;
            let (b, found) = split(b);
            strange |= found;
            let pair = |part: usize| _mm512_or_epi32(_mm512_srli_epi32::<16>(a[part]), b[part]);
            _mm512_mask_storeu_epi32(high.add(done * 2).cast(), mask, pair(0));
            _mm512_mask_storeu_epi32(low.add(done * 2).cast(), mask, pair(1));
        }
    }
    strange == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Level;

    #[test]
    fn two_parts_of_every_finite_number_add_up_to_it() {
        if !Isa::best().has(Level::Avx512) {
            eprintln!("not tested: this processor has no AVX-512");
            return;
        }
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let [mut high, mut low] = [[0]; 2];
            // SAFETY: the processor has AVX-512.
            let finite = unsafe { split_run(&[value], [&mut high, &mut low]) };
            assert_eq!(finite, value.is_finite(), "{bits:#x}");
            if finite {
                let [high, low] = [high, low].map(|part| f32::from_bits(u32::from(part[0]) << 16));
                assert_eq!(high + low, value.to_f32(), "{bits:#x}");
                assert!(low.abs() <= high.abs() / 256.0, "{bits:#x}");
                // Tiles count what is less than this as zero.
                assert!(
                    [high, low]
                        .iter()
                        .all(|part| *part == 0.0 || part.abs() > 1e-37)
                );
            }
        }
    }
}
