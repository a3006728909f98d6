//! The number formats that maps are stored in; all arithmetic is f32.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm256_mask_storeu_epi16,
    _mm256_maskz_loadu_epi16, _mm512_add_epi32, _mm512_and_epi32, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_mask_or_epi32, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_slli_epi32, _mm512_srli_epi32,
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
