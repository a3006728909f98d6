//! The number formats that maps are stored in; all arithmetic is f32.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, __m512i, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm256_mask_storeu_epi16,
    _mm256_maskz_loadu_epi16, _mm512_add_epi32, _mm512_and_epi32, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_fpclass_ps_mask, _mm512_mask_or_epi32,
    _mm512_mask_storeu_epi16, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32,
    _mm512_slli_epi32, _mm512_srli_epi32,
};
use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;

/// A stored number: widened exactly to f32 for arithmetic, rounded to nearest even when stored.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// The exact value.
    fn widen(self) -> f32;

    /// The nearest stored value, ties to even.
    fn narrow(value: f32) -> Self;

    /// The bits of the nearest bf16, ties to even.
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        bf16::narrow(self.widen()).to_bits()
    }

    /// Widens `source` into `target`, which is as long.
    #[inline(always)]
    fn widen_run(isa: Isa, source: &[Self], target: &mut [f32]) {
        let _ = isa;
        for (target, source) in target.iter_mut().zip(source) {
            *target = source.widen();
        }
    }

    /// The exact values of `source`, in `buffer`, which is no shorter, or where they are.
    #[inline(always)]
    fn widened<'a>(isa: Isa, source: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..source.len()];
        Self::widen_run(isa, source, buffer);
        buffer
    }

    /// Rounds `source` into all of `target`, which is as long.
    #[inline(always)]
    fn write_run(isa: Isa, source: &[f32], target: &mut [MaybeUninit<Self>]) {
        let _ = isa;
        assert_eq!(source.len(), target.len());
        for (target, source) in target.iter_mut().zip(source) {
            target.write(Self::narrow(*source));
        }
    }

    /// As [`Self::write_run`], over other values.
    #[inline(always)]
    fn narrow_run(isa: Isa, source: &[f32], target: &mut [Self]) {
        // SAFETY: nothing but values is written.
        Self::write_run(isa, source, unsafe { uninitialised(target) });
    }

    /// Widens the values of `source` that `mask` has; the others are 0.
    ///
    /// # Safety
    /// Those values are readable; the processor has AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_lanes(source: *const Self, mask: u16) -> __m512;

    /// Rounds the values that `mask` has into `target`.
    ///
    /// # Safety
    /// Those are writable; the processor has AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_lanes(values: __m512, mask: u16, target: *mut Self);

    /// As [`Self::store_lanes`], twice as many.
    ///
    /// # Safety
    /// As [`Self::store_lanes`]; the processor has `isa`, which is at least AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_two(isa: Isa, values: [__m512; 2], mask: u32, target: *mut Self) {
        let _ = isa;
        // SAFETY: the caller's promises.
        unsafe { store_each(values, mask, target) }
    }
}

/// As [`Element::store_two`], one after the other.
///
/// # Safety
/// As [`Element::store_lanes`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn store_each<E: Element>(values: [__m512; 2], mask: u32, target: *mut E) {
    // SAFETY: the caller's promises.
    unsafe {
        E::store_lanes(values[0], mask as u16, target);
        E::store_lanes(values[1], (mask >> 16) as u16, target.wrapping_add(16));
    }
}

/// Values as room for others.
///
/// # Safety
/// Nothing but values is written there.
#[inline(always)]
pub unsafe fn uninitialised<T>(values: &mut [T]) -> &mut [MaybeUninit<T>] {
    let (start, length) = (values.as_mut_ptr(), values.len());
    // SAFETY: as long, of the same layout, and borrowed for as long; what is written are values.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), length) }
}

/// The nearest stored value of another format.
#[inline(always)]
pub fn convert<From: Element, To: Element>(value: From) -> To {
    // Bits stay as they are, at no cost, where the format does.
    match (&value as &dyn std::any::Any).downcast_ref::<To>() {
        Some(&same) => same,
        None => To::narrow(value.widen()),
    }
}

