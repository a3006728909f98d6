//! What follows the sums of a convolution on the CPU.

use std::mem::MaybeUninit;

use crate::cpu::element::Element;
use crate::cpu::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Level;

/// What follows the sums before they are rounded: `act(sums + bias + skip)`.
#[derive(Clone, Copy)]
pub struct Tail<'a, E> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// A map of the output's shape.
    pub skip: Option<&'a [E]>,
    /// Whether negative values become 0. NaN stays.
    pub relu: bool,
}

impl<E> Tail<'_, E> {
    /// Nothing follows.
    pub fn none() -> Self {
        Self {
            bias: None,
            skip: None,
            relu: false,
        }
    }
}

impl<E: Element> Tail<'_, E> {
    /// Finishes neighbouring pixels of one output channel, the first of which is value `at` of the
    /// output, and rounds them into all of `target`, which is as long. `values` may change.
    #[inline(always)]
    pub fn store(
        &self,
        isa: Isa,
        channel: usize,
        at: usize,
        values: &mut [f32],
        target: &mut [MaybeUninit<E>],
    ) {
        assert_eq!(values.len(), target.len());
        #[cfg(target_arch = "x86_64")]
        if isa.has(Level::Avx512) {
            // SAFETY: the processor has them.
            unsafe { self.store_avx512(isa, channel, at, values, target) };
            return;
        }
        self.apply(isa, channel, at, values);
        E::write_run(isa, values, target);
    }

    /// As [`Self::store`], in one pass.
    ///
    /// # Safety
    /// The processor has `isa`, which is at least AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_avx512(
        &self,
        isa: Isa,
        channel: usize,
        at: usize,
        values: &[f32],
        target: &mut [MaybeUninit<E>],
    ) {
        const LANES: usize = 16;
        let skip = self.skip.map(|skip| &skip[at..at + values.len()]);
        let bias = self.bias.map(|bias| bias[channel]);
        for first in (0..values.len()).step_by(2 * LANES) {
            let mask = u32::MAX >> (2 * LANES - (2 * LANES).min(values.len() - first));
            // SAFETY: the masks keep to the slices, which are as long as each other; the caller
            // promises the instructions.
            unsafe {
                let (low, high) = (mask as u16, (mask >> LANES) as u16);
                let sums = [
                    self.finish(bias, skip, values, first, low),
                    self.finish(bias, skip, values, first + LANES, high),
                ];
                let target = target.as_mut_ptr().add(first).cast();
                E::store_two(isa, sums, mask, target);
            }
        }
    }

    /// Finishes those of sixteen `values` from `first` on that `mask` has.
    ///
    /// # Safety
    /// They are there, also in `skip`; the processor has AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn finish(
        &self,
        bias: Option<f32>,
        skip: Option<&[E]>,
        values: &[f32],
        first: usize,
        mask: u16,
    ) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::{
            _CMP_LT_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_mask_mov_ps,
            _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        };
        // SAFETY: the caller's promises.
        unsafe {
            let mut sums = _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(first));
            if let Some(bias) = bias {
                sums = _mm512_add_ps(sums, _mm512_set1_ps(bias));
            }
            if let Some(skip) = skip {
                let skip = E::load_lanes(skip.as_ptr().wrapping_add(first), mask);
                sums = _mm512_add_ps(sums, skip);
            }
            if self.relu {
                let zero = _mm512_setzero_ps();
                let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sums, zero);
                sums = _mm512_mask_mov_ps(sums, negative, zero);
            }
            sums
        }
    }

    /// As [`Self::store`], but does not round.
    #[inline(always)]
    pub fn apply(&self, isa: Isa, channel: usize, at: usize, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = bias[channel];
            values.iter_mut().for_each(|value| *value += bias);
        }
        if let Some(skip) = self.skip {
            const LENGTH: usize = 16;
            let skip = &skip[at..at + values.len()];
            for (values, skip) in values.chunks_mut(LENGTH).zip(skip.chunks(LENGTH)) {
                let mut wide = [0f32; LENGTH];
                E::widen_run(isa, skip, &mut wide[..skip.len()]);
                for (value, skip) in values.iter_mut().zip(&wide) {
                    *value += skip;
                }
            }
        }
        if self.relu {
            for value in values {
                *value = if *value < 0.0 { 0.0 } else { *value };
            }
        }
    }
}
