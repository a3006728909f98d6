//! Blocks of products of f16 and f32 with the tile registers of AMX, which multiply bf16.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::amx::{self, lay_down, take_up};
use super::{Core, MOST_PARTS, Walk};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Registers};
use crate::cpu::tile_registers::TileRegisters;

/// Its parts' tiles.
type Amx = amx::Amx<bf16>;

/// A number that is the sum of a few bf16.
pub trait Parts: Element {
    /// How many, at most [`MOST_PARTS`].
    const PARTS: usize;
    /// Products that are summed before a block is stored.
    const DEPTH: usize;

    /// As [`Core::multiply`] of packed operands, `steps` of them.
    ///
    /// # Safety
    /// As [`Core::multiply`].
    unsafe fn multiply(
        _: &TileRegisters,
        steps: usize,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    );
}

/// As [`Amx`], of numbers that have several [`Parts`]: products of parts are exact and are added in f32. What
/// is not finite has no parts: it is reported, and left to others.
pub struct AmxParts<F>(PhantomData<F>);

impl<F: Parts> AmxParts<F> {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        Amx::on(isa);
        Self(PhantomData)
    }
}

impl<F: Parts> Core for AmxParts<F> {
    type Value = u16;
    const ISA: Isa = Amx::ISA;
    const MR: usize = Amx::MR;
    const NR: usize = Amx::NR;
    const PARTS: usize = F::PARTS;
    const PAIR: usize = Amx::PAIR;
    const STEP: usize = Amx::STEP;
    const DEPTH: usize = F::DEPTH;
    const STRIP: usize = Amx::STRIP;

    fn left_at(step: usize, lane: usize) -> usize {
        step / Self::STEP * (Self::STEP * Self::LEFT) + lane * Self::STEP + step % Self::STEP
    }