impl Element for f32 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_lanes(source: *const Self, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { _mm512_maskz_loadu_ps(mask, source) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_lanes(values: __m512, mask: u16, target: *mut Self) {
        // SAFETY: the caller's promises.
        unsafe { _mm512_mask_storeu_ps(target, mask, values) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widened<'a>(_: Isa, source: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        source
    }
}

impl Element for bf16 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_lanes(source: *const Self, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_lanes(values: __m512, mask: u16, target: *mut Self) {
        // SAFETY: the caller's promises.
        unsafe {
            // As `narrow`.
            let bits = _mm512_castps_si512(values);
            let high = _mm512_srli_epi32::<16>(bits);
            let even = _mm512_and_epi32(high, _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
            let bits = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
            let bits = _mm512_cvtepi32_epi16(bits);
            _mm256_mask_storeu_epi16(target.cast(), mask, bits);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_two(isa: Isa, values: [__m512; 2], mask: u32, target: *mut Self) {
        const SUBNORMAL: i32 = 0x20;
        // SAFETY: the caller's promises.
        unsafe {
            let subnormal = _mm512_fpclass_ps_mask::<SUBNORMAL>(values[0])
                | _mm512_fpclass_ps_mask::<SUBNORMAL>(values[1]);
            // The instruction counts them as zero.
            if isa.has(Level::Avx512Bf16) && subnormal == 0 {
                let rounded = round_two(values);
                _mm512_mask_storeu_epi16(target.cast(), mask, rounded);
            } else {
                store_each(values, mask, target);
            }
        }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Without a branch, so that the compiler can vectorise it.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        self.to_bits()
    }
}

/// The nearest bf16 of numbers that are not subnormal, as the processor rounds them.
///
/// # Safety
/// The processor has AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn round_two([first, second]: [__m512; 2]) -> __m512i {
    let rounded: __m512i;
    // SAFETY: the caller promises the instruction, which touches no memory.
    unsafe {
        std::arch::asm!(
            "vcvtne2ps2bf16 {rounded}, {second}, {first}",
            rounded = lateout(zmm_reg) rounded,
            first = in(zmm_reg) first,
            second = in(zmm_reg) second,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    rounded
}

impl Element for f16 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_lanes(source: *const Self, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, source.cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_lanes(values: __m512, mask: u16, target: *mut Self) {
        // SAFETY: the caller's promises.
        unsafe {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            _mm256_mask_storeu_epi16(target.cast(), mask, half);
        }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }

    #[inline(always)]
    fn widen_run(isa: Isa, source: &[Self], target: &mut [f32]) {
        assert_eq!(source.len(), target.len());
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if isa.has(Level::Avx2) {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            while done + 8 <= source.len() {
                // SAFETY: eight elements follow `done` in both slices; `isa` has F16C.
                unsafe {
                    let half = _mm_loadu_si128(source.as_ptr().add(done).cast());
                    _mm256_storeu_ps(target.as_mut_ptr().add(done), _mm256_cvtph_ps(half));
                }
                done += 8;
            }
        }
        let _ = isa;
        for (target, source) in target[done..].iter_mut().zip(&source[done..]) {
            *target = source.widen();
        }
    }

    #[inline(always)]
    fn write_run(isa: Isa, source: &[f32], target: &mut [MaybeUninit<Self>]) {
        assert_eq!(source.len(), target.len());
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if isa.has(Level::Avx2) {
            use std::arch::x86_64::{
                _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps,
            };
            while done + 8 <= source.len() {
                // SAFETY: eight elements follow `done` in both slices; `isa` has F16C.
                unsafe {
                    let wide = _mm256_loadu_ps(source.as_ptr().add(done));
                    let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide);
                    _mm_storeu_si128(target.as_mut_ptr().add(done).cast(), half);
                }
                done += 8;
            }
        }
        let _ = isa;
        for (target, source) in target[done..].iter_mut().zip(&source[done..]) {
            target.write(Self::narrow(*source));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::dispatch;

    /// Every stored value, its neighbours in f32, what lies half way to the next one, and that one's
    /// neighbours; of both signs, with infinities and what is no number.
    fn values<E: Element>(of_bits: fn(u16) -> E) -> Vec<f32> {
        let step = if cfg!(miri) { 997 } else { 1 };
        let mut values = Vec::new();
        for bits in (0..=u16::MAX).step_by(step) {
            let value = of_bits(bits).widen();
            let next = of_bits(bits.wrapping_add(1)).widen();
            // Exact: both have few digits, but for the largest, whose next one is infinite.
            let tie = value / 2.0 + next / 2.0;
            for value in [value, tie] {
                values.extend([value, value.next_up(), value.next_down()]);
            }
        }
        values.extend([f32::MAX, f32::MIN, f32::MIN_POSITIVE, 65_519.996, 65_520.0]);
        values
    }

    fn check<E: Element + PartialEq>(of_bits: fn(u16) -> E, reference: fn(f32) -> E) {
        fn same<E: Element + PartialEq>(a: E, b: E) -> bool {
            let (a, b) = (a.widen(), b.widen());
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
        }
        let wide = values(of_bits);
        let narrow: Vec<E> = wide.iter().map(|value| reference(*value)).collect();
        for (value, expected) in wide.iter().zip(&narrow) {
            assert!(same(E::narrow(*value), *expected), "{value:e}");
        }
        for isa in Isa::available() {
            let mut found = vec![E::default(); wide.len()];
            dispatch(
                isa,
                #[inline(always)]
                |isa| E::narrow_run(isa, &wide, &mut found),
            );
            let equal = found.iter().zip(&narrow).position(|(a, b)| !same(*a, *b));
            assert_eq!(equal.map(|at| wide[at]), None, "runs of {isa:?}");
            let mut widened = vec![0f32; found.len()];
            dispatch(
                isa,
                #[inline(always)]
                |isa| E::widen_run(isa, &found, &mut widened),
            );
            let exact = |(value, wide): (&E, &f32)| {
                value.widen().to_bits() == wide.to_bits() || wide.is_nan()
            };
            assert!(found.iter().zip(&widened).all(exact), "{isa:?}");
            #[cfg(target_arch = "x86_64")]
            if isa.has(Level::Avx512) {
                let mut found = vec![E::default(); wide.len()];
                for (wide, found) in wide.chunks(13).zip(found.chunks_mut(13)) {
                    let mask = u16::MAX >> (16 - wide.len());
                    dispatch(
                        isa,
                        #[inline(always)]
                        // SAFETY: the mask has the values of the chunks; the processor has AVX-512.
                        |_| unsafe {
                            let lanes = <f32 as Element>::load_lanes(wide.as_ptr(), mask);
                            E::store_lanes(lanes, mask, found.as_mut_ptr());
                            let lanes = E::load_lanes(found.as_ptr(), mask);
                            let mut again = [0f32; 13];
                            <f32 as Element>::store_lanes(lanes, mask, again.as_mut_ptr());
                            let exact = |(value, wide): (&E, &f32)| {
                                value.widen().to_bits() == wide.to_bits() || wide.is_nan()
                            };
                            assert!(found.iter().zip(&again).all(exact));
                        },
                    );
                }
                let equal = found.iter().zip(&narrow).position(|(a, b)| !same(*a, *b));
                assert_eq!(equal.map(|at| wide[at]), None, "lanes");
                // Two vectors at once, the second of them in part; apart from subnormal numbers, which
                // are rounded otherwise, and among them.
                let normal = |value: &&f32| !value.is_subnormal();
                let apart: Vec<f32> = wide.iter().filter(normal).copied().collect();
                for wide in [&wide, &apart] {
                    let mut found = vec![E::default(); wide.len()];
                    for (wide, found) in wide.chunks(29).zip(found.chunks_mut(29)) {
                        let mask = u32::MAX >> (32 - wide.len());
                        dispatch(
                            isa,
                            #[inline(always)]
                            // SAFETY: as above.
                            |_| unsafe {
                                let (low, high) = (mask as u16, (mask >> 16) as u16);
                                let second = wide.as_ptr().wrapping_add(16);
                                let lanes = [
                                    <f32 as Element>::load_lanes(wide.as_ptr(), low),
                                    <f32 as Element>::load_lanes(second, high),
                                ];
                                E::store_two(isa, lanes, mask, found.as_mut_ptr());
                            },
                        );
                    }
                    let expected = wide.iter().map(|value| reference(*value));
                    let equal = found.iter().zip(expected).position(|(a, b)| !same(*a, b));
                    assert_eq!(equal.map(|at| wide[at]), None, "two vectors of {isa:?}");
                }
            }
        }
    }

    #[test]
    fn lanes_runs_and_scalars_round_alike_to_f16() {
        check(f16::from_bits, f16::from_f32_const);
    }

    #[test]
    fn lanes_runs_and_scalars_round_alike_to_bf16() {
        check(bf16::from_bits, bf16::from_f32);
    }
}
