//! The number formats that convolutions read and write; all arithmetic is f32.

use half::{bf16, f16};

use super::isa::Isa;

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

    /// Widens `source` into `target`, which is as long. The processor has `isa`.
    #[inline(always)]
    fn widen_run(isa: Isa, source: &[Self], target: &mut [f32]) {
        let _ = isa;
        for (target, source) in target.iter_mut().zip(source) {
            *target = source.widen();
        }
    }

    /// Rounds `source` into `target`, which is as long. The processor has `isa`.
    #[inline(always)]
    fn narrow_run(isa: Isa, source: &[f32], target: &mut [Self]) {
        let _ = isa;
        for (target, source) in target.iter_mut().zip(source) {
            *target = Self::narrow(*source);
        }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
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
        if isa >= Isa::Avx2 {
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
    fn narrow_run(isa: Isa, source: &[f32], target: &mut [Self]) {
        assert_eq!(source.len(), target.len());
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
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
            *target = Self::narrow(*source);
        }
    }
}