    #[inline(always)]
    unsafe fn values<E: Element>(elements: &[E], parts: [&mut [u16]; MOST_PARTS]) -> bool {
        // SAFETY: the caller promises the instructions.
        unsafe { split_run::<F, E>(elements, parts) }
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(
        [first, second]: [Option<&[E]>; 2],
        target: &mut [u16],
        lane: usize,
    ) -> bool {
        assert_eq!(size_of::<E>(), size_of::<F>());
        let first = first.unwrap_or_default();
        assert!(second.is_none_or(|second| second.len() == first.len()));
        assert!(target.len() == Self::RIGHT * 2 && lane + first.len() <= Self::NR);
        // SAFETY: elements are `F`s; the lengths were checked, and the caller promises the
        // instructions.
        unsafe {
            pair_up::<F>(
                first.as_ptr().cast(),
                second.map(|second| second.as_ptr().cast()),
                first.len(),
                target.as_mut_ptr().add(lane * 2),
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
        let steps = walk.depth / Self::STEP;
        assert!(walk.rows == 1 && steps > 0 && walk.depth.is_multiple_of(Self::STEP));
        assert!(walk.right_step == Self::RIGHT);
        // SAFETY: the caller's promises are the same.
        unsafe { F::multiply(registers.tiles(), steps, left, right, block, add) }
    }
}

/// Assembly: a part of the left operand and one of the right one are loaded and multiplied.
macro_rules! both {
    ($left:literal, $right:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {right_stride} + 128 * ",
            $right,
            "]\n",
            "tileloadd tmm4, [{left} + {left_stride} + 2048 * ",
            $left,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{right} + {right_stride} + 128 * ",
            $right,
            " + 64]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{left} + {left_stride} + 2048 * ",
            $left,
            " + 1024]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// As [`both`], by the part of the right operand that was loaded last.
macro_rules! left {
    ($left:literal) => {
        concat!(
            "tileloadd tmm4, [{left} + {left_stride} + 2048 * ",
            $left,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{left} + {left_stride} + 2048 * ",
            $left,
            " + 1024]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// As [`both`], by the part of the left operand that was loaded last.
macro_rules! right {
    ($right:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {right_stride} + 128 * ",
            $right,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tileloadd tmm7, [{right} + {right_stride} + 128 * ",
            $right,
            " + 64]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Assembly of a walk over all steps, of `$bytes` of either operand each.
macro_rules! walk {
    ($bytes:literal, $($products:expr),+) => {
        concat!(
            "mov {left}, {first_left}\n",
            "mov {right}, {first_right}\n",
            "mov {count}, {steps}\n",
            "4:\n",
            $($products,)+
            "add {left}, ", $bytes, "\n",
            "add {right}, ", $bytes, "\n",
            "dec {count}\n",
            "jnz 4b\n",
        )
    };
}

/// [`Parts::multiply`] by walks. One block of assembly: nothing stays in a tile that another one would have to
/// find there.
macro_rules! multiply {
    ($steps:expr, $left:expr, $right:expr, $block:expr, $add:expr, $($walk:expr),+) => {
        asm!(
            take_up!(),
            "3:",
            $($walk,)+
            lay_down!(),
            add = in(reg) usize::from($add),
            block = in(reg) $block,
            stride = in(reg) Amx::BLOCK_STRIDE,
            first_left = in(reg) $left,
            first_right = in(reg) $right,
            left = out(reg) _,
            right = out(reg) _,
            steps = in(reg) $steps,
            count = out(reg) _,
            left_stride = in(reg) 64usize,
            right_stride = in(reg) 128 * Self::PARTS,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// A finite f16 has 11 significant bits, and is the sum of two bf16 of 8 and of 3: three of the four products of
/// such sums are added. What is left out is at most 2^-16 of a product, a thirty-second of what the result
/// is rounded by. The least part is 2^-24, so that nothing counts as zero.
impl Parts for f16 {
    const PARTS: usize = 2;
    const DEPTH: usize = 128;

    #[inline(always)]
    unsafe fn multiply(
        _: &TileRegisters,
        steps: usize,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: tiles have 16 rows of 64 bytes, as the token says; the caller promises every address.
        unsafe {
            multiply!(
                steps,
                left,
                right,
                block,
                add,
                walk!(4096, both!(1, 0), left!(0), right!(1))
            )
        }
    }
}

/// A finite f32 has 24 significant bits, and is the sum of three bf16 of 8: six of the nine products of such sums
/// are added. What is left out is at most 2^-23 of a product. Small products are added first, over all
/// steps, so that the sum is rounded at its full size as often as one of f32.
///
/// Parts below 2^-126 count as zero: of a number below 2^-110 its last bits, at most 2^-126, are lost.
impl Parts for f32 {
    const PARTS: usize = 3;
    const DEPTH: usize = 96;

    #[inline(always)]
    unsafe fn multiply(
        _: &TileRegisters,
        steps: usize,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    ) {
        let mut sums = MaybeUninit::<Sums>::uninit();
        let target = if add { sums.as_mut_ptr().cast() } else { block };
        // SAFETY: tiles have 16 rows of 64 bytes, as the token says; the caller promises every address.
        unsafe {
            multiply!(
                steps,
                left,
                right,
                target,
                false,
                walk!(6144, both!(2, 0), left!(1), right!(1), left!(0), right!(2)),
                walk!(6144, both!(0, 0))
            );
        }
        if add {
            // SAFETY: all sums were stored; the rest is the caller's promise.
            unsafe { sums.assume_init_ref().add_to(block) };
        }
    }
}

/// A block of sums that is added to another when it is complete: small products would lose their bits in large
/// sums.
#[repr(align(64))]
struct Sums([f32; Amx::BLOCK]);

impl Sums {
    /// # Safety
    /// A block at `block` is readable and writable.
    #[inline(always)]
    unsafe fn add_to(&self, block: *mut f32) {
        // SAFETY: the caller's promise.
        let block = unsafe { std::slice::from_raw_parts_mut(block, Amx::BLOCK) };
        for (block, sum) in block.iter_mut().zip(&self.0) {
            *block += sum;
        }
    }
}

/// The parts of sixteen numbers, in the upper halves of their lanes, the largest first (of an f16 the third is zero);
/// and which of the numbers are not finite, or round to a bf16 that is not.
#[target_feature(enable = "avx512f")]
#[inline]
fn split(values: __m512) -> ([__m512i; MOST_PARTS], __mmask16) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let round = |values: __m512| {
        let half = _mm512_set1_epi32(0x8000);
        _mm512_and_epi32(_mm512_add_epi32(_mm512_castps_si512(values), half), upper)
    };
    // Each difference is exact. Infinity less itself, and whatever is no number, are no number.
    let high = round(values);
    let rest = _mm512_sub_ps(values, _mm512_castsi512_ps(high));
    let middle = round(rest);
    let low = _mm512_sub_ps(rest, _mm512_castsi512_ps(middle));
    let strange = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(low, low);
    // Only what is subnormal has more digits.
    let low = _mm512_and_epi32(_mm512_castps_si512(low), upper);
    ([high, middle, low], strange)
}

/// Writes the parts of `elements`, which are `F`s, into targets that are no shorter. Whether all are finite.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub unsafe fn split_run<F: Parts, E: Element>(
    elements: &[E],
    parts: [&mut [u16]; MOST_PARTS],
) -> bool {
    assert_eq!(size_of::<E>(), size_of::<F>());
    assert!(
        parts[..F::PARTS]
            .iter()
            .all(|part| part.len() >= elements.len())
    );
    let parts = parts.map(|part| part.as_mut_ptr());
    // SAFETY: the lengths were checked; the rest is the caller's promise.
    unsafe { split_all::<F>(elements.as_ptr().cast(), elements.len(), parts) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn split_all<F: Parts>(
    elements: *const F,
    length: usize,
    targets: [*mut u16; MOST_PARTS],
) -> bool {
    let mut strange = 0;
    for first in (0..length).step_by(16) {
        let mask = u16::MAX >> (16 - (length - first).min(16));
        // SAFETY: the mask keeps to the run and the targets.
        unsafe {
            let (parts, found) = split(F::load_lanes(elements.add(first), mask));
            strange |= found;
            for (part, target) in parts.iter().zip(targets).take(F::PARTS) {
                let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(*part));
                _mm256_mask_storeu_epi16(target.add(first).cast(), mask, narrow);
            }
        }
    }
    strange == 0
}

/// Writes `length` pairs of neighbouring values, one of each run, part by part, each of which has room for a
/// block's columns; zeros for a missing run. Whether all are finite.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn pair_up<F: Parts>(
    first: *const F,
    second: Option<*const F>,
    length: usize,
    target: *mut u16,
) -> bool {
    let mut strange = 0;
    for done in (0..length).step_by(16) {
        let mask = u16::MAX >> (16 - (length - done).min(16));
        // SAFETY: masks keep every access inside the runs and the target.
        unsafe {
            let (a, found) = split(F::load_lanes(first.add(done), mask));
            strange |= found;
            let b = match second {
                Some(second) => F::load_lanes(second.add(done), mask),
                None => _mm512_setzero_ps(),
            };
            let (b, found) = split(b);
            strange |= found;
            for (part, (a, b)) in a.into_iter().zip(b).enumerate().take(F::PARTS) {
                let pair = _mm512_or_epi32(_mm512_srli_epi32::<16>(a), b);
                let target = target.add((part * Amx::NR + done) * 2);
                _mm512_mask_storeu_epi32(target.cast(), mask, pair);
            }
        }
    }
    strange == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Level;

    /// Whether all parts of a number are finite, and they.
    fn parts<F: Parts>(value: F) -> (bool, [f32; MOST_PARTS]) {
        let mut parts = [[0]; MOST_PARTS];
        let targets = parts.each_mut().map(|part| &mut part[..]);
        // SAFETY: the tests look for AVX-512.
        let finite = unsafe { split_run::<F, F>(&[value], targets) };
        (
            finite,
            parts.map(|[part]| f32::from_bits(u32::from(part) << 16)),
        )
    }

    fn tested() -> bool {
        let tested = Isa::best().has(Level::Avx512);
        if !tested {
            eprintln!("not tested: this processor has no AVX-512");
        }
        tested
    }

    #[test]
    fn two_parts_of_every_finite_number_add_up_to_it() {
        if !tested() {
            return;
        }
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let (finite, [high, low, rest]) = parts(value);
            assert_eq!(finite, value.is_finite(), "{bits:#x}");
            if finite {
                assert_eq!(high + low, value.to_f32(), "{bits:#x}");
                assert!(low.abs() <= high.abs() / 256.0 && rest == 0.0, "{bits:#x}");
                // Tiles count what is less than this as zero.
                assert!(
                    [high, low]
                        .iter()
                        .all(|part| *part == 0.0 || part.abs() > 1e-37)
                );
            }
        }
    }

    #[test]
    fn three_parts_of_a_finite_number_add_up_to_it() {
        if !tested() {
            return;
        }
        // Every exponent, both signs, and digits that round in all ways.
        for high in 0..=u16::MAX {
            for low in [
                0, 1, 0x7f, 0x80, 0x7fff, 0x8000, 0x8001, 0xff7f, 0xff80, 0xffff,
            ] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (finite, [high, middle, low]) = parts(value);
                // The largest numbers round to infinity.
                let largest = f32::from_bits(0x7f7f_8000);
                assert_eq!(finite, value.abs() < largest, "{value:e}");
                // What is less than 2^-133 is no bf16.
                if finite && value.abs() < 2f32.powi(-110) {
                    assert!(((high + middle) + low - value).abs() <= 2f32.powi(-133));
                } else if finite {
                    assert_eq!((high + middle) + low, value, "{value:e}");
                    assert!(middle.abs() <= high.abs() / 256.0, "{value:e}");
                    assert!(low.abs() <= middle.abs() / 256.0, "{value:e}");
                }
            }
        }
    }
}
